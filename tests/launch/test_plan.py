# SPDX-License-Identifier: Apache-2.0
import builtins
import socket
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes_lib import recipes
from recipes_lib.config import override, to_dict
from recipes_lib.data.loader import StepBatches
from recipes_lib.errors import ConfigError
from recipes_lib.launch import data_sizes, plan, trace
from recipes_lib.launch.hardware import GPUS
from recipes_lib.recipes import pretraining
from recipes_lib.training import checkpoint

TRAINED = ("msn", "paws", "pmsn", "local_sgd", "switchback", "clip")
PAPER_RUNS = ("vits16_imagenet", "vits16_inat18", "wrn28_2_cifar10", "rn50_imagenet_10pct", "resnet50_imagenet_slowmo")


def preset(name: str, which: str, **changes: Any) -> Any:
    return override(
        recipes.module(name).PRESETS[which], {key.replace("__", "."): value for key, value in changes.items()}
    )


@cache
def toy(name: str = "msn") -> plan.Plan:
    return plan.plan(name, preset(name, "toy"), world=1)


@pytest.fixture
def no_trace(monkeypatch) -> None:
    """Where only what follows from the config is looked at."""
    monkeypatch.setattr(trace, "measure", lambda *_, **__: trace.Trace(flops=10**12, activations=10**9, inputs=10**6))
    monkeypatch.setattr(plan.costs, "_shared", lambda *_: 0.0)


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
    found = plan.plan(name, preset(name, which), world=plan.usual_gpus(preset(name, which)), images=100_000)
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


def test_a_teacher_is_weights_and_no_gradient_and_no_state():
    found, config = toy(), preset("msn", "toy")
    method = pretraining.build(recipes.module("msn"), config, 10)
    assert found.memory["weights"] == sum(t.nbytes for t in [*method.parameters(), *method.buffers()])
    assert found.memory["gradients"] == 4 * found.trained_parameters < 4 * found.parameters
    assert found.parts["target"].trained == 0
    assert found.memory["exchange"] == 0  # one process exchanges nothing


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars", "stable_adamw"])
def test_the_optimisers_state_is_that_of_a_real_one_after_a_step(optimizer):
    config = preset("paws", "toy", optim__name=optimizer)
    method = pretraining.build(recipes.module("paws"), config, 10)
    real = plan.costs.optim.build(config.optim, method.param_groups())
    for weight in method.parameters():
        weight.grad = torch.ones_like(weight)
    real.step()
    tensors, _ = checkpoint.flatten_optimizer(real, dict(method.named_parameters()))
    state = plan.costs.optimizer_state(config.optim)
    assert state.bytes(plan.costs.optimised(method)) == sum(tensor.nbytes for tensor in tensors.values())


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


@pytest.mark.parametrize(
    ("sync", "share"), [("ddp", 3.0), ("fsdp", 2.5), ("slowmo", 4.0)], ids=["buckets", "shares", "two copies"]
)
def test_what_a_rank_holds_by_strategy(sync, share, no_trace):
    """In copies of the trained weights, beside the optimiser's: weights, gradients, exchange."""
    config = preset("local_sgd", "resnet50_imagenet", sync__name=sync)
    memory = plan.plan("local_sgd", config, world=4).memory
    trained = 4 * 25_557_032
    held = sum(memory[name] for name in ("weights", "gradients", "exchange", "optimizer")) / trained
    expected = {"ddp": 1 + 1 + 1 + 1, "fsdp": 3 / 4, "slowmo": 1 + 1 + 2 + 1}[sync]
    assert held == pytest.approx(expected, rel=5e-3)


def test_simulated_workers_hold_their_weights_each(no_trace):
    config = preset("local_sgd", "toy")
    found = plan.plan("local_sgd", config, world=1)
    assert found.memory["gradients"] == 4 * 4 * found.trained_parameters
    assert found.memory["weights"] == (4 + 1) * 4 * found.trained_parameters
    assert found.wire_bytes_total == 0


def test_a_simulated_runs_checkpoint_is_the_planned_one(tmp_path):
    config = preset("local_sgd", "toy", train__steps=2, eval__probes=[], eval__baselines="none", data__train_size=128)
    recipes.module("local_sgd").run(config, tmp_path / "run")
    files = (tmp_path / "run" / "checkpoints" / "step-000002").glob("*.safetensors")
    written = sum(t.nbytes for path in files for t in checkpoint.read_weights(path).values())
    assert plan.plan("local_sgd", config, world=1).checkpoint_bytes == written


def test_low_bit_layers_are_counted_as_full_ones_and_their_share_is_told():
    config = preset("switchback", "toy")
    found = plan.plan("switchback", config, world=4)
    full = plan.plan("switchback", preset("switchback", "toy", model__linear="full"), world=4)
    assert found.flops_total == full.flops_total
    assert 0.3 < found.low_bit_share < 1
    assert full.low_bit_share == 0
    assert "switchback: 2 of the 3 products" in found.assumptions["low_bit"]


def test_too_little_memory_is_a_warning_with_ways_out(monkeypatch):
    monkeypatch.setattr(trace, "measure", lambda *_, **__: trace.Trace(flops=10**12, activations=10**12))
    (line,) = plan.plan("clip", preset("clip", "datacomp_large"), world=8).warnings
    assert line.startswith("A GPU needs 1,003.0 GB")
    assert "H100 SXM has 80.0 GB" in line
    assert "13.0 times as many GPUs, or --train.accumulate with as many" in line
    assert "--sync.name fsdp (weights" in line
    config = preset("clip", "datacomp_large", optim__name="stable_adamw")
    assert "--sync.name fsdp --optim.name adamw" in plan.plan("clip", config, world=8).warnings[0]


def test_a_config_that_runs_on_a_cpu_is_a_warning(no_trace):
    assert plan.plan("msn", preset("msn", "toy"), world=1).warnings[0].startswith("train.device is cpu")


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
    monkeypatch.setattr(pretraining, "load", refuse)
    plan.plan("pmsn", config, world=2)
    assert list(tmp_path.iterdir()) == []
    assert to_dict(config) == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "which", "changes", "how", "line"),
    [
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
    config = preset(name, which, **changes) if hasattr(recipes.module(name), "Method") else None
    with pytest.raises(ConfigError) as error:
        plan.plan(name, config, **{"world": 8, **how})
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_a_plan_as_json_has_plain_values_alone():
    def leaves(value: Any) -> list[Any]:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
        return [value] if parts is None else [leaf for part in parts for leaf in leaves(part)]

    assert {type(leaf) for leaf in leaves(toy().as_dict())} <= {int, float, str, type(None)}


def test_every_gpu_of_the_table_plans():
    for name, gpu in GPUS.items():
        assert gpu.rate("fp32") > 0
        assert replace(toy(), gpu=name).gpu == name


def test_sizes_of_what_is_drawn_are_the_configs():
    config = preset("msn", "toy")
    assert data_sizes.images(config.data, None, "") == 3000
    assert data_sizes.classes(config.data) == 12
    assert data_sizes.images(config.data, 7, "") == 7
