# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.models.nac.layers import Propagator, ReadIn, ReadOut
from recipes_lib.models.nac.modulation import ModulatedLinear


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noisy(layer: nn.Module) -> nn.Module:
    """The layer in float64 with random parameters, since biases of 0 and norms of 1 would hide a mistake."""
    torch.manual_seed(0)
    layer = layer.double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return layer.eval()


# read-in


def spelled_out(layer: ReadIn, states: Tensor, codes: Tensor, tokens: Tensor, hidden: Tensor | None) -> Tensor:
    """The read-in with every module's keys and values of every token: [B, V, U, ...]."""
    x = layer.token_norm(tokens)[:, :, None]  # [B, V, 1, d_in]
    each = codes if codes.dim() == 2 else codes[:, None]
    key, value = layer.key(x, each), layer.value(x, each)  # [B, V, U, head]
    query = layer.query(layer.state_norm(states), codes).expand(len(tokens), -1, -1)
    score = torch.einsum("buh,bvuh->buv", query, key) * key.shape[-1] ** -0.5
    if hidden is not None:
        score = score.masked_fill(hidden[:, None], -torch.inf)
    mixed = torch.einsum("buv,bvuh->buh", score.softmax(-1), value)
    states = states + layer.leave(mixed, codes)
    return states + layer.feed_forward(layer.norm(states), codes)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_folded_read_in_equals_keys_and_values_of_every_module_for_every_token(own, masked):
    layer = noisy(ReadIn(7, 6, 4, 5, 6))
    tokens = draw(3, 8, 7)
    codes = draw(3, 9, 6, seed=1) if own else draw(9, 6, seed=1)
    hidden = torch.arange(8) >= torch.tensor([[8], [3], [5]]) if masked else None
    want = spelled_out(layer, codes, codes, tokens, hidden)
    torch.testing.assert_close(layer(codes, codes, tokens, hidden), want, rtol=0, atol=1e-13)


def test_the_folded_read_in_has_the_same_gradients():
    layer, tokens, codes = noisy(ReadIn(7, 6, 4, 5, 6)), draw(3, 8, 7), draw(9, 6, seed=1)
    found = []
    for call in (layer, lambda *args: spelled_out(layer, *args, None)):
        inputs = (codes.clone().requires_grad_(), codes.clone().requires_grad_(), tokens.clone().requires_grad_())
        weights = list(layer.parameters())
        found.append(torch.autograd.grad(call(*inputs).square().sum(), [*inputs, *weights]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_the_read_in_makes_no_tensor_of_every_module_and_every_token_and_every_dimension():
    layer, tokens, codes = noisy(ReadIn(32, 16, 8, 5, 16)), draw(2, 64, 32), draw(24, 16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        layer(codes.requires_grad_(), codes, tokens)
    assert max(kept) < 2 * 64 * 24 * 32 / 8  # B V U d_in


def test_hidden_tokens_have_no_influence():
    layer, tokens, codes = noisy(ReadIn(7, 6, 4, 5, 6)), draw(1, 8, 7), draw(9, 6)
    hidden = (torch.arange(8) >= 5)[None]
    torch.testing.assert_close(layer(codes, codes, tokens, hidden), layer(codes, codes, tokens[:, :5]))


# propagator


def test_with_gain_0_a_propagator_is_pre_norm_attention_with_the_log_links_as_mask():
    layer = noisy(Propagator(8, 2, 4, 6, 8))
    for module in layer.modules():
        if isinstance(module, ModulatedLinear):
            nn.init.zeros_(module.gain)
    theirs = nn.MultiheadAttention(8, 2, bias=True, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([each.linear.weight for each in (layer.query, layer.key, layer.value)]))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(layer.leave.linear.state_dict())
    states, log_links = draw(3, 5, 8), -draw(3, 5, 5, seed=1).abs()
    x = layer.norm1(states)
    mixed = theirs(x, x, x, attn_mask=log_links.repeat_interleave(2, dim=0), need_weights=False)[0]
    want = states + mixed
    inner = layer.feed_forward.enter.linear(layer.norm2(want))
    want = want + layer.feed_forward.leave.linear(inner[..., :6] * F.gelu(inner[..., 6:]))
    got = layer(states, draw(5, 8, seed=2), log_links)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_queries_and_outputs_have_the_receivers_code_and_keys_and_values_the_senders():
    layer = noisy(Propagator(8, 2, 4, 6, 8))
    states, codes = draw(1, 5, 8), draw(5, 8, seed=1)
    log_links = torch.zeros(5, 5, dtype=torch.float64)
    other = codes.clone()
    other[3] += 1
    layer.feed_forward.leave.linear.weight.data.zero_()
    assert (layer(states, other, log_links) - layer(states, codes, log_links)).abs().amax(-1)[0].gt(1e-4).all()
    cut = log_links.clone()
    cut[:, 3] = -torch.inf  # nobody listens to module 3 but itself
    cut[3, 3] = 0
    moved = (layer(states, other, cut) - layer(states, codes, cut)).abs().amax(-1)[0]
    assert (moved > 1e-12).tolist() == [False, False, False, True, False]


def test_the_order_of_modules_does_not_matter():
    layer, states, codes, log_links = noisy(Propagator(8, 2, 4, 6, 8)), draw(2, 5, 8), draw(5, 8), -draw(5, 5).abs()
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = layer(states[:, order], codes[order], log_links[order][:, order])
    torch.testing.assert_close(permuted, layer(states, codes, log_links)[:, order])


def test_layer_scale_and_drop_path_act_on_both_branches():
    torch.manual_seed(0)
    layer = Propagator(8, 2, 4, 6, 8, layer_scale=0.1, drop_path=0.9).double()
    states, codes, links = draw(50, 5, 8), draw(5, 8), torch.zeros(5, 5, dtype=torch.float64)
    still = (layer(states, codes, links) == states).all(dim=(1, 2))
    assert 0.6 < still.double().mean() < 0.98  # 0.81: both branches dropped
    layer.scale1.gamma.data.zero_()
    layer.scale2.gamma.data.zero_()
    assert torch.equal(layer.eval()(states, codes, links), states)


# read-out


def test_output_modules_attend_along_links_and_have_no_residual():
    layer = noisy(ReadOut(8, 4, 6, 8))
    outputs, output_codes = draw(2, 8, seed=1), draw(2, 8, seed=2)
    states, codes, log_links = draw(3, 5, 8, seed=3), draw(5, 8, seed=4), -draw(3, 2, 5, seed=5).abs()
    weights = layer.weights(outputs, output_codes, states, codes, log_links)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, dtype=torch.float64))
    mixed = weights @ layer.value(layer.state_norm(states), codes)
    want = layer.leave(mixed, output_codes)
    want = want + layer.feed_forward(layer.norm(want), output_codes)
    torch.testing.assert_close(layer(outputs, output_codes, states, codes, log_links), want)
    cut = log_links.clone()
    cut[..., 1] = -torch.inf
    assert layer.weights(outputs, output_codes, states, codes, cut)[..., 1].abs().max() == 0
