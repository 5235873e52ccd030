# SPDX-License-Identifier: Apache-2.0
"""What the families chapter puts to the test. Data alone; no torch.

Margins are at most half of the effect that pilots with other seeds (0 and 100) saw on held-out training images, and were
fixed before the runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipes_lib.claim import Arm, Chapter, Claim, Measurement, higher, lower
from recipes_lib.systems import SYSTEMS

WITH_VIEWS = (
    "simclr",
    "dcl",
    "nnclr",
    "moco_v2",
    "moco_v3",
    "byol",
    "simsiam",
    "dino",
    "barlow_twins",
    "vicreg",
    "swav",
    "w_mse",
    "lejepa",
    "rotation",
)
"""The methods whose toy has the convolutional network."""
HIDING = ("mae", "simmim", "beit", "ijepa")
"""The methods whose toy has the transformer."""
ON_TRANSFORMER = ("simclr_vit", *HIDING)
"""The arms on the transformer: SimCLR is there as a bridge to the other methods."""
UNTRAINED = {
    "mae": "mae_untrained",
    "simmim": "simmim_untrained",
    "beit": "simmim_untrained",
    "ijepa": "ijepa_untrained",
}
"""Method -> the arm with the same transformer before training: BEiT's and SimMIM's are the same."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What keeps a method from collapsing, and how it is taken away."""

    arm: str
    """Name of the arm without it, behind the method's."""
    what: str
    """What is taken away, in words."""
    changes: Mapping[str, Any]
    """The fields of the config that take it away."""
    by: float
    """The claim's margin: how much lower the metric must be without it."""
    metric: str = "std"
    """The diagnostic that shows it."""


_WORDS = {
    "std": "standard deviation of the normalised embeddings of test images, times sqrt(d)",
    "raw_std": "standard deviation of the embeddings of test images, averaged over dimensions",
    "rank": "effective rank (RankMe) of the embeddings of test images",
}

GUARDS: dict[str, Guard] = {
    "simclr": Guard(arm="no_negatives", what="no negatives", changes={"loss.negatives": False}, by=0.4),
    "byol": Guard(arm="no_predictor", what="no predictor", changes={"model.predictor_layers": 0}, by=0.3),
    "simsiam": Guard(arm="no_stop", what="no stop-gradient", changes={"loss.stop_gradient": False}, by=0.3),
    "barlow_twins": Guard(
        arm="no_redundancy",
        what="diagonal alone",
        changes={"loss.redundancy_weight": 0.0},
        by=10.0,
        metric="rank",
    ),
    "vicreg": Guard(
        arm="no_variance", what="no variance term", changes={"loss.variance_weight": 0.0}, by=0.2, metric="raw_std"
    ),
    "swav": Guard(arm="no_sinkhorn", what="no Sinkhorn", changes={"loss.sinkhorn_iterations": 0}, by=0.4),
    "w_mse": Guard(arm="no_whitening", what="no whitening", changes={"loss.whiten": False}, by=0.3),
    "lejepa": Guard(arm="no_sigreg", what="no SIGReg", changes={"loss.sigreg_weight": 0.0}, by=0.4, metric="raw_std"),
    "ijepa": Guard(
        arm="no_stop",
        what="no stop-gradient,\nno teacher",
        changes={"loss.stop_gradient": False, "model.ema": 0.0, "model.ema_final": 0.0},
        by=0.3,
    ),
}
"""Method -> its guard. The targets of the methods left out do not depend on the network, or the guard is SimCLR's.
DINO is left out because the intact method does not learn at this scale."""


@dataclass(frozen=True)
class Later:
    """A longer run of a method that hardly learns in 300 steps."""

    steps: int
    """Steps of the preset ``METHOD_simmer``."""
    by: float
    """Margin over the untrained network; at most half of what the search saw."""
    tuning: str
    """What was tried."""


LATER = {
    "byol": Later(
        1000, 0.09, "Three settings of 1,000 steps were tried, of which the best is taken: 0.71, where SimCLR has 0.83."
    ),
    "simsiam": Later(1000, 0.09, "Two rates for 1,000 steps were tried, of which the better one is taken: 0.72."),
    "dino": Later(
        3000,
        0.07,
        "Fourteen settings of DINO were tried, two of them on a transformer; of two rates for 3,000 steps the better one "
        "is taken: 0.66.",
    ),
}
"""Method -> its longer run. On the images of the search, the untrained network has about 0.5."""

