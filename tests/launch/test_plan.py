# SPDX-License-Identifier: Apache-2.0
import builtins
import socket
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes_lib import recipes
from recipes_lib.config import override, to_dict
from recipes_lib.data.loader import StepBatches
from recipes_lib.errors import ConfigError
from recipes_lib.launch import plan
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.recipe import Recipe

TRAINED = ("msn", "paws", "pmsn", "local_sgd", "switchback", "clip")


def preset(name: str, which: str, **changes: Any) -> Any:
    return override(
        recipes.named(name).presets[which], {key.replace("__", "."): value for key, value in changes.items()}
    )


@cache
def toy(name: str = "msn") -> plan.Plan:
    return plan.plan(name, preset(name, "toy"), world=1)


@pytest.mark.parametrize(
    ("name", "which", "count"),
    [
        ("clip", "datacomp_small", 151_277_313),
        ("clip", "datacomp_xlarge", 427_616_513),
        ("switchback", "vith14_laion2b", 986_109_441),
    ],
)
def test_parameters_are_those_of_the_published_networks(name, which, count, no_trace):
    found = plan.plan(name, preset(name, which), world=64)
    assert found.parameters == found.trained_parameters == count
    assert sum(part.parameters for part in found.parts.values()) == count
    assert found.memory["weights"] == pytest.approx(4 * count, rel=1e-4)


@pytest.mark.parametrize(("name", "which"), [(name, which) for name in TRAINED for which in recipes.MENU[name].presets])
def test_every_preset_has_a_plan(name, which, no_trace):
    found = plan.plan(name, preset(name, which), world=plan.usual_gpus(name, preset(name, which)), images=100_000)
    assert found.flops_total == found.steps * found.flops_per_step > 0
    assert found.images_seen == found.steps * found.batch_size
    assert found.memory["total"] == sum(found.memory.values()) - found.memory["total"]
    assert found.gpu_hours > 0


def test_figures_that_follow_from_others():
    found = plan.plan("msn", preset("msn", "toy", train__accumulate=2), world=4, gpu="a100", utilisation=0.5)
    assert (found.batch_size, found.micro_batch) == (256, 32)
    assert found.flops_per_image == found.flops_per_step / 256
    assert found.gpu_hours == pytest.approx(found.flops_total / (19.5e12 * 0.5) / 3600)
    assert found.hours == pytest.approx(found.gpu_hours / 4)
    assert found.assumptions["utilisation"] == 0.5
    assert found.wire_bytes_total == 120 * found.wire_bytes_per_step == 120 * 1.5 * 4 * found.trained_parameters


def test_a_steps_operations_are_the_same_however_its_images_are_divided():
    config = preset("local_sgd", "toy", sync__workers=0)
    whole = plan.plan("local_sgd", config, world=1)
    for world, accumulate in ((4, 1), (1, 2), (2, 4)):
        found = plan.plan("local_sgd", override(config, {"train.accumulate": accumulate}), world=world)
        assert found.micro_batch * world * accumulate == 64
        assert found.flops_per_step == whole.flops_per_step > 0


def test_a_teacher_is_weights_and_no_gradient_and_no_state():
    found, config = toy(), preset("msn", "toy")
    method = engine.build(recipes.named("msn"), config, 10)
    assert found.memory["weights"] == sum(t.nbytes for t in [*method.parameters(), *method.buffers()])
    assert found.memory["gradients"] == 4 * found.trained_parameters < 4 * found.parameters
    assert found.parts["target"].trained == 0
    assert found.memory["exchange"] == 0  # one process exchanges nothing


