# SPDX-License-Identifier: Apache-2.0
"""The convolution as gated attention. Golden values: x = 1 ... 9 in a 3x3 image, bias 0.5, float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.models import gpsa
from recipes_lib.models.gated_convolution import (
    GatedConvolution,
    _Within,
    obstacle,
    off_centre_mass,
)

LAPLACIAN = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]
ASYMMETRIC = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]
OPEN = torch.sigmoid(torch.tensor(1.0, dtype=torch.float64)).item()


def one_channel(kernel: list[list[float]]) -> nn.Conv2d:
    made = nn.Conv2d(1, 1, 3, padding=1).double()
    with torch.no_grad():
        made.weight.copy_(torch.tensor(kernel, dtype=torch.float64))
        made.bias.fill_(0.5)
    return made


def twin(kernel: list[list[float]], alpha: float, gate: float) -> GatedConvolution:
    """With content attention that is the same for all pixels of the image."""
    made = GatedConvolution(one_channel(kernel), locality_strength=40.0)
    with torch.no_grad():
        made.v_pos.mul_(alpha / 40)
        made.gate.fill_(gate)
        made.query.weight.zero_()
    return made


def nine() -> Tensor:
    return torch.arange(1, 10, dtype=torch.float64).view(1, 1, 3, 3)


def random_convolution(seed: int = 0, **options: object) -> nn.Conv2d:
    torch.manual_seed(seed)
    facts = {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "padding": 1}
    return nn.Conv2d(**(facts | options)).double()


def random_maps(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# golden values


@pytest.mark.parametrize(
    ("kernel", "alpha", "gate", "expected"),
    [
        (LAPLACIAN, 40, 1, "2.5 1.5 -3.5 -2.5 .5 -6.5 -15.5 -10.5 -21.5"),
        (
            LAPLACIAN,
            1,
            1,
            "1.3731010616 .5706657545 -.3374137848 -1.5252982423 -3.2041555122 -3.6212622392 -3.7584434776 -5.7172262361 "
            "-5.4689583239",
        ),
        (
            LAPLACIAN,
            40,
            OPEN,
            "1.9621171573 1.2310585786 -2.4242343145 -1.6931757359 .5 -4.6174100504 -11.1969372581 -7.5416443649 "
            "-15.5832887299",
        ),
        (ASYMMETRIC, 40, 1, "9.9 15.9 11.1 19.1 29.0 19.1 11.1 15.9 9.9"),
        (
            ASYMMETRIC,
            1,
            1,
            "10.6756058854 13.9707464372 11.6236240304 15.5794612205 19.7459706694 15.8974557637 12.1325151619 "
            "14.9247300666 11.6933881483",
        ),
        (  # content is uniform over the nine pixels of the image; over all 25 the first would be 9.55
            ASYMMETRIC,
            40,
            OPEN,
            "13.4231326199 17.8094840917 14.3004029143 20.1488715433 27.3863514718 20.1488715433 14.3004029143 "
            "17.8094840917 13.4231326199",
        ),
    ],
)
def test_golden_values(kernel, alpha, gate, expected):
    wanted = torch.tensor([float(number) for number in expected.split()], dtype=torch.float64)
    torch.testing.assert_close(twin(kernel, alpha, gate)(nine()).flatten(), wanted, rtol=0, atol=6e-11)


def test_at_strength_40_the_layer_is_the_convolution_to_the_last_digit():
    for kernel in (LAPLACIAN, ASYMMETRIC):
        off = twin(kernel, 40, 1).attend(nine()) - one_channel(kernel)(nine())
        assert off.abs().max() < 1e-14


def test_a_kernel_whose_axes_are_swapped_gives_another_output():
    swapped = one_channel(np.transpose(ASYMMETRIC).tolist())(nine()).flatten()
    assert swapped.tolist() == pytest.approx([9.5, 13.7, 7.5, 19.7, 26.6, 13.7, 15.5, 19.7, 9.5])
    assert (twin(ASYMMETRIC, 40, 1)(nine()).flatten() - swapped).abs().max() > 4


def test_without_the_border_of_zeros_the_convolution_fails_at_the_border_alone():
    """The control of the identity: position attention over the image's own pixels, as in a Vision Transformer."""
    layer = twin(ASYMMETRIC, 40, 1)
    positions = gpsa.grid_positions(3, 3).double()
    inside = gpsa.position_attention(layer.v_pos, gpsa.relative_codes(positions, positions))
    wrong = 0.5 + (inside @ nine().flatten() * layer.weight.flatten()[:, None]).sum(0)
    assert wrong.tolist() == pytest.approx([14, 17.3, 20, 25.7, 29, 31.7, 32, 35.3, 38])


