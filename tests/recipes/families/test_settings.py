# SPDX-License-Identifier: Apache-2.0
"""What the config of the families refuses, with a line for each fault, and which method reads which field."""

from dataclasses import fields, replace
from typing import get_args

import pytest

from recipes_lib.config import override
from recipes_lib.errors import ConfigError
from recipes_lib.recipes.families import settings
from recipes_lib.recipes.families.ladder import CONVNET, ONE_VIEW, VIEWS, VIT, small
from recipes_lib.recipes.families.settings import READ_BY, Config, LossConfig, Objective

SMALL = small(LossConfig(), views=VIEWS, model=CONVNET)["simclr_toy"]
ONE = {"views.global_views": 0}
PATCHES = {"model.arch": "vit_pico", "model.stem": "patch", "model.patch_size": 8}
MAE = {**ONE, **PATCHES, "model.hidden": 2048, "model.dim": 128, "views.mask_ratio": 0.75}


def faults(objective: str, **changes: object) -> list[str]:
    """The lines that the config of ``objective`` with these changes is refused with."""
    config = override(SMALL, {"loss.objective": objective, **{k.replace("__", "."): v for k, v in changes.items()}})
    try:
        config.validate()
    except ConfigError as error:
        return str(error).splitlines()
    return []


def fault(objective: str, changes: dict[str, object]) -> str:
    """The only such line."""
    (line,) = faults(objective, **changes)
    return line


