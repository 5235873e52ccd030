# SPDX-License-Identifier: Apache-2.0
"""What a rank holds and a checkpoint takes; what is sent: ``test_two_ranks``."""

from typing import Any

import pytest
import torch

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.launch import costs, plan
from recipes_lib.optim import build as optim
from recipes_lib.pretraining import engine
from recipes_lib.training import checkpoint


def preset(name: str, which: str, **changes: Any) -> Any:
    return override(
        recipes.named(name).presets[which], {key.replace("__", "."): value for key, value in changes.items()}
    )


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "sgd", "lars", "stable_adamw"])
def test_the_optimisers_state_is_that_of_a_real_one_after_a_step(optimizer):
    config = preset("paws", "toy", optim__name=optimizer)
    method = engine.build(recipes.named("paws"), config, 10)
    real = optim.build(config.optim, method.param_groups())
    for weight in method.parameters():
        weight.grad = torch.ones_like(weight)
    real.step()
    tensors, _ = checkpoint.flatten_optimizer(real, dict(method.named_parameters()))
    state = costs.optimizer_state(config.optim)
    assert state.bytes(costs.optimised(method)) == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize(
    ("sync", "copies"),
    [("ddp", 1 + 1 + 1 + 1), ("fsdp", 3 / 4), ("slowmo", 1 + 1 + 2 + 1)],
    ids=["buckets", "shares of 4", "two copies"],
)
def test_what_a_rank_holds_by_strategy(sync, copies, no_trace):
    """In copies of the trained weights: weights, gradients, the exchange's, the optimiser's."""
    config = preset("local_sgd", "resnet50_imagenet", sync__name=sync)
    memory = plan.plan("local_sgd", config, world=4).memory
    trained = 4 * 25_557_032
    held = sum(memory[name] for name in ("weights", "gradients", "exchange", "optimizer")) / trained
    assert held == pytest.approx(copies, rel=5e-3)


def test_simulated_workers_hold_their_weights_each(no_trace):
    config = preset("local_sgd", "toy")
    found = plan.plan("local_sgd", config, world=1)
    assert found.memory["gradients"] == 4 * 4 * found.trained_parameters
    assert found.memory["weights"] == (4 + 1) * 4 * found.trained_parameters
    assert found.wire_bytes_total == 0


def test_a_simulated_runs_checkpoint_is_the_planned_one(tmp_path):
    config = preset("local_sgd", "toy", train__steps=2, eval__probes=[], eval__baselines="none", data__train_size=128)
    recipes.named("local_sgd").run(config, tmp_path / "run")
    files = (tmp_path / "run" / "checkpoints" / "step-000002").glob("*.safetensors")
    written = sum(t.nbytes for path in files for t in checkpoint.read_weights(path).values())
    assert plan.plan("local_sgd", config, world=1).checkpoint_bytes == written