# the whole convolution

KINDS = [
    {},
    {"stride": 2},
    {"stride": (2, 3), "kernel_size": 5, "padding": 2},
    {"dilation": 2, "padding": 2},
    {"dilation": (1, 2), "padding": (1, 2), "stride": 2},
    {"groups": 2},
    {"groups": 4},
    {"groups": 4, "out_channels": 4, "kernel_size": 7, "padding": 3},
    {"kernel_size": (1, 3), "padding": (0, 1)},
    {"padding": "same"},
    {"bias": False, "out_channels": 3},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 8), (8, 1)])
@pytest.mark.parametrize("gate", ["linear", "saturated"])
def test_the_layer_is_the_convolution_at_every_stride_dilation_group_and_size(options, height, width, gate):
    convolution, maps = random_convolution(**options), random_maps(2, 4, height, width)
    layer = GatedConvolution(convolution, gate=gate, head_dim=3)
    torch.testing.assert_close(layer.attend(maps), convolution(maps), rtol=0, atol=1e-13)
    single = layer.float().attend(maps.float())
    torch.testing.assert_close(single.double(), convolution.double()(maps), rtol=0, atol=2e-6)


def test_gradients_of_input_weight_and_bias_are_the_convolutions():
    convolution, maps = random_convolution(stride=2), random_maps(2, 4, 6, 5).requires_grad_()
    layer = GatedConvolution(convolution)
    wanted = torch.autograd.grad(convolution(maps).square().sum(), (maps, convolution.weight, convolution.bias))
    got = torch.autograd.grad(layer(maps).square().sum(), (maps, layer.weight, layer.bias))
    torch.testing.assert_close(got, wanted)


def opened(**options: object) -> GatedConvolution:
    """A layer in the middle of its training: gates between 0 and 1, positions off the pixels."""
    torch.manual_seed(5)
    layer = GatedConvolution(
        random_convolution(**options), gate="near", locality_strength=0.7, gate_logit=0.3, head_dim=3
    )
    for parameter in (layer.gate, layer.v_pos):
        parameter.data += 0.3 * torch.randn_like(parameter)
    return layer


@pytest.mark.parametrize("options", [{}, {"stride": 2, "groups": 2}, {"dilation": 2, "padding": 2}], ids=str)
def test_the_output_is_the_sum_over_heads_of_the_equation(options):
    """One product with the sum of both maps equals the definition, head by head, with the border of zeros as pixels."""
    layer, maps = opened(**options), random_maps(2, 4, 5, 6)
    (p, _), (s, _), groups = layer.padding, layer.stride, layer.groups
    positions = gpsa.grid_positions(5, 6).double()
    queries = positions.view(5, 6, 2)[::s, ::s].flatten(0, 1)
    padded = gpsa.grid_positions(5 + 2 * p, 6 + 2 * p, start=-p).double()
    position = gpsa.position_attention(layer.v_pos, gpsa.relative_codes(queries, padded))  # [H, Q, N']
    values, tokens = F.pad(maps, (p, p, p, p)).flatten(2).mT, maps.flatten(2).mT  # [B, N', C], [B, N, C]
    asks, keys = layer.query(maps[:, :, ::s, ::s].flatten(2).mT), layer.key(tokens)
    out = layer.bias.expand(2, len(queries), 8)
    for head, (gate, matrix) in enumerate(zip(layer.gate.sigmoid(), layer.weight.flatten(2).unbind(2), strict=True)):
        part = slice(3 * head, 3 * head + 3)
        content = (asks[..., part] @ keys[..., part].mT / math.sqrt(3)).softmax(dim=-1)
        seen = gate * position[head] @ values + (1 - gate) * content @ tokens  # [B, Q, C]
        full = torch.block_diag(*matrix.chunk(groups))  # [C_out, C]
        out = out + seen @ full.mT
    torch.testing.assert_close(layer(maps).flatten(2).mT, out)


def test_gradients_agree_with_differences_of_the_output():
    layer, maps = opened(stride=2), random_maps(1, 4, 4, 3).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def output(maps: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (maps,))

    assert torch.autograd.gradcheck(output, (maps, *layer.parameters()))


