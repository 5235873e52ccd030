# SPDX-License-Identifier: Apache-2.0
"""What the chapter on evaluation puts to the test. Data alone; no torch.

All margins were fixed before the runs, and no trained network was looked at before: there was no pilot of one. Of untrained
networks, seeds 10 and 11 were looked at on the test images (``evaluation.untrained_statistics``).

A claim about a ranking compares Spearman's rank correlation with 0. Its margin is 0.5: over nine runs, the mean of three
correlations reaches it by chance in about 1 case of 100, if there is no relation.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from recipes_lib.claim import Arm, Chapter, Claim, Measurement, higher, lower

STEPS = 150
"""Number of steps of each network of the two zoos."""
TRAP_STEPS = 300
"""Number of steps of the network that the mistakes are tried on."""
TEST_IMAGES = 2000
"""Number of test images: twice those of the families' presets, because differences between runs are small."""
RATES = (1e-3, 3e-3, 1e-2)
"""Learning rates of a method's nine runs: the preset's, and a lower and a higher one."""
VARIED: dict[str, tuple[str, tuple[float, ...]]] = {
    "simclr": ("loss.temperature", (0.05, 0.2, 1.0)),
    "vicreg": ("loss.covariance_weight", (0.2, 1.0, 5.0)),
    "lejepa": ("loss.sigreg_weight", (0.01, 0.05, 0.2)),
}
"""Method -> the setting of its loss that is varied beside the rate: the preset's value, and a lower and a higher one."""
ACROSS = (
    "simclr",
    "moco_v3",
    "byol",
    "simsiam",
    "dino",
    "barlow_twins",
    "vicreg",
    "swav",
    "lejepa",
    "rotation",
)
"""The methods that are compared with each other, all with the same convolutional network."""
FINETUNED = ("simclr", "lejepa", "byol", "dino", "untrained")
"""The networks that are fine-tuned too."""
FINETUNING: dict[str, Any] = {
    "eval.finetune_epochs": 5,
    "eval.finetune_lr": 0.05,
    "eval.finetune_batch_size": 128,
}
"""How they are fine-tuned."""
_TRANSFORMER = {"model.arch": "vit_pico", "model.stem": "patch", "model.patch_size": 8, "model.pool": "mean"}
ON_TRANSFORMER: dict[str, tuple[str, Mapping[str, Any]]] = {
    "untrained": ("mae", {}),
    "simclr": ("simclr", _TRANSFORMER),
    "mae": ("mae", {}),
}
"""The networks of the dense probe: the method of the families, and what is changed of its preset."""
DENSE_STEPS = {"untrained": 1, "simclr": 300, "mae": 600}
"""Their numbers of steps: MAE's steps cost half of SimCLR's. ``1``: the network is not trained."""
DENSE_TRAIN, DENSE_TEST = 6000, 2000
"""Numbers of images whose masks are rendered for the dense probe."""

TITLES = {"simclr": "SimCLR", "vicreg": "VICReg", "lejepa": "LeJEPA"}
_FREE = {"rankme": "a higher RankMe", "lidar": "a higher LiDAR", "loss": "a lower loss"}
_FULL = {"simclr": "simclr_rn50_imagenet", "vicreg": "vicreg_rn50_imagenet", "lejepa": "lejepa_vitl14_imagenet"}
_UNSEARCHED = "Nothing was searched: rates and settings are the preset's and those around it"
_PRESETS = "Nothing was searched: each method is as its preset of the families has it"
_NOT_READ = {"value": None, "where": "no figure of this kind was read"}
_LIDAR = {
    "value": None,
    "where": "arXiv 2312.04000, abstract: LiDAR predicts the best settings better than ranks do; no figure was read",
}
_NONE = {"value": None, "where": "no paper is followed here"}


def _full(preset: str, *flags: str) -> str:
    """The command of a paper's run, with the probes that the claim compares."""
    return " ".join(
        (
            f"torchrun --nproc-per-node 8 -m recipes_lib run families --preset {preset} --data.root /data/imagenet",
            *flags,
        )
    )


def _measured(function: str, method: str) -> Measurement:
    """A function of the study, with the fingerprint of a run of one of its methods."""
    arm = Arm(recipe="families", preset=f"{method}_toy")
    return Measurement(f"recipes_lib.recipes.evaluation.study:{function}", fingerprint=arm)