LEARNS = {
    "rotation": 0.015,
    "simclr": 0.1,
    "dcl": 0.1,
    "nnclr": 0.04,
    "moco_v2": 0.07,
    "moco_v3": 0.06,
    "byol": 0.01,
    "simsiam": 0.02,
    "dino": 0.02,  # no pilot of 300 steps learned
    "barlow_twins": 0.02,
    "vicreg": 0.06,
    "swav": 0.06,
    "w_mse": 0.05,
    "mae": 0.04,
    "simmim": 0.01,
    "beit": 0.07,
    "lejepa": 0.05,
    "ijepa": 0.04,
}
"""Method -> by how much it must beat the untrained network: half of what pilots saw, rounded down."""
FINETUNES = {"mae": 0.07, "simmim": 0.03, "beit": 0.08, "ijepa": 0.05}
"""Method -> by how much fine-tuning must gain by it, likewise."""

_SHORT = {"eval.baselines": "none", "eval.probes": ["knn"], "train.checkpoint_every": 1000}
_FINETUNED = {
    "eval.probes": ["knn", "finetune"],
    "eval.finetune_epochs": 4.0,
    "eval.finetune_lr": 0.05,
    "eval.finetune_batch_size": 128,
}
_NO_STEP = {"train.steps": 1, "optim.first_count": 0}
"""One step with the learning rate 0, at which the warm-up begins: the network is as it was drawn."""
_TRANSFORMER = {"model.arch": "vit_pico", "model.stem": "patch", "model.patch_size": 8}


def _arm(preset: str, changes: Mapping[str, Any]) -> Arm:
    return Arm(recipe="families", preset=preset, changes={**_SHORT, **changes})


def _command(method: str, *flags: str) -> str:
    """The method's paper run, or SimCLR's with another objective where the book has none for ImageNet."""
    return " ".join(
        (
            f"torchrun --nproc-per-node 8 -m recipes_lib run families --preset {PAPER_RUNS[method]}",
            "--data.root /data/imagenet",
            *flags,
        )
    )


PAPER_RUNS = {name: f"{name}_rn50_imagenet" for name in WITH_VIEWS} | {
    "mae": "mae_vitb16_imagenet",
    "simmim": "simmim_vitb16_imagenet",
    "beit": "beit_vitb16_imagenet",
    "ijepa": "ijepa_vith14_imagenet",
    "lejepa": "lejepa_vitl14_imagenet",
    "w_mse": "w_mse_rn18_imagenet100",
}
"""Method -> its paper's preset."""
_SEARCH = (
    "The settings in data/searches/families.json were tried for each method, with seeds 0 and 100, by "
    "k-NN on a fifth of the training images, which were held out."
)
_SCORE = "scores.knn.method"
_KNN = "weighted k-NN accuracy on test images"


def _learns(method: str) -> Claim:
    """The method beats the untrained network."""
    control = (UNTRAINED[method], _SCORE) if method in HIDING else ("simclr", "scores.knn.random_init")
    return higher(
        f"families.{method}_learns",
        f"After its short run, {SYSTEMS[method].title} tells classes apart better than the same network before training.",
        ours=(method, _SCORE),
        control=control,
        by=LEARNS[method],
        metric=_KNN,
        control_arm="the same backbone with random weights",
        control_tuning=f"An untrained network has nothing to tune; it gets the same images. {_SEARCH}",
        paper={"value": None, "where": "not reported"},
        full_scale=_command(method, "--eval.baselines all"),
    )


def _learns_later(method: str) -> Claim:
    """With more steps the method beats the untrained network."""
    later = LATER[method]
    return higher(
        f"families.{method}_learns_later",
        f"After {later.steps:,} steps, {SYSTEMS[method].title} tells classes apart better than the same network before training.",
        ours=(f"{method}_long", _SCORE),
        control=("simclr", "scores.knn.random_init"),
        by=later.by,
        metric=_KNN,
        control_arm="the same backbone with random weights",
        control_tuning=f"An untrained network has nothing to tune; it gets the same images. {later.tuning} {_SEARCH}",
        paper={"value": None, "where": "not reported"},
        full_scale=_command(method, "--eval.baselines all"),
    )


def _finetunes(method: str) -> Claim:
    """Fine-tuning from the method's weights beats fine-tuning from the start."""
    return higher(
        f"families.{method}_finetunes",
        f"Fine-tuned with labels, {SYSTEMS[method].title}'s network is better than the same network without its training.",
        ours=(method, "scores.finetune.method"),
        control=(UNTRAINED[method], "scores.finetune.method"),
        by=FINETUNES[method],
        metric="accuracy on test images after four epochs of fine-tuning",
        control_arm="the same transformer with random weights, fine-tuned in the same way",
        control_tuning=f"Both are fine-tuned with one rate, chosen for neither. {_SEARCH}",
        paper={"value": None, "where": "the papers' main metric; other data and schedules"},
        full_scale=_command(method, "--eval.probes knn finetune"),
        full_scale_control=_command(method, "--train.steps 1 --optim.first-count 0", "--eval.probes knn finetune"),
    )