def test_position_maps_are_convits_on_the_grid_with_the_border():
    layer = opened()
    codes = gpsa.relative_codes(gpsa.grid_positions(5, 6), gpsa.grid_positions(7, 8, start=-1)).double()
    whole = gpsa.position_attention(layer.v_pos, codes).unflatten(-1, (7, 8))
    torch.testing.assert_close(layer.position_maps(5, 6), whole[..., 1:-1, 1:-1].flatten(2))


def test_heads_stand_in_the_order_of_the_kernels_pixels():
    """Row by row, and v_pos is (dx, dy, ...): ConViT's heads stand column by column."""
    layer = GatedConvolution(random_convolution())
    centres = layer.v_pos[:, :2] / (-2 * layer.v_pos[:, 2:])
    assert centres.tolist() == [[x, y] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    theirs = gpsa.local_position_weights(9, 40.0).unflatten(0, (3, 3)).transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(layer.v_pos.data, theirs.double())


def test_content_attention_sees_the_images_own_pixels_alone():
    """A zero would be a pixel like any other: a border of zeros around a bright image must not draw attention."""
    layer, maps = opened(), random_maps(1, 4, 3, 3)
    content = layer.content_maps(maps)
    assert content.shape == (1, 9, 9, 9)
    torch.testing.assert_close(content.sum(-1), torch.ones(1, 9, 9, dtype=torch.float64))


def test_what_a_network_learns_moves_with_the_image_in_the_interior():
    layer, maps = GatedConvolution(random_convolution()), random_maps(1, 4, 8, 8)
    moved = layer.attend(maps.roll(1, dims=-1))
    torch.testing.assert_close(moved[..., 1:-1, 2:-1], layer.attend(maps)[..., 1:-1, 1:-2])


# the two limits of exactness


@pytest.mark.parametrize(
    ("alpha", "mass"),
    [(1, 0.6818), (2, 0.3813), (3, 0.1729), (5, 0.02642), (10, 1.82e-4), (20, 8.2e-9), (30, 3.7e-13)],
)
def test_off_centre_mass_by_strength(alpha, mass):
    assert off_centre_mass(alpha) == pytest.approx(mass, rel=0.01)


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1, 2, 3, 5, 10, 15, 20, 40])
def test_off_centre_mass_is_measured_on_a_large_grid(alpha):
    layer = GatedConvolution(random_convolution(), gate="near", locality_strength=alpha)
    measured = layer.stray_attention(reach=80)
    assert measured.tolist() == pytest.approx([off_centre_mass(alpha)] * 9, rel=1e-10)
    if alpha == 3:
        assert 4 * math.exp(-3) == pytest.approx(0.199, abs=5e-4)  # the shortcut is right for large alpha alone
    if alpha in (1, 10):  # the middle head on a real map: no subtraction of nearly equal numbers
        middle = layer.position_maps(41, 41)[4, 20 * 41 + 20]
        middle[20 * 41 + 20] = 0
        assert middle.sum().item() == pytest.approx(off_centre_mass(alpha), rel=1e-6)


@pytest.mark.parametrize("strength", [0, -1, math.nan, math.inf])
def test_a_strength_that_is_not_above_0_is_refused(strength):
    with pytest.raises(ValueError, match=r"locality_strength = .*: use a finite value above 0"):
        off_centre_mass(strength)