def _tells(method: str, metric: str) -> Claim:
    """Over nine runs of a method, the metric ranks networks as k-NN does."""
    probes = "knn" if metric == "loss" else f"knn {metric}"
    return higher(
        f"evaluation.{method}_{metric}",
        f"Over runs of {TITLES[method]} with other rates and settings, {_FREE[metric]} goes with better features.",
        ours=(method, f"spearman.{metric}"),
        control=(method, "none"),
        by=0.5,
        metric="Spearman's rank correlation with k-NN accuracy over nine runs",
        control_arm="no relation: a correlation of 0",
        control_tuning=f"{_UNSEARCHED}.",
        paper=_LIDAR if metric == "lidar" else _NOT_READ,
        full_scale=_full(_FULL[method], f"--eval.probes {probes}"),
    )


_ranks = partial(
    higher,
    by=0.5,
    metric="Spearman's rank correlation with k-NN accuracy over ten methods",
    control=("across", "none"),
    control_arm="no relation: a correlation of 0",
    control_tuning=f"{_PRESETS}.",
)
_misled = partial(
    higher,
    by=0.3,
    metric="share of the other trained networks that the network leaves behind",
    control_tuning=f"{_PRESETS}.",
    paper=_NONE,
)
_accuracy = partial(
    higher,
    metric="weighted k-NN accuracy on test images",
    control_tuning="Nothing was searched: both are of one network, that of SimCLR's preset.",
    paper=_NONE,
)
_SIMCLR = _full(_FULL["simclr"], "--eval.probes knn")
_MAE = _full("mae_vitb16_imagenet", "--eval.probes knn")
_BOTH_TRANSFORMERS = (
    "Nothing was searched for either: each method is as its preset of the families has it, on a transformer of one size; "
    "MAE takes twice as many steps, each half as dear."
)

