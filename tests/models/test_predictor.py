# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import Tensor

from recipes_lib.models.predictor import PatchPredictor, fix_positions, sincos_positions
from recipes_lib.models.vit import Shape, VisionTransformer


def predictor() -> PatchPredictor:
    torch.manual_seed(0)
    return PatchPredictor(6, 5, grid=3, width=8, depth=2, heads=2).double()


def draw(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# positions


def test_positions_are_sines_and_cosines_of_column_then_row_at_falling_frequencies():
    table = sincos_positions(3, 8)
    for place in range(9):
        row, column = divmod(place, 3)
        want = [f(k * w) for k in (column, row) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
        assert table[place].tolist() == pytest.approx(want, abs=1e-6)


def test_a_width_that_is_no_multiple_of_4_is_refused():
    with pytest.raises(ValueError, match="width = 6; positions need a multiple of 4"):
        sincos_positions(3, 6)


def test_fixed_positions_are_not_trained_and_leave_the_class_token_and_registers_without_one():
    model = VisionTransformer(Shape(8, 1, 2), image_size=12, patch_size=4, stem="patch", registers=2)
    fix_positions(model)
    assert not model.pos_embed.requires_grad
    assert torch.equal(model.pos_embed[0, 3:], sincos_positions(3, 8))
    assert (model.pos_embed[0, :3] == 0).all()


# the predictor


def test_a_prediction_depends_on_its_place_and_not_on_the_order_of_visible_or_hidden_patches():
    model, seen = predictor(), draw(2, 4, 6)
    places, hidden = torch.tensor([[0, 2, 5, 7]] * 2), torch.tensor([[1, 3, 4]] * 2)
    want = model(seen, places, hidden)
    assert want.shape == (2, 3, 5)
    assert (want[:, 0] - want[:, 1]).abs().max() > 1e-3
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(seen[:, order], places[:, order], hidden), want)
    torch.testing.assert_close(model(seen, places, hidden[:, [2, 0, 1]]), want[:, [2, 0, 1]])
    assert (model(seen, places[:, order], hidden) - want).abs().max() > 1e-3  # patches at other places


def test_first_tokens_without_a_place_are_seen():
    model, seen = predictor(), draw(2, 5, 6)
    places, hidden = torch.tensor([[0, 2, 5, 7]] * 2), torch.tensor([[1, 3]] * 2)
    other = seen.clone()
    other[:, 0] += 1
    assert (model(seen, places, hidden) - model(other, places, hidden)).abs().max() > 1e-3


def test_all_its_weights_are_trained_and_positions_are_no_part_of_its_state():
    model = predictor()
    model(draw(2, 4, 6), torch.arange(4).expand(2, -1), torch.tensor([[5, 8]] * 2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert "positions" not in model.state_dict()