@pytest.mark.parametrize(("alpha", "rms"), [(1, 0.70), (3, 0.184), (10, 1.95e-4), (20, 8.9e-9)])
def test_relative_error_by_strength(alpha, rms):
    """Weights N(0, 1) / sqrt(72), input N(0, 1), 8 channels, 7x7: within 5 % over draws (10 % at strength 1)."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 8, 3, padding=1, bias=False).double()
    nn.init.normal_(convolution.weight, std=72**-0.5)
    maps = random_maps(64, 8, 7, 7)
    layer = GatedConvolution(convolution, gate="near", locality_strength=alpha, gate_logit=34.0)
    off = (layer.attend(maps) - convolution(maps)).square().mean().sqrt() / convolution(maps).square().mean().sqrt()
    assert off.item() == pytest.approx(rms, rel=0.05)


def gradients(gate: str, dtype: torch.dtype) -> dict[str, float]:
    layer = GatedConvolution(random_convolution().to(dtype), gate=gate)
    layer(random_maps(2, 4, 6, 6, dtype=dtype)).square().sum().backward()
    return {name: parameter.grad.norm().item() for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saturated_gate_has_no_gradient_and_a_linear_one_has(dtype):
    saturated, linear, near = (gradients(gate, dtype) for gate in ("saturated", "linear", "near"))
    assert saturated["gate"] == saturated["query.weight"] == saturated["key.weight"] == 0
    assert max(saturated["v_pos"], linear["v_pos"]) < 1e-10
    assert linear["gate"] > 1
    assert linear["query.weight"] == 0  # until the gate has moved
    assert min(near[name] for name in ("gate", "v_pos", "query.weight", "key.weight")) > 1e-6


def test_after_one_step_of_the_linear_gate_queries_and_keys_learn():
    layer, maps = GatedConvolution(random_convolution()), random_maps(2, 4, 6, 6)
    layer(maps).square().sum().backward()
    layer.gate.data -= 0.01 * layer.gate.grad.sign()
    layer.zero_grad()
    layer(maps).square().sum().backward()
    assert layer.query.weight.grad.norm() > 1e-4
    assert layer.key.weight.grad.norm() > 1e-4


def test_a_linear_gate_stays_within_0_and_1_and_never_loses_the_way_back():
    number = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5], requires_grad=True)
    kept = _Within.apply(number)
    assert kept.tolist() == [0, 0, 0.5, 1, 1]
    # a positive gradient means a step down
    assert torch.autograd.grad(kept.sum(), number, retain_graph=True)[0].tolist() == [0, 1, 1, 1, 1]
    assert torch.autograd.grad(-kept.sum(), number)[0].tolist() == [-1, -1, -1, -1, 0]


# the short cut in evaluation


def count_attention(layer: GatedConvolution, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of heads of each call of the attention, as it goes."""
    heads, plain = [], layer._content
    monkeypatch.setattr(layer, "_content", lambda *args: heads.append(plain(*args).shape[1]) or plain(*args))
    return heads


def test_in_evaluation_local_heads_are_computed_by_the_convolution(monkeypatch):
    layer, maps = GatedConvolution(random_convolution(stride=2, groups=2)).eval(), random_maps(2, 4, 7, 6)
    heads = count_attention(layer, monkeypatch)
    with torch.no_grad():
        exact = layer(maps)
        assert torch.equal(exact, layer.convolution()(maps))
        assert heads == []
        layer.gate[2], layer.gate[7] = 0.4, 0.0
        layer.v_pos[5] /= 40  # soft positions
        some = layer(maps)
        assert heads == [3]
        torch.testing.assert_close(some, layer.attend(maps))
        assert (some - exact).abs().max() > 0.1
        layer.v_pos /= 40
        torch.testing.assert_close(layer(maps), layer.attend(maps))
        assert heads[-2:] == [9, 9]


@pytest.mark.parametrize("training", [True, False])
def test_where_gradients_are_wanted_every_head_attends(training, monkeypatch):
    layer = GatedConvolution(random_convolution()).train(training)
    heads = count_attention(layer, monkeypatch)
    layer(random_maps(1, 4, 4, 4))
    assert heads == [9]


def test_which_heads_are_local_depends_on_the_dtype():
    weak = GatedConvolution(random_convolution(), gate="near", locality_strength=25.0)
    with torch.no_grad():
        weak.gate.fill_(40.0)
    assert not weak.is_local(reach=9).any()
    assert weak.float().is_local(reach=9).all()
    assert not GatedConvolution(random_convolution(), gate="near").is_local(reach=9).any()


def test_the_convolution_comes_back_with_the_same_parameters():
    for options in KINDS:
        convolution = random_convolution(**options)
        back = GatedConvolution(convolution).convolution()
        assert back.weight is convolution.weight
        assert back.bias is convolution.bias
        maps = random_maps(1, 4, 6, 5)
        assert torch.equal(back(maps), convolution(maps))


# dtypes, sizes, modes


def test_in_bfloat16_positions_are_computed_in_float32():
    layer = GatedConvolution(random_convolution(padding=1).bfloat16())
    assert layer.position_maps(20, 20).dtype == torch.float32
    maps = random_maps(1, 4, 20, 20, dtype=torch.bfloat16)
    off = (layer(maps) - layer.convolution()(maps)).abs().max() / layer.convolution()(maps).abs().max()
    assert off < 0.02
    assert layer(maps).dtype == torch.bfloat16


