# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.models.gpsa import (
    GPSA,
    attend_along_axes,
    axis_attention,
    grid_positions,
    local_position_weights,
    position_attention,
    relative_codes,
)


def sines(*shape: int, start: float) -> Tensor:
    """sin(start + n) at place n, row by row."""
    return torch.sin(start + torch.arange(math.prod(shape), dtype=torch.float64)).view(shape)


def codes_of(height: int, width: int) -> Tensor:
    positions = grid_positions(height, width).double()
    return relative_codes(positions, positions)


def layer(width: int = 36, heads: int = 9, seed: int = 0, **options: object) -> GPSA:
    """A layer in float64 whose weights are all large."""
    torch.manual_seed(seed)
    made = GPSA(width, heads, **options).double()
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.5)
    return made


def patches(count: int = 12, width: int = 36, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# relative codes


def test_g2_codes_are_dx_dy_and_the_squared_distance():
    assert codes_of(2, 2)[0].tolist() == [[0, 0, 0], [1, 0, 1], [0, 1, 1], [1, 1, 2]]


def test_positions_of_a_grid_are_column_and_row_in_the_order_of_rows():
    assert grid_positions(2, 3).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


def test_padded_keys_and_strided_queries_have_the_codes_of_a_convolution():
    codes = relative_codes(grid_positions(2, 2, step=2), grid_positions(6, 6, start=-1))  # 4x4 pixels, stride 2
    windows = F.unfold(F.pad(torch.arange(16.0).view(1, 1, 4, 4), (1, 1, 1, 1), value=-1), 3, stride=2)[0].T  # [4, 9]
    keys = F.pad(torch.arange(16.0).view(4, 4), (1, 1, 1, 1), value=-1).flatten()
    for query in range(4):
        near = (codes[query, :, 0].abs() <= 1) & (codes[query, :, 1].abs() <= 1)
        assert keys[near].tolist() == windows[query].tolist()


# local start


@pytest.mark.parametrize(
    ("heads", "rows"),
    [
        (4, {0: [-1, -1, -1], 1: [-1, 1, -1], 2: [1, -1, -1], 3: [1, 1, -1]}),
        (9, {0: [-2, -2, -1], 1: [-2, 0, -1], 3: [0, -2, -1], 4: [0, 0, -1], 8: [2, 2, -1]}),
        (16, {0: [-3, -3, -1], 5: [-1, -1, -1]}),
    ],
)
def test_g1_local_position_weights(heads, rows):
    made = local_position_weights(heads, 1.0)
    assert made.shape == (heads, 3)
    assert {row: made[row].tolist() for row in rows} == rows
    torch.testing.assert_close(local_position_weights(heads, 2.5), 2.5 * made)


G3 = [
    0.044919224,
    0.122103110,
    0.044919224,
    0.122103110,
    0.331910665,
    0.122103110,
    0.044919224,
    0.122103110,
    0.044919224,
]


def local_map(heads: int, side: int = 3, strength: float = 1.0) -> Tensor:
    return position_attention(local_position_weights(heads, strength).double(), codes_of(side, side))


def test_g3_the_middle_head_is_a_gaussian_around_the_query():
    attention = local_map(9)
    want = torch.tensor(G3, dtype=torch.float64)
    torch.testing.assert_close(attention[4, 4], want, rtol=0, atol=1e-9)
    torch.testing.assert_close(attention[8, 0], want, rtol=0, atol=1e-9)  # the last head's centre is token 4 as well


def test_g4_a_head_that_looks_outside_attends_to_the_nearest_token():
    want = [0.906817822, 0.045147801, 0.000304203, 0.045147801, 0.002247777, 0.000015145, 0.000304203, 0.000015145]
    want = torch.tensor([*want, 0.000000102], dtype=torch.float64)
    torch.testing.assert_close(local_map(9)[0, 0], want, rtol=0, atol=1e-9)


def test_g5_four_heads_attend_between_tokens():
    near, far, last = 0.219314753, 0.029681024, 0.004016890
    want = torch.tensor([near, near, far, near, near, far, far, far, last], dtype=torch.float64)
    torch.testing.assert_close(local_map(4)[0, 4], want, rtol=0, atol=1e-9)


def test_a_strong_locality_attends_to_one_token_without_overflow():
    attention = position_attention(local_position_weights(9, 1e4), codes_of(14, 14).float())
    assert attention.isfinite().all()
    middle = 7 * 14 + 7
    assert attention[:, middle].argmax(dim=-1).tolist() == [
        middle + dy * 14 + dx for dx in (-1, 0, 1) for dy in (-1, 0, 1)
    ]
    torch.testing.assert_close(attention.amax(dim=-1)[:, middle], torch.ones(9))


def test_position_attention_is_not_rounded_to_half_precision():
    v_pos, codes = local_position_weights(9, 1.0), codes_of(14, 14).float()
    want = position_attention(v_pos, codes)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(position_attention(v_pos, codes), want, rtol=0, atol=0)
    half = position_attention(v_pos.bfloat16(), codes.bfloat16())  # these numbers are exact in bfloat16
    torch.testing.assert_close(half, want, rtol=0, atol=0)


def test_transposing_the_grid_is_exchanging_the_columns_of_v_pos():
    v_pos = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tall, wide = codes_of(4, 3), codes_of(3, 4)
    order = torch.arange(12).view(4, 3).T.flatten()  # token of the tall grid at each token of the wide one
    turned = position_attention(v_pos, tall)[:, order][:, :, order]
    torch.testing.assert_close(position_attention(v_pos[:, [1, 0, 2]], wide), turned)


@pytest.mark.parametrize("heads", [0, 2, 3, 8, 12])
def test_heads_that_are_no_square_are_refused_with_the_nearest_squares(heads):
    side = math.isqrt(heads)
    with pytest.raises(ValueError, match=f"{heads} heads .* use .*{(side + 1) ** 2} heads"):
        local_position_weights(heads, 1.0)


@pytest.mark.parametrize("strength", [0.0, -1.0, math.nan])
def test_a_locality_that_is_not_positive_is_refused(strength):
    with pytest.raises(ValueError, match=f"strength = {strength} is not above 0"):
        local_position_weights(4, strength)


# one axis at a time


@pytest.mark.parametrize("pad", [0, 1])
def test_attention_to_a_grid_is_the_product_of_attention_to_rows_and_to_columns(pad):
    v_pos = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert v_pos[:, 2].max() > 0  # one head avoids its neighbours
    n, p, m, q = 2, 3, 4 + 2 * pad, 6 + 2 * pad  # every second cell of a 4x6 map asks, with a border of ``pad``
    codes = relative_codes(grid_positions(n, p, step=2), grid_positions(m, q, start=-pad))
    rows = axis_attention(v_pos[:, 1], v_pos[:, 2], 2 * torch.arange(n), torch.arange(m) - pad)
    columns = axis_attention(v_pos[:, 0], v_pos[:, 2], 2 * torch.arange(p), torch.arange(q) - pad)
    whole = position_attention(v_pos, codes)
    product = torch.einsum("hnm,hpq->hnpmq", rows, columns).view(4, n * p, m * q)
    torch.testing.assert_close(product, whole, rtol=0, atol=1e-15)
    values = torch.randn(3, m, q, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want = torch.einsum("hij,bjhd->bihd", whole, values.flatten(1, 2)).view(3, n, p, 4, 5)
    torch.testing.assert_close(attend_along_axes(rows, columns, values), want, rtol=0, atol=1e-14)


def test_attention_along_an_axis_is_not_rounded_to_half_precision():
    weights, line = local_position_weights(9, 1.0), torch.arange(14)
    want = axis_attention(weights[:, 0], weights[:, 2], line, line)
    half = weights.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(axis_attention(half[:, 0], half[:, 2], line, line), want)


# the layer


def test_g6_the_whole_layer():
    made = GPSA(4, 4).double()
    with torch.no_grad():
        made.qk.weight.copy_(sines(8, 4, start=1))
        made.v.weight.copy_(sines(4, 4, start=2))
        made.proj.weight.copy_(sines(4, 4, start=3))
        made.proj.bias.copy_(sines(4, start=4))
        made.gating_param.copy_(torch.tensor([1.0, 0.0, -1.0, 2.0]))
    x = sines(1, 4, 4, start=0)
    attention = torch.tensor([0.592790933, 0.242463615, 0.082559646, 0.082185805], dtype=torch.float64)
    torch.testing.assert_close(made.attention_map(x, (2, 2))[0, 0, 0], attention, rtol=0, atol=1e-9)
    want = [
        [-1.0868755502, -1.0761180350, 0.2038634644, 0.1423959371],
        [-0.4054109060, -0.6569883800, -1.0255240303, 1.3304288691],
        [-0.6015819620, -0.7836238150, -0.6638040859, 0.9841924356],
        [-0.7610257485, -0.5879248296, -0.7601950862, 0.9145041752],
    ]
    got = made(x, (2, 2))
    torch.testing.assert_close(got, torch.tensor([want], dtype=torch.float64), rtol=0, atol=1e-10)
    assert got.sum().item() == pytest.approx(-4.833687547457, abs=1e-12)


def test_output_is_the_whole_attention_map_times_the_values():
    made, x = layer(), patches()
    attention = made.attention_map(x, (3, 4))
    value = made.v(x).view(2, 12, 9, 4).transpose(1, 2)
    want = made.proj((attention @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(made(x, (3, 4)), want, rtol=0, atol=1e-13)


def test_rows_of_the_attention_map_sum_to_one():
    attention = layer().attention_map(patches(), (3, 4))
    assert attention.shape == (2, 9, 12, 12)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 9, 12, dtype=torch.float64))


def test_an_open_gate_ignores_queries_and_keys():
    made, x = layer(), patches()
    with torch.no_grad():
        made.gating_param.fill_(1e3)
        want = made(x, (3, 4))
        made.qk.weight.normal_()
        torch.testing.assert_close(made(x, (3, 4)), want, rtol=0, atol=0)


def test_a_closed_gate_is_plain_attention():
    made, x = layer(), patches()
    plain = nn.MultiheadAttention(36, 9, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        made.gating_param.fill_(-1e3)
        made.proj.bias.zero_()
        plain.in_proj_weight.copy_(torch.cat([made.qk.weight, made.v.weight]))
        plain.out_proj.weight.copy_(made.proj.weight)
    torch.testing.assert_close(made(x, (3, 4)), plain(x, x, x, need_weights=False)[0])


def test_an_open_gate_commutes_with_a_translation_inside_the_image():
    torch.manual_seed(0)
    made = GPSA(36, 9, locality_strength=20.0, gate_init=1e3).double()  # its attention ends within the image
    picture = torch.zeros(1, 8, 8, 36, dtype=torch.float64)
    picture[:, 2:5, 2:5] = patches(9, 36, 1).view(1, 3, 3, 36)
    moved = picture.roll((1, 2), dims=(1, 2))
    out = [made(each.flatten(1, 2), (8, 8)).view(1, 8, 8, 36) for each in (picture, moved)]
    torch.testing.assert_close(out[0].roll((1, 2), dims=(1, 2))[:, 2:7, 3:8], out[1][:, 2:7, 3:8])


def test_the_position_bias_is_stored_and_changes_nothing():
    made, x = layer(), patches()
    want = made(x, (3, 4))
    assert "pos_proj.bias" in made.state_dict()
    assert "pos_proj.bias" not in dict(made.named_parameters())
    made.pos_proj.bias.add_(3.0)
    assert torch.equal(made(x, (3, 4)), want)


def test_gradients_of_every_trained_weight_are_exact():
    made, x = layer(8, 4), patches(6, 8, 1).requires_grad_()
    weights = {name: weight for name, weight in made.named_parameters() if weight.requires_grad}

    def output(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(made, dict(zip(weights, values, strict=True)), (x, (2, 3)))

    assert torch.autograd.gradcheck(output, (x, *weights.values()))


@pytest.mark.parametrize(
    ("fixed", "trained"),
    [
        ("none", {"qk.weight", "v.weight", "proj.weight", "proj.bias", "pos_proj.weight", "gating_param"}),
        ("gate", {"qk.weight", "v.weight", "proj.weight", "proj.bias", "pos_proj.weight"}),
        ("attention", {"v.weight", "proj.weight", "proj.bias"}),
    ],
)
def test_what_is_fixed_is_not_trained(fixed, trained):
    made = GPSA(36, 9, gate_init=0.0, fixed=fixed)
    assert {name for name, weight in made.named_parameters() if weight.requires_grad} == trained
    assert made.gate.tolist() == [0.5] * 9


def test_local_start_is_a_convolution_of_the_patches_and_the_other_is_random():
    torch.manual_seed(0)
    local, random = GPSA(36, 9, locality_strength=2.0), GPSA(36, 9, locality_strength=None)
    assert torch.equal(local.pos_proj.weight, local_position_weights(9, 2.0))
    assert torch.equal(local.v.weight, torch.eye(36))
    assert random.pos_proj.weight.abs().max() < 0.1
    assert random.v.weight.abs().max() < 0.1
    assert local.gate.tolist() == pytest.approx([0.731059] * 9, abs=1e-6)


def test_heads_that_do_not_divide_the_width_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="width of 48 cannot be divided among 9 heads"):
        GPSA(48, 9)


def test_patches_that_do_not_fill_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"13 patches do not fill a grid of 3x4: give \(height, width\)"):
        layer()(patches(13), (3, 4))
