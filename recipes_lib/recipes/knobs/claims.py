# SPDX-License-Identifier: Apache-2.0
"""What the chapter on the knobs puts to the test: the Cookbook's advice, a knob at a time. Data alone; no torch.

Each claim is a piece of advice of Balestriero et al., arXiv 2304.12210, section 3, tried with three seeds on the Pantry.
Margins were fixed before these runs. Where a pilot with seed 10 saw the claimed effect, the margin is at most half of it;
every other margin is ``SMALL``.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from recipes_lib.claim import Arm, Chapter, Measurement, higher, lower, no_worse

STEPS, BATCH, RATE = 300, 128, 3e-3
"""Steps, images per step and peak learning rate of the arms, unless a knob changes them."""
SIZES = (32, 256, 512)
"""Images per step of the arms that turn this knob. All arms see as many images in all."""
SMALL = 0.02
"""Margin where no pilot saw the claimed effect: 20 of the 1,000 test images."""
_SHORT = {
    "train.steps": STEPS,
    "train.batch_size": BATCH,
    "train.checkpoint_every": 2000,
    "eval.baselines": "none",
    "eval.probes": ["knn"],
}


def _arm(method: str, changes: Mapping[str, Any] | None = None) -> Arm:
    """A short run of a method of the families, on the Pantry, with some knobs turned."""
    return Arm(recipe="families", preset=f"{method}_toy", changes={**_SHORT, **(changes or {})})


def _simclr(changes: Mapping[str, Any]) -> Arm:
    return _arm("simclr", {"optim.lr": RATE, **changes})


def _mae(changes: Mapping[str, Any]) -> Arm:
    """MAE's steps cost a third of SimCLR's: it sees a quarter of the patches, in a small transformer."""
    return _arm("mae", {"train.steps": 4 * STEPS, **changes})


def _decay(value: float) -> dict[str, float]:
    return {"optim.weight_decay": value, "optim.weight_decay_final": value}


def _batch(size: int, rate: float) -> Arm:
    """As many images in all as the other arms see, ``size`` per step."""
    return _simclr({"train.batch_size": size, "train.steps": STEPS * BATCH // size, "optim.lr": rate})


_STRONG = {"views.brightness": 0.8, "views.contrast": 0.8, "views.saturation": 0.8, "views.hue": 0.2}
_SMALL_VIEWS = {
    "views.local_views": 4,
    "views.local_size": 16,
    "views.local_scale": [0.1, 0.4],
    "train.steps": 190,  # as much time as 300 steps with two views: each small view has a quarter of the pixels
}
AUGMENTATIONS = {
    "simclr": {},
    "no_crop": {"views.global_scale": [1.0, 1.0]},
    "no_flip": {"views.flip": 0.0},
    "no_jitter": {"views.jitter": 0.0},
    "no_grayscale": {"views.grayscale": 0.0},
    "no_colour": {"views.jitter": 0.0, "views.grayscale": 0.0},
    "crop_grayscale": {"views.jitter": 0.0, "views.flip": 0.0},
    "strong_jitter": _STRONG,
    "small_crops": {"views.global_scale": [0.08, 1.0]},
    "large_crops": {"views.global_scale": [0.6, 1.0]},
}
"""What each arm changes of SimCLR's views; the first changes nothing."""
_ARMS = {
    **{name: _simclr(changes) for name, changes in AUGMENTATIONS.items()},
    "simclr": _simclr({"eval.baselines": "all"}),  # the yardsticks of all arms with this network
    # projector
    **{f"projector_{layers}": _simclr({"model.projector_layers": layers}) for layers in (0, 1, 3)},
    **{f"hidden_{width}": _simclr({"model.hidden": width}) for width in (64, 1024)},
    **{f"dim_{dim}": _simclr({"model.dim": dim}) for dim in (16, 256)},
    "vicreg_projector_0": _arm("vicreg", {"model.projector_layers": 0}),
    **{f"vicreg_dim_{dim}": _arm("vicreg", {"model.dim": dim}) for dim in (16, 64, 256)},
    # batch size, with the learning rate in proportion to the size or to its square root
    **{f"batch_{size}_linear": _batch(size, RATE * size / BATCH) for size in SIZES},
    **{f"batch_{size}_root": _batch(size, RATE * math.sqrt(size / BATCH)) for size in SIZES},
    # temperature, learning rate, weight decay
    **{f"temperature_{value}": _simclr({"loss.temperature": value}) for value in (0.05, 0.1, 0.5, 1.0)},
    **{f"rate_{value:g}": _simclr({"optim.lr": value}) for value in (3e-4, 1e-3, 1e-2, 3e-2)},
    **{f"decay_{value:g}": _simclr(_decay(value)) for value in (0.0, 0.5, 5.0)},
    # teacher and predictor
    "byol": _arm("byol"),
    **{
        f"byol_ema_{value:g}": _arm("byol", {"model.ema": value, "model.ema_final": value})
        for value in (0.0, 0.9, 0.99)
    },
    **{f"byol_predictor_{layers}": _arm("byol", {"model.predictor_layers": layers}) for layers in (0, 1)},
    "byol_decay_0": _arm("byol", _decay(0.0)),
    # masking
    **{f"mae_{value}": _mae({"views.mask_ratio": value}) for value in (0.25, 0.5, 0.9)},
    "mae_0.75": _mae({"views.mask_ratio": 0.75, "eval.baselines": "all"}),
    # small views
    "swav": _arm("swav"),
    "swav_small_views": _arm("swav", _SMALL_VIEWS),
}


