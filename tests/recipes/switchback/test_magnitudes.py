# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import nn

from recipes_lib.models import vit
from recipes_lib.recipes.switchback.magnitudes import magnitudes, named, recorded


class Times(nn.Module):
    """x times a learned number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Tower(nn.Module):
    """Blocks, each of which has a block inside, as deep as a text tower's."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.stem = nn.Identity()
        self.blocks = nn.ModuleList(nn.Sequential(Times(factor)) for factor in factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


def test_magnitudes_are_means_of_absolute_outputs_by_depth():
    tower = Tower(2.0, -3.0, 0.5)
    found = magnitudes(named(tower, "blocks.*"), lambda: tower(torch.tensor([[1.0, -2.0], [0.0, 1.0]])))
    assert found == {"blocks.0": 2.0, "blocks.1": 6.0, "blocks.2": 3.0}  # mean |x| is 1
    assert list(found) == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_pattern_names_blocks_and_not_what_is_inside_them():
    tower = nn.ModuleDict({"transformer": Tower(1.0, 1.0)})
    assert list(named(tower, "*.blocks.*")) == ["transformer.blocks.0", "transformer.blocks.1"]
    assert list(named(tower, "transformer.blocks.1.*")) == ["transformer.blocks.1.0"]
    assert named(tower, "transformer.stem")["transformer.stem"] is tower["transformer"].stem


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(ValueError, match=r"no module's name fits 'layers\.\*'; Tower has the children: stem, blocks\."):
        named(Tower(1.0), "layers.*")


def test_the_blocks_of_our_vision_transformer_are_found_but_for_the_last_which_is_not_called():
    model = vit.build(vit.ViTConfig(arch="vit_nano", patch_size=8), image_size=16)
    blocks = named(model, "blocks.*")
    assert list(blocks) == ["blocks.0", "blocks.1", "blocks.2"]
    found = magnitudes(blocks, lambda: model(torch.ones(2, 3, 16, 16)))
    assert list(found) == ["blocks.0", "blocks.1"]
    assert all(math.isfinite(value) and value > 0 for value in found.values())


def test_a_training_step_is_recorded_without_touching_its_gradient():
    tower, bare = Tower(2.0, -3.0), Tower(2.0, -3.0)
    x = torch.tensor([1.0, -2.0])
    with recorded(named(tower, "blocks.*")) as seen:
        tower(x).sum().backward()
        assert {name: (value.item(), value.requires_grad) for name, value in seen.items()} == {
            "blocks.0": (3.0, False),
            "blocks.1": (9.0, False),
        }
        tower(2 * x)
        assert seen["blocks.0"].item() == 6.0  # the last call
    bare(x).sum().backward()
    for ours, theirs in zip(tower.parameters(), bare.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_hooks_are_gone_afterwards_even_where_the_run_fails():
    tower = Tower(1.0)

    def fail() -> None:
        tower(torch.ones(1))
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        magnitudes(named(tower, "blocks.*"), fail)
    assert not tower.blocks[0]._forward_hooks


def test_half_precision_outputs_are_averaged_in_float32():
    tower = Tower(1.0).to(torch.float16)
    x = torch.full((70_000,), 60_000.0, dtype=torch.float16)  # whose sum float16 cannot hold
    assert magnitudes(named(tower, "blocks.*"), lambda: tower(x))["blocks.0"] == pytest.approx(60_000, rel=1e-6)


def test_values_that_are_not_finite_are_shown():
    tower = Tower(float("inf"))
    assert magnitudes(named(tower, "blocks.*"), lambda: tower(torch.ones(2))) == {"blocks.0": float("inf")}


def test_modules_that_are_not_called_or_give_no_tensor_are_refused():
    tower = Tower(1.0)
    with pytest.raises(ValueError, match="none of blocks was called"):
        magnitudes({"blocks": tower.blocks}, lambda: tower(torch.ones(1)))
    attention = nn.MultiheadAttention(4, 2)
    x = torch.ones(3, 4)
    with pytest.raises(ValueError, match="attn returns tuple"):
        magnitudes({"attn": attention}, lambda: attention(x, x, x))