CHAPTER = Chapter(
    name="evaluation",
    measurements={
        "simclr": _measured("simclr", "simclr"),
        "vicreg": _measured("vicreg", "vicreg"),
        "lejepa": _measured("lejepa", "lejepa"),
        "across": _measured("across", "simclr"),
        "finetuning": _measured("finetuning", "simclr"),
        "mistakes": _measured("mistakes", "simclr"),
        "dense_probes": _measured("dense_probes", "mae"),
    },
    seeds=(1, 2, 3),
    headline=(
        "evaluation.simclr_rankme",
        "evaluation.lejepa_loss",
        "evaluation.untrained_rankme",
        "evaluation.optimism",
        "evaluation.dense_masked",
    ),
    claims=(
        *(_tells(method, metric) for metric in _FREE for method in VARIED),
        _ranks(
            "evaluation.across_rankme",
            "Over methods, a higher RankMe goes with better features.",
            ours=("across", "spearman.rankme"),
            paper={
                "value": None,
                "where": "arXiv 2304.12210, section 3.7.2: RankMe compares runs of one method; no figure was read",
            },
            full_scale=_full(_FULL["simclr"], "--eval.probes knn rankme"),
        ),
        _ranks(
            "evaluation.across_lidar",
            "Over methods, a higher LiDAR goes with better features.",
            ours=("across", "spearman.lidar"),
            paper=_LIDAR,
            full_scale=_full(_FULL["simclr"], "--eval.probes knn lidar"),
        ),
        _ranks(
            "evaluation.across_linear",
            "A linear probe ranks methods as k-NN does.",
            ours=("across", "spearman.linear"),
            paper=_NOT_READ,
            full_scale=_full(_FULL["simclr"], "--eval.probes knn linear_sweep"),
        ),
        _ranks(
            "evaluation.across_lowshot",
            "A probe with five labels per class ranks methods as k-NN with all labels does.",
            ours=("across", "spearman.lowshot"),
            paper=_NOT_READ,
            full_scale=_full(_FULL["simclr"], "--eval.probes knn lowshot"),
        ),
        _misled(
            "evaluation.untrained_rankme",
            "RankMe places an untrained network above methods that k-NN places above it.",
            ours=("across", "beaten.rankme"),
            control=("across", "beaten.knn"),
            control_arm="the same share by k-NN accuracy",
            full_scale=_full(_FULL["simclr"], "--eval.probes knn rankme"),
        ),
        _misled(
            "evaluation.rotation_probe",
            "The rotation probe places the network that was trained on rotations above methods that k-NN places above it.",
            ours=("across", "beaten_by_rotation.rotation"),
            control=("across", "beaten_by_rotation.knn"),
            control_arm="the same share by k-NN accuracy",
            full_scale=_full("rotation_rn50_imagenet", "--eval.probes knn rotation"),
        ),
        lower(
            "evaluation.finetuning",
            "Fine-tuning on all labels brings methods closer together than k-NN shows them.",
            ours=("finetuning", "range.finetune"),
            control=("finetuning", "range.knn"),
            by=0.05,
            metric="accuracy of the best of four methods less that of the worst",
            control_arm="the same range by k-NN accuracy of the frozen networks",
            control_tuning=f"{_PRESETS}, and one setting of fine-tuning serves all.",
            paper=_NONE,
            full_scale=_full(_FULL["simclr"], "--eval.probes knn finetune"),
        ),
        _accuracy(
            "evaluation.normalisation",
            "k-NN by cosine is better than k-NN by the inner product of features of any length.",
            ours=("mistakes", "knn.cosine"),
            control=("mistakes", "knn.product"),
            by=0.02,
            control_arm="the inner product, with the same number of neighbours and the same temperature",
            full_scale=_SIMCLR,
        ),
        _accuracy(
            "evaluation.augmented",
            "Features of the whole image are better for k-NN than those of training's random views.",
            ours=("mistakes", "knn.cosine"),
            control=("mistakes", "knn.augmented"),
            by=0.03,
            control_arm="one random view of each training and test image",
            full_scale=_SIMCLR,
        ),
        _accuracy(
            "evaluation.untrained_statistics",
            "An untrained network is better if its batch norms have statistics of the images.",
            ours=("mistakes", "estimated.knn"),
            control=("mistakes", "initial.knn"),
            by=0.02,  # of untrained networks with the seeds 10 and 11: 0.508 and 0.461, 0.489 and 0.444
            control_arm="the same weights, with the statistics of a new network: mean 0 and variance 1",
            control_tuning="An untrained network has nothing to tune.",
            full_scale=_full(_FULL["simclr"], "--eval.probes knn --eval.baselines all"),
        ),
        higher(
            "evaluation.noise",
            "Gaussian noise has a higher RankMe than the features of a trained network.",
            ours=("mistakes", "noise.rankme"),
            control=("mistakes", "network.rankme"),
            by=20.0,
            metric="RankMe of 4,096 rows of 128 numbers",
            control_arm="SimCLR's features of training images",
            control_tuning="Nothing was searched: noise has nothing to tune, and SimCLR is as its preset has it.",
            paper=_NONE,
            full_scale=_full(_FULL["simclr"], "--eval.probes rankme"),
        ),
        higher(
            "evaluation.optimism",
            "The best of many settings on 100 test images seems better than it is.",
            ours=("mistakes", "optimism.100.on_test"),
            control=("mistakes", "optimism.100.held_out"),
            by=0.01,
            metric="accuracy on the 100 test images less that on all others, of the chosen setting of k-NN",
            control_arm="a setting chosen on 100 images that were held out of training",
            control_tuning="Both choose among the same 96 settings, 400 times; nothing else was searched.",
            paper=_NONE,
            full_scale=_SIMCLR,
        ),
        higher(
            "evaluation.dense_trained",
            "MAE's tokens tell what is seen at their place better than those of the same transformer before training.",
            ours=("dense_probes", "rows.mae.mean_iou"),
            control=("dense_probes", "rows.untrained.mean_iou"),
            by=0.02,
            metric="mean intersection over union of a linear map of each token",
            control_arm="the same transformer before training",
            control_tuning="Nothing was searched for either; the probe chooses its penalty for each on held-out images.",
            paper=_NONE,
            full_scale=_MAE,
        ),
        higher(
            "evaluation.dense_masked",
            "MAE's tokens tell what is seen at their place better than SimCLR's tokens.",
            ours=("dense_probes", "rows.mae.mean_iou"),
            control=("dense_probes", "rows.simclr.mean_iou"),
            by=0.01,
            metric="mean intersection over union of a linear map of each token",
            control_arm="SimCLR on a transformer of the same size, which also averages its tokens",
            control_tuning=f"{_BOTH_TRANSFORMERS} The probe chooses its penalty for each on held-out images.",
            paper=_NONE,
            full_scale=_MAE,
            full_scale_control=_SIMCLR,
        ),
        higher(
            "evaluation.dense_other_order",
            "For whole images the order of the two is the other: SimCLR's mean token tells classes apart better than MAE's.",
            ours=("dense_probes", "rows.simclr.knn"),
            control=("dense_probes", "rows.mae.knn"),
            by=0.03,
            metric="weighted k-NN accuracy on test images",
            control_arm="MAE on a transformer of the same size",
            control_tuning=_BOTH_TRANSFORMERS,
            paper=_NONE,
            full_scale=_SIMCLR,
            full_scale_control=_MAE,
        ),
    ),
)
