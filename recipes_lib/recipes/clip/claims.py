# SPDX-License-Identifier: Apache-2.0
"""What the CLIP chapter puts to the test. Data alone; no torch.

Margins were fixed before the runs; one pilot, with another seed and true captions alone, had seen zero-shot accuracy .53
and recall at 5 of .70.
"""

from recipes_lib.claim import Arm, Chapter, higher, lower

_PROBES = {"eval.probes": ["zero_shot", "retrieval"]}
_FULL_SCALE = "torchrun --nproc-per-node 8 -m recipes_lib run clip --preset datacomp_small --data.root SHARDS"
_ZERO_SHOT = f"{_FULL_SCALE} --eval.imagenet IMAGENET --eval.probes zero_shot"
_RETRIEVAL = f"{_FULL_SCALE} --data.test-root HELD_OUT --eval.probes retrieval"
_UNTRAINED = (
    "The control has nothing to tune. Ours was not searched either: rate, batch, steps and views were fixed before, and one "
    "pilot with another seed looked at."
)
_DATACOMP = "DataComp (arXiv 2304.14108), Table 3"

CHAPTER = Chapter(
    name="clip",
    arms={
        "captions": Arm(recipe="clip", changes=_PROBES),
        "web": Arm(recipe="clip", changes={**_PROBES, "data.texts": "web"}),
        "small_batch": Arm(
            recipe="clip",
            changes={**_PROBES, "train.batch_size": 64, "train.steps": 480, "train.checkpoint_every": 480},
        ),
    },
    headline=(
        "clip.zero_shot",
        "clip.retrieval",
        "clip.noise_costs",
    ),
    claims=(
        higher(
            "clip.zero_shot",
            "A class's name is enough: pictures never seen are told apart by sentences, without one label.",
            ours=("captions", "scores.zero_shot.method"),
            control=("captions", "scores.zero_shot.random_init"),
            by=0.25,
            metric="zero-shot accuracy on new pictures",
            control_arm="the same two towers before training",
            control_tuning=_UNTRAINED,
            paper={
                "value": 0.025,
                "where": f"{_DATACOMP}, scale small, no filter, ViT-B/32, ImageNet; a later paper's run of this preset",
                "read": "full text",
            },
            full_scale=f"{_ZERO_SHOT} --eval.baselines all",
        ),
        higher(
            "clip.retrieval",
            "For a new caption, its own picture is among the five nearest of 500 new pictures far more often than by chance.",
            ours=("captions", "scores.ir5.method"),
            control=("captions", "scores.ir5.random_init"),
            by=0.3,
            metric="IR@5 on new pairs",
            control_arm="the same two towers before training",
            control_tuning=_UNTRAINED,
            paper={
                "value": 0.114,
                "where": f"{_DATACOMP}, scale small, no filter, ViT-B/32, mean of three retrieval tasks; a later paper's run",
                "read": "full text",
            },
            full_scale=f"{_RETRIEVAL} --eval.baselines all",
        ),
        lower(
            "clip.noise_costs",
            "Trained on a web's pairs, about half of whose texts say nothing of their picture, the towers find far less.",
            ours=("web", "scores.ir5.method"),
            control=("captions", "scores.ir5.method"),
            by=0.1,
            metric="IR@5 on new pairs",
            control_arm="true captions of the same pictures, with no words drawn into them, for as many steps",
            control_tuning="Nothing was searched for either. The settings that both share were looked at in one pilot with true "
            "captions and another seed, which favours the control, and so the claim.",
            paper={
                "value": 0.176,
                "control": 0.297,
                "where": f"{_DATACOMP}, scale medium, ViT-B/32, ImageNet: no filter | of the same pool, what an image-based filter "
                "and CLIPScore keep (14 M of 128 M pairs)",
                "read": "full text",
            },
            full_scale=_RETRIEVAL,
            full_scale_control=f"{_RETRIEVAL} --data.subset subset.npy",
            version=2,
        ),
        higher(
            "clip.large_batch",
            "At equally many pictures seen, a batch of 256 gives better towers than one of 64: more wrong answers to tell apart.",
            ours=("captions", "scores.ir5.method"),
            control=("small_batch", "scores.ir5.method"),
            by=0.02,
            metric="IR@5 on new pairs",
            control_arm="a quarter of the batch, four times the steps, the same learning rate and warm-up steps",
            control_tuning="Nothing was searched for either. The one learning rate, 3e-3, was looked at in one pilot with batches "
            "of 256, which favours ours.",
            paper={
                "value": None,
                "where": "batches of 32,768, of which CLIP's paper gives no comparison that was read here",
            },
            full_scale=_RETRIEVAL,
            full_scale_control=f"{_RETRIEVAL} --train.batch-size 1024 --train.steps 12500",
            version=2,
        ),
    ),
)