def _full(preset: str) -> str:
    """The command of a paper's run."""
    return f"torchrun --nproc-per-node 8 -m recipes_lib run families --preset {preset} --data.root /data/imagenet"


_RUN, _VICREG = _full("simclr_rn50_imagenet"), _full("vicreg_rn50_100ep_imagenet")
_BYOL, _MAE, _SWAV = _full("byol_rn50_imagenet"), _full("mae_vitb16_imagenet"), _full("swav_rn50_imagenet")
_UNTUNED = (
    "Nothing was searched for either arm: they differ in the one knob named. The rate of both is that of the method's preset, "
    "chosen for the method intact"
)
_KNN = "scores.knn.method"


def _pair(claim: Any, name: str, statement: str, ours: str, control: str, by: float = SMALL, **facts: Any) -> Any:
    """A claim about the k-NN accuracies of two arms."""
    return claim(f"knobs.{name}", statement, ours=(ours, _KNN), control=(control, _KNN), by=by, **facts)


_KNOWN = {"metric": "weighted k-NN accuracy", "control_tuning": f"{_UNTUNED}."}
_better = partial(_pair, higher, **_KNOWN)
_as_good = partial(_pair, partial(no_worse, better="higher"), **_KNOWN)


def _said(where: str, value: float | None = None, control: float | None = None) -> dict[str, Any]:
    """What the Cookbook says of this knob."""
    numbers = {} if value is None else {"control": control, "read": "full text"}
    return {"value": value, "where": f"Cookbook, {where}", **numbers}