def test_the_smallest_preset_and_the_defaults_have_no_fault():
    assert faults("simclr") == []
    override(Config(), {"data.root": "images"}).validate()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"loss.temperature": 0.0}, "loss.temperature = 0.0 is not allowed: use a value above 0"),
        ({"views.second_blur": 2.0}, "views.second_blur = 2.0 is not allowed: use a value in [0, 1], or None"),
        (
            {"views.second_solarize": -1.0},
            "views.second_solarize = -1.0 is not allowed: use a value in [0, 1], or None",
        ),
        ({"model.projector_layers": -1}, "model.projector_layers = -1 is not allowed: use a value of at least 0"),
        ({"model.hidden": 1}, "model.hidden = 1 is not allowed: use a value of at least 2"),
        ({"model.dim": 1}, "model.dim = 1 is not allowed: use a value of at least 2"),
        ({"model.freeze_patch": True}, "model.freeze_patch = True is not allowed: use a value of False with convnet"),
        (
            {"views.global_views": 2},
            "views.global_views = 2 is not allowed: use a value of 1. simclr compares two views",
        ),
        (ONE, "views.global_views = 0 is not allowed: use a value of 1. simclr compares two views."),
    ],
)
def test_a_value_that_no_run_can_use_is_refused_in_one_line(changes, line):
    config = override(SMALL, changes)
    with pytest.raises(ConfigError) as refused:
        config.validate()
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("objective", "changes", "line"),
    [
        ("nnclr", {}, "loss.queue = 0 is not allowed: use a value above 0: nnclr compares with earlier images."),
        ("moco_v2", {}, "loss.queue = 0 is not allowed: use a value above 0: moco_v2 compares with earlier images."),
        (
            "moco_v2",
            {"loss.queue": 200},
            "loss.queue = 200 is not allowed: use a value that is a multiple of a micro-batch of 128 images.",
        ),
        (
            "moco_v2",
            {"loss.queue": 96, "train.accumulate": 2},
            "loss.queue = 96 is not allowed: use a value that is a multiple of a micro-batch of 64 images.",
        ),
        ("moco_v3", {"model.ema": 1.5}, "model.ema = 1.5 is not allowed: use a value in [0, 1]."),
        ("moco_v3", {"model.ema_final": -0.1}, "model.ema_final = -0.1 is not allowed: use a value in [0, 1]."),
        (
            "byol",
            {"model.predictor_layers": -1},
            "model.predictor_layers = -1 is not allowed: use a value of at least 0.",
        ),
        (
            "byol",
            {"model.predictor_hidden": 1},
            "model.predictor_hidden = 1 is not allowed: use a value of at least 2.",
        ),
        ("dino", ONE, "views.global_views = 0 is not allowed: use a value of at least 1. dino compares views."),
        (
            "dino",
            {"views.local_blur": 1.5, "views.local_views": 1, "views.local_size": 16},
            "views.local_blur = 1.5 is not allowed: use a value in [0, 1], or None.",
        ),
        ("dino", {"model.prototypes": 1}, "model.prototypes = 1 is not allowed: use a value of at least 2."),
        (
            "dino",
            {"loss.teacher_temperature": 0.0},
            "loss.teacher_temperature = 0.0 is not allowed: use a value above 0.",
        ),
        (
            "dino",
            {"loss.teacher_temperature_start": 0.0},
            "loss.teacher_temperature_start = 0.0 is not allowed: use a value above 0.",
        ),
        ("dino", {"loss.teacher_warmup": 2.0}, "loss.teacher_warmup = 2.0 is not allowed: use a value in [0, 1]."),
        ("dino", {"loss.centre_momentum": 2.0}, "loss.centre_momentum = 2.0 is not allowed: use a value in [0, 1]."),
        ("dino", {"loss.koleo_weight": -1.0}, "loss.koleo_weight = -1.0 is not allowed: use a value of at least 0."),
        (
            "dino",
            {"loss.freeze_prototypes": 1.0},
            "loss.freeze_prototypes = 1.0 is not allowed: use a value in [0, 1).",
        ),
        ("swav", {"loss.queue_start": 1.0}, "loss.queue_start = 1.0 is not allowed: use a value in [0, 1)."),
        (
            "swav",
            {"loss.epsilon": 0.01},
            "loss.epsilon = 0.01 is not allowed: use a value of at least 0.025. The paper uses 0.05.",
        ),
        (
            "swav",
            {"loss.sinkhorn_iterations": -1},
            "loss.sinkhorn_iterations = -1 is not allowed: use a value of at least 0.",
        ),
        (
            "barlow_twins",
            {"loss.redundancy_weight": -1.0},
            "loss.redundancy_weight = -1.0 is not allowed: use a value of at least 0.",
        ),
        (
            "vicreg",
            {"loss.invariance_weight": -1.0},
            "loss.invariance_weight = -1.0 is not allowed: use a value of at least 0.",
        ),
        (
            "vicreg",
            {"loss.variance_weight": -1.0},
            "loss.variance_weight = -1.0 is not allowed: use a value of at least 0.",
        ),
        (
            "vicreg",
            {"loss.covariance_weight": -1.0},
            "loss.covariance_weight = -1.0 is not allowed: use a value of at least 0.",
        ),
        ("w_mse", {"loss.whitening_size": 1}, "loss.whitening_size = 1 is not allowed: use a value of at least 2."),
        (
            "w_mse",
            {"loss.whitening_size": 96},
            "loss.whitening_size = 96 is not allowed: use a value that divides a micro-batch of 128 images.",
        ),
        (
            "w_mse",
            {"loss.whitening_size": 64},
            "loss.whitening_size = 64 is not allowed: use a value above model.dim = 64. With fewer images than",
        ),
        ("mae", {**MAE, "views.global_views": 1}, "views.global_views = 1 is not allowed: use a value of 0. mae sees"),
        ("mae", {**MAE, "views.mask_ratio": 0.0}, "views.mask_ratio = 0.0 is not allowed: use a value above 0. With 0"),
        (
            "mae",
            {**MAE, "model.stem": "conv"},
            "model.arch and model.stem = vit_pico, conv is not allowed: use a value of a vit with stem patch: "
            "loss.objective mae hides patches.",
        ),
        (
            "dino",
            {"loss.patch_weight": 1.0, "views.mask_ratio": 0.3},
            "model.arch and model.stem = convnet, imagenet is not allowed: use a value of a vit with stem patch: "
            "loss.patch_weight above 0 hides patches.",
        ),
        (
            "mae",
            {**MAE, "model.decoder_depth": 0},
            "model.decoder_depth = 0 is not allowed: use a value of at least 1.",
        ),
        (
            "mae",
            {**MAE, "model.decoder_heads": 0},
            "model.decoder_heads = 0 is not allowed: use a value of at least 1.",
        ),
        (
            "mae",
            {**MAE, "model.decoder_width": 60},
            "model.decoder_width = 60 is not allowed: use a value that is a multiple of 4 and of model.decoder_heads = 16.",
        ),
        ("mae", {**MAE, "views.mask_ratio": 1.0}, "views.mask_ratio = 1.0 is not allowed: use a value in [0, 1)."),
        ("simmim", {**MAE, "views.mask_unit": 0}, "views.mask_unit = 0 is not allowed: use a value of at least 1."),
        ("beit", {**MAE, "loss.codes": 1}, "loss.codes = 1 is not allowed: use a value of at least 2."),
        ("lejepa", {"loss.sigreg_weight": 2.0}, "loss.sigreg_weight = 2.0 is not allowed: use a value in [0, 1]."),
        ("lejepa", {"loss.slices": 0}, "loss.slices = 0 is not allowed: use a value of at least 1."),
        ("lejepa", {"loss.knots": 4}, "loss.knots = 4 is not allowed: use a value that is odd and at least 3."),
    ],
)
def test_a_value_that_does_not_fit_the_method_is_refused_in_one_line(objective, changes, line):
    assert fault(objective, changes).startswith(line)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"views.target_blocks": 0}, "views.target_blocks = 0 is not allowed: use a value of at least 1."),
        (
            {"views.target_scale": [0.3, 0.2]},
            "views.target_scale = (0.3, 0.2) is not allowed: use a value pair with 0 < first <= second <= 1.",
        ),
        (
            {"views.context_scale": [0.5, 1.5]},
            "views.context_scale = (0.5, 1.5) is not allowed: use a value pair with 0 < first <= second <= 1.",
        ),
        (
            {"views.target_aspect": [0.0, 1.0]},
            "views.target_aspect = (0.0, 1.0) is not allowed: use a value pair with 0 < first <= second.",
        ),
    ],
)
def test_blocks_that_cannot_be_drawn_are_refused_in_one_line(changes, line):
    assert line in faults("ijepa", **{**MAE, "views.mask_ratio": 0.0, **changes})


