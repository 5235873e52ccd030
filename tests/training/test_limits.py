# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.errors import ConfigError
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.recipe import Recipe
from recipes_lib.training.limits import refuse_too_large

TRAINED = [name for name in recipes.MENU if isinstance(recipes.named(name), Recipe)]
CPU = torch.device("cpu")


def check(name: str, preset: str = "toy", world_size: int = 1, **changes) -> None:
    module = recipes.named(name)
    config = override(module.presets[preset], {key.replace("__", "."): value for key, value in changes.items()})
    refuse_too_large(config, lambda: engine.build(module, config, steps=1), world_size=world_size, device=CPU)


@pytest.mark.parametrize("name", TRAINED)
def test_a_toy_run_fits(name):
    check(name)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"data__train_size": 10**9},
            r"at least 3,07\d GB for the images to draw; .* Make data\.train_size, data\.test_size",
        ),
        ({"data__image_size": 10**6}, "GB for the images to draw"),
        ({"views__image_size": 10**6}, "GB for the views of one step; .* Make train.batch_size, views.image_size"),
        ({"views__local_views": 10**8}, "GB for the views of one step"),
        ({"model__hidden": 10**9}, "for the weights and their gradients"),
        ({"model__prototypes": 2**31 - 1}, "GB for the weights"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_it_needs(changes, line):
    with pytest.raises(ConfigError, match=line):
        check("msn", **changes)


def test_the_limit_can_be_lowered_and_lifted():
    with pytest.raises(ConfigError, match=r"1 GB are allowed\. .* or lift the limit: --train\.memory-limit 4"):
        check("msn", train__memory_limit=1.0, data__train_size=1_000_000)
    check("msn", train__memory_limit=4.0, data__train_size=1_000_000)


def test_what_is_trained_counts_twice_and_what_follows_it_once_and_fsdp_shares_both():
    network = engine.build(recipes.named("msn"), recipes.named("msn").presets["toy"], steps=1)
    trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    every = sum(weight.numel() for weight in network.parameters())
    least = 4 * (trained + every) / 1e9
    few = {"data__train_size": 1, "data__test_size": 1, "train__batch_size": 2}
    with pytest.raises(ConfigError, match="for the weights and their gradients"):
        check("msn", train__memory_limit=0.99 * least, **few)
    check("msn", train__memory_limit=1.01 * least, **few)
    check("msn", train__memory_limit=0.51 * least, world_size=2, sync__name="fsdp", **few)


def test_no_generator_moves():
    before = torch.random.get_rng_state()
    check("msn")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["data.image_size", "train.steps", "views.global_views", "train.batch_size"])
def test_integers_that_no_count_reaches_are_a_fault_of_the_config(name):
    config = override(recipes.named("msn").presets["toy"], {name: 10**30})
    with pytest.raises(ConfigError, match=rf"{name} = 10+ is not allowed: use a value .*, at most 2,147,483,647"):
        config.validate()