def test_under_autocast_the_layer_is_close_to_the_convolution():
    layer, maps = GatedConvolution(random_convolution().float()), random_maps(1, 4, 9, 9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(maps)
    assert (out.float() - layer.convolution()(maps)).abs().max() < 0.02


def test_memory_layout_makes_no_difference():
    layer, maps = opened(), random_maps(2, 4, 6, 5)
    torch.testing.assert_close(layer(maps.contiguous(memory_format=torch.channels_last)), layer(maps))


def test_the_border_are_the_outputs_whose_kernel_touches_zeros():
    layer = GatedConvolution(random_convolution(stride=2))
    assert layer.border(6, 5).int().tolist() == [[1, 1, 1], [1, 0, 1], [1, 0, 1]]
    convolution = random_convolution(stride=2, bias=False)
    nn.init.ones_(convolution.weight)
    sums = convolution(torch.ones(1, 4, 6, 5, dtype=torch.float64))[0, 0]
    assert torch.equal(sums < 36, layer.border(6, 5))


def test_a_map_above_the_budget_is_refused_with_its_memory():
    layer = GatedConvolution(random_convolution(), map_budget=2**20)
    layer(random_maps(1, 4, 13, 13))
    told = (
        r"a feature map of 14x14 pixels has 38,416 pairs of pixels: 9 attention maps of an image would take 1.3 MiB, .* "
        r"Recast only the network's last stage"
    )
    with pytest.raises(ValueError, match=told):
        layer(random_maps(1, 4, 14, 14))
    with torch.no_grad():  # no attention is computed
        layer.eval()(random_maps(1, 4, 14, 14))


# bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kernel_size": 2, "padding": 0}, r"its kernel is 2x2, and only odd sides"),
        ({"kernel_size": (3, 4)}, r"its kernel is 3x4"),
        ({"kernel_size": 1, "padding": 0}, r"its kernel is 1x1, which sees no neighbour"),
        ({"padding_mode": "reflect"}, r"its padding_mode is 'reflect', and only 'zeros' is supported"),
        ({"padding": 0}, r"its padding is \(0, 0\), and only \(1, 1\), dilation \* \(kernel - 1\) / 2, is supported"),
        ({"padding": "valid"}, r"its padding is valid"),
        ({"dilation": 2}, r"its padding is \(1, 1\), and only \(2, 2\)"),
    ],
    ids=str,
)
def test_a_convolution_that_has_no_twin_is_named(options, told):
    with pytest.raises(ValueError, match=f"this convolution cannot become attention: {told}"):
        GatedConvolution(random_convolution(**options))


def test_a_convolution_that_does_more_is_left_alone():
    class Scaled(nn.Conv2d):
        pass

    assert "it is a Scaled" in obstacle(Scaled(2, 2, 3, padding=1))
    hooked = nn.Conv2d(2, 2, 3, padding=1)
    hooked.register_forward_hook(lambda *_: None)
    assert obstacle(hooked) == "it has hooks, which would be lost"
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3, padding=1))
    assert "ParametrizedConv2d" in obstacle(normed)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 20), (torch.float64, 37), (torch.bfloat16, 20)])
def test_a_strength_too_small_for_the_dtype_is_refused_with_the_error_it_would_make(dtype, least):
    convolution = random_convolution().to(dtype)
    GatedConvolution(convolution, locality_strength=least)
    told = rf"locality_strength = 10 with gate linear: .* about 4 exp\(-10\) = 1.8e-04 .* Use at least {least} in float"
    with pytest.raises(ValueError, match=told):
        GatedConvolution(convolution, locality_strength=10)
    with pytest.raises(ValueError, match="gate saturated"):
        GatedConvolution(convolution, gate="saturated", locality_strength=least - 1)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 16), (torch.float64, 36), (torch.bfloat16, 5)])
def test_a_gate_that_could_not_move_is_refused(dtype, most):
    convolution = random_convolution().to(dtype)
    GatedConvolution(convolution, gate="near", gate_logit=most)
    told = rf"gate_logit = {most + 2}: its sigmoid is 1 .*gradient is exactly 0 .* at most {min(10, most)}\."
    with pytest.raises(ValueError, match=told):
        GatedConvolution(convolution, gate="near", gate_logit=most + 2)


def test_an_unknown_gate_is_named():
    with pytest.raises(ValueError, match=r"gate = 'soft' is unknown\. There are: linear, near, saturated"):
        GatedConvolution(random_convolution(), gate="soft", locality_strength=10.0)