CHAPTER = Chapter(
    name="knobs",
    arms=_ARMS,
    measurements={
        # SimCLR once more, probed at its features and at each layer of its projector
        "layers": Measurement("recipes_lib.recipes.knobs.study:layers", fingerprint=_ARMS["simclr"]),
    },
    headline=("knobs.crop", "knobs.projector", "knobs.probe_layer", "knobs.root_rule", "knobs.predictor"),
    claims=(
        _better(
            "crop",
            "Random crops are the augmentation that SimCLR cannot do without.",
            "simclr",
            "no_crop",
            by=0.06,  # the pilot: 0.745 and 0.618
            control_arm="both views are the whole image; flips and colour changes as before",
            paper=_said("section 3.1; no figure of this kind was read"),
            full_scale=_RUN,
            full_scale_control=f"{_RUN} --views.global-scale 1 1",
        ),
        _better(
            "colour",
            "Without changes of colour, SimCLR matches views by their colours and learns less of the class.",
            "simclr",
            "no_colour",
            by=0.08,  # the pilot: 0.745 and 0.572
            control_arm="no colour jitter, and no view turned grey",
            paper=_said("section 3.1: needed for ImageNet's classes, harmful where colour tells"),
            full_scale=_RUN,
            full_scale_control=f"{_RUN} --views.jitter 0 --views.grayscale 0",
        ),
        lower(
            "knobs.loss",
            "A lower loss is not a better model: without crops, SimCLR's loss on test images falls, although its features are "
            "worse.",
            ours=("no_crop", "diagnostics.held_out_loss"),
            control=("simclr", "diagnostics.held_out_loss"),
            by=0.05,  # no pilot measured this loss
            metric="loss on test images, under the augmentation of training",
            control_arm="random crops, as in the preset",
            control_tuning=f"{_UNTUNED}.",
            paper={"value": None, "where": "not a statement of the Cookbook; it follows from what the loss compares"},
            full_scale=f"{_RUN} --views.global-scale 1 1",
            full_scale_control=_RUN,
        ),
        _as_good(
            "cheap_set",
            "Random crops and turning views grey are enough: flips and colour jitter add little.",
            "crop_grayscale",
            "simclr",
            control_arm="crops, flips, colour jitter and grey views",
            paper=_said("section 3.1: the cheapest useful set"),
            full_scale=f"{_RUN} --views.jitter 0 --views.flip 0",
            full_scale_control=_RUN,
        ),
        _better(
            "projector",
            "SimCLR's features are better if a projector stands between them and the loss.",
            "simclr",
            "projector_0",
            by=0.02,  # the pilot: 0.745 and 0.699
            control_arm="no projector: the loss compares the features",
            paper=_said("section 3.2: top-1 on ImageNet after 100 epochs", 68.0, 50.0),
            full_scale=_RUN,
            full_scale_control=f"{_RUN} --model.projector-layers 0",
        ),
        _better(
            "projector_vicreg",
            "VICReg's features are better if a projector stands between them and the loss.",
            "vicreg_dim_256",
            "vicreg_projector_0",
            control_arm="no projector: the loss compares the features",
            paper=_said("section 3.2: top-1 on ImageNet after 100 epochs", 68.0, 48.0),
            full_scale=_VICREG,
            full_scale_control=f"{_VICREG} --model.projector-layers 0",
        ),
        higher(
            "knobs.probe_layer",
            "The features before the projector tell classes apart better than the embeddings behind it.",
            ours=("layers", "knn.features"),
            control=("layers", "knn.embedding"),
            by=SMALL,
            metric="weighted k-NN accuracy",
            control_arm="the same network, probed at the projector's output",
            control_tuning=f"{_UNTUNED}, and both layers are of one run.",
            paper=_said("section 3.2 (Guillotine regularisation); no figure of this kind was read"),
            full_scale=_RUN,
        ),
        _as_good(
            "narrow_embedding",
            "VICReg does not need a wide embedding: 64 dimensions serve as well as 256.",
            "vicreg_dim_64",
            "vicreg_dim_256",
            control_arm="embeddings of 256 dimensions",
            paper=_said("section 3.2: 256 dimensions reach 65.1 once the rest is tuned; best at 1,024, then flat"),
            full_scale=f"{_VICREG} --model.dim 1024",
            full_scale_control=_VICREG,
        ),
        _as_good(
            "small_batch",
            "SimCLR works with small batches: 32 images per step serve as well as 128, for as many images in all.",
            "batch_32_root",
            "simclr",
            control_arm="128 images per step",
            paper=_said("section 3.5: small batches work with the square-root rule"),
            full_scale=f"{_RUN} --train.batch-size 256 --optim.lr 1.2",
            full_scale_control=_RUN,
        ),
        _better(
            "root_rule",
            "With small batches, a rate that falls with the square root of the batch size is better than a proportional one.",
            "batch_32_root",
            "batch_32_linear",
            by=0.008,  # the pilot: 0.761 and 0.745
            control_arm="a rate in proportion to the batch size",
            control_tuning="The rate at 128 images is the same for both rules; neither was searched for at 32.",
            paper=_said("section 3.5: up to 5 points at 100 epochs; its figure for either arm was not read"),
            # 0.075 x sqrt(256) = 1.2 and 0.3 x 256 / 256 = 0.3; at 4,096 images both rules give 4.8
            full_scale=f"{_RUN} --train.batch-size 256 --optim.lr 1.2",
            full_scale_control=f"{_RUN} --train.batch-size 256 --optim.lr 0.3",
        ),
        _better(
            "warm_temperature",
            "A temperature of 1 is too high: it counts all negatives alike.",
            "simclr",
            "temperature_1.0",
            by=0.05,  # the pilot: 0.745 and 0.629
            control_arm="a temperature of 1.0 in place of 0.2",
            paper={"value": None, "where": "values in use are 0.1 to 0.5; no figure of this kind was read"},
            full_scale=_RUN,
            full_scale_control=f"{_RUN} --loss.temperature 1",
        ),
        _better(
            "cold_temperature",
            "A temperature of 0.05 is too low: it counts the hardest negatives alone.",
            "simclr",
            "temperature_0.05",
            control_arm="a temperature of 0.05 in place of 0.2",
            paper={"value": None, "where": "values in use are 0.1 to 0.5; no figure of this kind was read"},
            full_scale=_RUN,
            full_scale_control=f"{_RUN} --loss.temperature 0.05",
        ),
        _better(
            "teacher",
            "BYOL needs a teacher that moves more slowly than the network.",
            "byol",
            "byol_ema_0",
            control_arm="momentum 0: the teacher is the network after its last step",
            paper=_said("section 3.4: BYOL collapses with momentum 0 unless the predictor learns faster"),
            full_scale=_BYOL,
            full_scale_control=f"{_BYOL} --model.ema 0 --model.ema-final 0",
        ),
        _better(
            "predictor",
            "BYOL needs a predictor.",
            "byol",
            "byol_predictor_0",
            by=0.05,  # the families: 0.528 and 0.371
            control_arm="no predictor: the embeddings are compared with the teacher's",
            paper=_said("section 3.4: top-1 on ImageNet", 68.0, 21.0),
            full_scale=_BYOL,
            full_scale_control=f"{_BYOL} --model.predictor-layers 0",
        ),
        _as_good(
            "linear_predictor",
            "A linear predictor serves BYOL as well as one with a hidden layer.",
            "byol_predictor_1",
            "byol",
            control_arm="a predictor of two layers",
            paper=_said("section 3.4: a linear predictor works, and catches up in 10 to 20 epochs"),
            full_scale=f"{_BYOL} --model.predictor-layers 1",
            full_scale_control=_BYOL,
        ),
        _better(
            "decay",
            "BYOL needs weight decay.",
            "byol",
            "byol_decay_0",
            control_arm="no weight decay",
            paper=_said("section 3.5: BYOL is unstable without it"),
            full_scale=_BYOL,
            full_scale_control=f"{_BYOL} --optim.weight-decay 0 --optim.weight-decay-final 0",
        ),
        _better(
            "mask",
            "MAE learns more of the class if most patches are hidden: three quarters are better than one.",
            "mae_0.75",
            "mae_0.25",
            control_arm="a quarter of the patches is hidden",
            paper={"value": None, "where": "MAE's paper hides 0.75; no figure of this kind was read"},
            full_scale=_MAE,
            full_scale_control=f"{_MAE} --views.mask-ratio 0.25",
        ),
        _better(
            "small_views",
            "For as much time, SwAV learns more of the class with small views beside the two large ones.",
            "swav_small_views",
            "swav",
            control_arm="two large views, for half as many steps again",
            paper=_said("section 3.1: about 4 points more for a quarter more time"),
            full_scale=_SWAV,
            full_scale_control=f"{_SWAV} --views.local-views 0",
        ),
    ),
    shown=(
        *(name for name in AUGMENTATIONS if name not in ("simclr", "no_crop", "no_colour", "crop_grayscale")),
        *("projector_1", "projector_3", "hidden_64", "hidden_1024", "dim_16", "dim_256", "vicreg_dim_16"),
        *(f"batch_{size}_{rule}" for size in SIZES if size != 32 for rule in ("linear", "root")),
        *("temperature_0.1", "temperature_0.5", "rate_0.0003", "rate_0.001", "rate_0.01", "rate_0.03"),
        *("decay_0", "decay_0.5", "decay_5", "byol_ema_0.9", "byol_ema_0.99", "mae_0.5", "mae_0.9"),
    ),
)