def test_a_layer_scale_that_makes_all_features_equal_is_refused():
    assert any(
        "model.layer_scale = True" in line for line in faults("simclr", **PATCHES, **{"model.layer_scale": True})
    )


def test_a_micro_batch_of_no_image_is_a_fault_of_the_batch_and_no_crash():
    (line,) = faults("moco_v2", **{"loss.queue": 128, "train.batch_size": 2, "train.accumulate": 4})
    assert line.startswith("train.accumulate = 4 is not allowed")
    lines = faults("w_mse", **{"loss.whitening_size": 0, "model.dim": 32})
    assert lines == ["loss.whitening_size = 0 is not allowed: use a value of at least 2."]


def test_an_unknown_method_is_refused_with_the_names_of_all():
    config = replace(SMALL, loss=LossConfig(objective="simclr2"))
    with pytest.raises(
        ConfigError, match=r"^loss.objective = simclr2 is not allowed: use a value one of simclr, dcl, .*"
    ):
        config.validate()


def test_all_faults_are_told_at_once():
    assert len(faults("simclr", **{"loss.temperature": 0.0, "model.hidden": 0, "optim.lr": -1.0})) >= 3


def test_a_field_that_the_method_does_not_read_is_refused_with_the_methods_that_do():
    assert fault("simclr", {"loss.queue": 128}) == (
        "loss.queue = 128 has no use with loss.objective simclr: leave it at 0, or choose nnclr, moco_v2 or swav."
    )
    assert fault("dcl", {"loss.negatives": False}) == (
        "loss.negatives = False has no use with loss.objective dcl: leave it at True, or choose simclr."
    )


@pytest.mark.parametrize("path", READ_BY)
def test_every_path_of_the_readers_is_a_field_of_the_config_and_names_methods(path):
    group, name = path.split(".")
    assert name in [each.name for each in fields(getattr(Config(), group))]
    assert set(READ_BY[path]) <= set(get_args(Objective))


@pytest.mark.parametrize("path", READ_BY)
def test_every_such_field_is_refused_by_every_method_that_does_not_read_it(path):
    group, name = path.split(".")
    value = getattr(getattr(Config(), group), name)
    match value:
        case bool():
            other: object = not value
        case str():
            other = "none"
        case tuple():
            other = (value[0] / 2, value[1])
        case _:
            other = value + 1 if isinstance(value, int) else 0.5 * (value or 1.0)
    for objective in sorted(set(get_args(Objective)) - set(READ_BY[path])):
        lines = faults(objective, **{path: other})
        assert any(
            line.startswith(f"{path} = ") and f"no use with loss.objective {objective}" in line for line in lines
        )


def test_every_field_of_the_loss_has_its_readers():
    """All methods read the objective alone."""
    assert {f"loss.{each.name}" for each in fields(LossConfig)} - set(READ_BY) == {"loss.objective"}


def test_the_groups_of_methods_name_each_method_at_most_once_in_the_kinds_of_views():
    assert not set(settings.TWO_VIEWS) & set(settings.ONE_VIEW)
    for group in (settings.TWO_VIEWS, settings.ONE_VIEW, settings.WITH_TEACHER, settings.MASKED):
        assert set(group) <= set(get_args(Objective))
    assert set(settings.MASKED) < set(settings.ONE_VIEW)


def test_the_small_views_and_networks_are_valid_too():
    for views, model, objective in ((VIEWS, VIT, "simclr"), (ONE_VIEW, VIT, "rotation")):
        plain = {"model.hidden": 2048, "model.dim": 128} if objective == "rotation" else {}
        config = small(LossConfig(objective=objective), views=views, model=model)[f"{objective}_toy"]
        override(config, plain).validate()