def _guarded(method: str) -> Claim:
    """Without its guard the method's embeddings collapse."""
    guard = GUARDS[method]
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in guard.changes.items())
    return lower(
        f"families.{method}_{guard.arm}",
        f"{SYSTEMS[method].title} with {guard.what.replace(chr(10), ' ')} loses "
        f"{'dimensions' if guard.metric == 'rank' else 'the spread'} of its embeddings.",
        ours=(f"{method}_{guard.arm}", f"diagnostics.{guard.metric}"),
        control=(method, f"diagnostics.{guard.metric}"),
        by=guard.by,
        metric=_WORDS[guard.metric],
        control_arm="the intact method",
        control_tuning=f"Nothing was searched for the broken arm: it differs in the one part named. {_SEARCH}",
        paper={"value": None, "where": "the paper's argument for its guard; other measures there"},
        full_scale=_command(method, flags),
        full_scale_control=_command(method),
    )


CHAPTER = Chapter(
    name="families",
    arms={
        **{name: _arm(f"{name}_toy", {}) for name in WITH_VIEWS},
        **{name: _arm(f"{name}_simmer", _FINETUNED) for name in ("mae", "simmim", "beit")},
        **{f"{name}_long": _arm(f"{name}_simmer", {}) for name in LATER},
        "ijepa": _arm("ijepa_toy", _FINETUNED),  # smaller patches, so four times the time per step
        **{f"{name}_untrained": _arm(f"{name}_toy", _FINETUNED | _NO_STEP) for name in ("mae", "simmim", "ijepa")},
        "simclr": _arm("simclr_toy", {"eval.baselines": "all"}),
        "simclr_vit": _arm("simclr_toy", {"eval.baselines": "all", **_TRANSFORMER}),
        **{f"{name}_{guard.arm}": _arm(f"{name}_toy", guard.changes) for name, guard in GUARDS.items()},
    },
    measurements={
        "cost": Measurement("recipes_lib.recipes.families.study:cost"),
    },
    seeds=(1, 2, 3),
    shown=("cost", "simclr_vit"),
    headline=(
        "families.simclr_learns",
        "families.simsiam_no_stop",
        "families.lower_loss",
        "families.mae_finetunes",
    ),
    claims=(
        *(_learns(name) for name in LEARNS),
        *(_learns_later(name) for name in LATER),
        higher(
            "families.simclr_beats_pixels",
            "After its short run, SimCLR tells classes apart better than raw pixels.",
            ours=("simclr", _SCORE),
            control=("simclr", "scores.knn.raw_pixels"),
            by=0.02,
            metric=_KNN,
            control_arm="the pixels of the same images, normalised as the network gets them, less each image's mean",
            control_tuning=f"Nothing was searched for the pixels. {_SEARCH}",
            paper={"value": None, "where": "not reported"},
            full_scale=_command("simclr", "--eval.baselines all"),
        ),
        *(_finetunes(name) for name in FINETUNES),
        *(_guarded(name) for name in GUARDS),
        lower(
            "families.lower_loss",
            "SimSiam without its stop-gradient reaches a lower loss than the intact method, on test images too.",
            ours=("simsiam_no_stop", "diagnostics.held_out_loss"),
            control=("simsiam", "diagnostics.held_out_loss"),
            by=0.1,
            metric="the loss itself: minus the cosine of prediction and embedding, on test images",
            control_arm="the intact method",
            control_tuning=f"Nothing was searched for the broken arm: it differs in the stop-gradient alone. {_SEARCH}",
            paper={
                "value": None,
                "where": "the paper's argument for the stop-gradient; its figures were not read",
            },
            full_scale=_command("simsiam", "--loss.stop-gradient False"),
            full_scale_control=_command("simsiam"),
        ),
        lower(
            "families.lower_loss_worse",
            "The same run tells classes apart worse than the intact method.",
            ours=("simsiam_no_stop", _SCORE),
            control=("simsiam", _SCORE),
            by=0.1,
            metric=_KNN,
            control_arm="the intact method",
            control_tuning=f"Nothing was searched for the broken arm: it differs in the stop-gradient alone. {_SEARCH}",
            paper={"value": None, "where": "the paper's argument for the stop-gradient; its tables were not read"},
            full_scale=_command("simsiam", "--loss.stop-gradient False"),
            full_scale_control=_command("simsiam"),
        ),
    ),
)