def test_epochs_are_counted_as_the_loader_counts_them(no_trace):
    config = preset("paws", "toy", train__steps=None, train__epochs=2.5)
    steps = StepBatches(range_of(6000), seed=0, batch_size=128).steps_per_epoch
    assert plan.plan("paws", config, world=2, images=6000).steps == round(2.5 * steps)
    assert plan.plan("paws", config, world=2).steps == round(2.5 * (1297 // 128))  # of data.train_size
    full = preset("msn", "vits16_imagenet")
    assert plan.plan("msn", full, world=16).steps == 800 * (1_281_167 // 1024)


def range_of(count: int) -> Any:
    class Images:
        labels = None

        def __len__(self) -> int:
            return count

    return Images()


def test_low_bit_layers_are_counted_as_full_ones_and_their_share_is_told():
    config = preset("switchback", "toy")
    found = plan.plan("switchback", config, world=4)
    full = plan.plan("switchback", preset("switchback", "toy", model__linear="full"), world=4)
    assert found.flops_total == full.flops_total
    assert 0.3 < found.low_bit_share < 1
    assert full.low_bit_share == 0
    assert "switchback: 2 of the 3 products" in found.assumptions["low_bit"]


def test_nothing_is_read_written_sent_or_changed(monkeypatch, tmp_path):
    config = preset("pmsn", "toy")
    before, state = to_dict(config), torch.get_rng_state()
    toy()  # whatever torch reads at its first use is read

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a plan touched the outside")

    monkeypatch.chdir(tmp_path)
    for owner, name in (
        (builtins, "open"),
        (Path, "open"),
        (socket, "socket"),
        (torch.distributed, "init_process_group"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(engine, "load_data", refuse)
    plan.plan("pmsn", config, world=2)
    assert list(tmp_path.iterdir()) == []
    assert to_dict(config) == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "which", "changes", "how", "line"),
    [
        ("what_is_ssl", "toy", {}, {}, "Recipe what_is_ssl trains no backbone, so there is no training to plan."),
        ("evaluation", "toy", {}, {}, "Recipe evaluation trains no backbone, so there is no training to plan."),
        ("knobs", "toy", {}, {}, "Recipe knobs trains no backbone, so there is no training to plan."),
        (
            "troubleshooting",
            "toy",
            {},
            {},
            "Recipe troubleshooting trains no backbone, so there is no training to plan.",
        ),
        ("sieve", "toy", {}, {}, "Recipe sieve trains no backbone, so there is no training to plan."),
        ("imagenet_x", "toy", {}, {}, "Recipe imagenet_x trains no backbone, so there is no training to plan."),
        (
            "msn",
            "toy",
            {},
            {"gpu": "h10"},
            "There is no GPU 'h10' in the table. Did you mean 'h100'? There are: h200, ",
        ),
        (
            "msn",
            "toy",
            {},
            {"world": 3},
            "train.batch_size = 256 does not divide among 3 GPUs x 1 micro-batches. Use a multiple of 3.",
        ),
        ("msn", "toy", {}, {"world": 0}, "world = 0 is not allowed: use a value of at least 1."),
        ("msn", "toy", {}, {"utilisation": 1.5}, "utilisation = 1.5 is not allowed: use a value in (0, 1]."),
        ("msn", "toy", {}, {"images": 0}, "images = 0 is not allowed: use a value of at least 1."),
        ("msn", "toy", {"loss__temperature": 0.0}, {}, "loss.temperature = 0.0 is not allowed"),
        (
            "clip",
            "datacomp_small",
            {},
            {"gpu": "v100"},
            "train.precision = bf16 is not for V100 SXM 32 GB: it has no bfloat16.",
        ),
        (
            "local_sgd",
            "toy",
            {},
            {"world": 2},
            "sync.workers = 4 simulates workers in one process, and this plan has 2.",
        ),
        (
            "clip",
            "toy",
            {"sync__name": "fsdp", "optim__name": "lars"},
            {},
            "sync.name fsdp cuts each weight into shares, and",
        ),
        (
            "pmsn",
            "vits16_places365_lt",
            {},
            {},
            "How many training images data.name places365 with data.tail has is not known",
        ),
        (
            "clip",
            "datacomp_small",
            {"train__steps": None, "train__epochs": 2.0},
            {},
            "How many training images data.name shards has",
        ),
        ("msn", "vits16_imagenet", {}, {"images": 1000}, "There are 1,000 training images, fewer than one batch"),
        (
            "paws",
            "rn50_imagenet_1pct",
            {"data__support_images": 1},
            {"world": 128},
            "A support of 960 classes x 1 images does not",
        ),
        (
            "paws",
            "toy",
            {"data__name": "npz"},
            {},
            "data.support_classes = None takes all classes, and how many data.name npz has",
        ),
    ],
)
def test_a_mistake_is_one_line(name, which, changes, how, line, no_trace):
    config = preset(name, which, **changes) if isinstance(recipes.named(name), Recipe) else None
    with pytest.raises(ConfigError) as error:
        plan.plan(name, config, **{"world": 8, **how})
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_a_plan_as_json_has_plain_values_alone():
    def leaves(value: Any) -> list[Any]:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
        return [value] if parts is None else [leaf for part in parts for leaf in leaves(part)]

    assert {type(leaf) for leaf in leaves(toy().as_dict())} <= {int, float, str, type(None)}
