# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import RelaxedBernoulli

from recipes_lib.models.nac import links

SIGNATURES = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 0]], dtype=torch.float64)
"""The signatures of golden values n1 and n5."""


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sines(shift: float, *size: int) -> Tensor:
    """sin(shift + n), row-major."""
    return torch.sin(shift + torch.arange(math.prod(size), dtype=torch.float64)).view(size)


# probabilities


@pytest.mark.parametrize(
    ("bandwidth", "first"),
    [
        (1.0, (1, 0.7461018061, 0.3678794412, 0.1353352832)),
        (0.5, (1, 0.5566679050, 0.1353352832, 0.0183156389)),
    ],
)
def test_n1_a_links_probability_falls_with_the_angle_of_the_signatures(bandwidth, first):
    p = links.link_probabilities(SIGNATURES, bandwidth=bandwidth)
    assert p[0].tolist() == pytest.approx(first, abs=1e-9)
    if bandwidth == 1:
        assert float(p[1, 2]) == pytest.approx(0.7461018061, abs=1e-9)
        assert float(p[1, 3]) == pytest.approx(0.1813898346, abs=1e-9)


def test_the_length_of_a_signature_does_not_matter_and_its_gradient_is_orthogonal_to_it():
    s = draw(5, 3).requires_grad_()
    p = links.link_probabilities(s, bandwidth=0.7)
    torch.testing.assert_close(
        links.link_probabilities(s * torch.tensor([[0.1], [2], [3], [40], [5]]), bandwidth=0.7), p
    )
    (p * draw(5, 5, seed=1)).sum().backward()
    assert s.grad.abs().max() > 0.01
    torch.testing.assert_close((s.grad * s).sum(1), torch.zeros(5, dtype=torch.float64), atol=1e-14, rtol=0)


def test_equal_signatures_give_links_of_probability_1_and_no_pair_has_less_than_the_floor():
    same = draw(1, 6).expand(4, 6)
    torch.testing.assert_close(links.link_probabilities(same, bandwidth=0.5), torch.ones(4, 4, dtype=torch.float64))
    opposite = torch.cat([same[:1], -same[:1]])
    assert float(links.link_probabilities(opposite, bandwidth=0.5)[0, 1]) == pytest.approx(math.exp(-4))


def test_every_sample_may_have_signatures_of_its_own():
    s = draw(3, 5, 4)
    each = torch.stack([links.link_probabilities(one, bandwidth=1.0) for one in s])
    torch.testing.assert_close(links.link_probabilities(s, bandwidth=1.0), each)


def test_under_autocast_probabilities_keep_the_precision_of_float32():
    s = draw(6, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        p = links.link_probabilities(s, bandwidth=0.5)
    assert p.dtype == torch.float32
    torch.testing.assert_close(p, links.link_probabilities(s, bandwidth=0.5))


def test_a_truncated_link_weighs_nothing_and_its_gradient_passes_as_if_it_were_there():
    s = SIGNATURES.clone().requires_grad_()
    log_p = links.log_link_probabilities(s, s, bandwidth=1.0, truncation=0.9)
    p = log_p.exp()
    assert (p[0] > 1e-20).tolist() == [True, True, False, False]  # distances 0, .29, 1, 2
    (gradient,) = torch.autograd.grad(p.sum(), s)
    (whole,) = torch.autograd.grad(links.link_probabilities(s, bandwidth=1.0).sum(), s)
    torch.testing.assert_close(gradient, whole)
    weights = (draw(4, 4) + log_p).softmax(-1)
    assert weights[0, 2:].max() < 1e-25


# draws


def test_n2_draws_are_sigmoids_of_a_sum_of_logits():
    log_p = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64).log()
    log_c = links.draw_log_links(log_p, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64), temperature=0.5)
    assert log_c.exp().tolist() == pytest.approx((0.0113493064, 0.6923076923, 0.9992289900), abs=1e-9)


def test_draws_equal_torchs_relaxed_bernoulli_of_the_same_uniform_numbers(monkeypatch):
    p, u = uniform(4, 5, seed=3), uniform(2, 4, 5, seed=4)
    monkeypatch.setattr("torch.distributions.relaxed_bernoulli.torch.rand", lambda *_, **__: u)
    theirs = RelaxedBernoulli(torch.tensor(0.5, dtype=torch.float64), probs=p).rsample((2,))
    torch.testing.assert_close(links.draw_log_links(p.log(), u, temperature=0.5).exp(), theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_a_draw_is_above_one_half_with_its_probability_at_any_temperature(temperature):
    p = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    strong = links.draw_log_links(p.log(), uniform(20_000, 3), temperature=temperature) > math.log(0.5)
    assert strong.double().mean(0).tolist() == pytest.approx(p.tolist(), abs=0.015)  # 4 standard deviations


def test_draws_have_finite_logarithms_and_gradients_at_every_probability():
    log_p = torch.tensor([0.0, -1e-9, -1.0, -69.0, -100.0], requires_grad=True)
    for u in (0.0, 0.5, 1 - 2**-24):
        log_c = links.draw_log_links(log_p, torch.full((5,), u), temperature=0.5)
        (gradient,) = torch.autograd.grad(log_c.sum(), log_p)
        assert log_c.isfinite().all()
        assert gradient.isfinite().all()


def test_the_gradient_of_a_draw_is_right():
    log_p, u = -uniform(3, 3, seed=1) - 0.05, uniform(2, 3, 3)
    assert torch.autograd.gradcheck(
        lambda x: links.draw_log_links(x, u, temperature=0.5), log_p.requires_grad_(), atol=1e-6
    )


def test_hard_links_are_those_of_at_least_one_half():
    log_p = torch.tensor([[0.0, math.log(0.5), math.log(0.49)]])
    assert links.hard_log_links(log_p).exp().tolist() == [[1.0, 1.0, 0.0]]


# attention


def test_n3_log_links_are_added_to_the_scores():
    scores = torch.tensor([0.5, -0.25, 1], dtype=torch.float64)
    p = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    c = links.draw_log_links(p.log(), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64), temperature=0.5)

    def weights(log_links: Tensor) -> list[float]:
        """One query of width 1, keys that are the scores, values that are the rows of the identity."""
        one = torch.ones(1, 1, 1, dtype=torch.float64)
        return [
            float(links.attend(one, scores.view(1, 3, 1), unit.view(1, 3, 1), log_links.view(1, 3), 1))
            for unit in torch.eye(3, dtype=torch.float64)
        ]

    assert weights(c) == pytest.approx((0.0057151669, 0.1646788751, 0.8296059580), abs=1e-9)
    assert weights(p.log()) == pytest.approx((0.1451189899, 0.1370987140, 0.7177822962), abs=1e-9)
    assert weights(torch.zeros(3).double()) == pytest.approx((0.3204011090, 0.1513467674, 0.5282521236), abs=1e-9)


def test_n5_attention_of_four_modules_and_of_two_of_them():
    x, w_q, w_k, w_v = (sines(shift, 4, 4) for shift in range(4))
    q, k, v = x @ w_q.T, x @ w_k.T, x @ w_v.T
    log_p = links.log_link_probabilities(SIGNATURES, SIGNATURES, bandwidth=1.0)

    def rows(chosen: list[int], values: Tensor) -> Tensor:
        pick = log_p[chosen][:, chosen]
        return links.attend(q[None, chosen], k[None, chosen], values[None], pick, 1)[0]

    every = rows([0, 1, 2, 3], v)[0]
    assert every.tolist() == pytest.approx((0.0238746472, 1.2947831075, -1.7165280845, 0.9492121574), abs=1e-9)
    eye = torch.eye(4, dtype=torch.float64)
    weights = rows([0, 1, 2, 3], eye)[0]
    assert weights.tolist() == pytest.approx((0.2727191975, 0.0026400640, 0.7193389962, 0.0053017423), abs=1e-9)
    two = rows([0, 2], torch.eye(2, 4, dtype=torch.float64))
    assert two[:, :2].flatten().tolist() == pytest.approx(
        (0.2749024193, 0.7250975807, 0.0004110525, 0.9995889475), abs=1e-9
    )


def test_attention_equals_c_times_exp_z_normalised_in_every_head():
    q, k, v = draw(2, 3, 8, seed=1), draw(2, 5, 8, seed=2), draw(2, 5, 8, seed=3)
    log_c = -uniform(2, 3, 5) * 4
    z = (q.view(2, 3, 2, 4).transpose(1, 2) @ k.view(2, 5, 2, 4).permute(0, 2, 3, 1)) / 2
    weights = F.normalize(log_c.exp()[:, None] * z.exp(), p=1, dim=-1)  # [2, heads, 3, 5]
    want = (weights @ v.view(2, 5, 2, 4).transpose(1, 2)).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(links.attend(q, k, v, log_c, 2), want, rtol=1e-12, atol=1e-14)


def test_attention_equals_torchs_with_the_log_links_as_its_mask():
    q, k, v = (draw(2, 6, 8, seed=n).float() for n in range(3))
    log_c = -uniform(2, 6, 6).float()
    split = [x.view(2, 6, 2, 4).transpose(1, 2) for x in (q, k, v)]
    theirs = F.scaled_dot_product_attention(*split, attn_mask=log_c[:, None]).transpose(1, 2).reshape(2, 6, 8)
    torch.testing.assert_close(links.attend(q, k, v, log_c, 2), theirs, rtol=0, atol=1e-6)


# bad input


def test_values_that_are_no_kernel_are_refused():
    s = SIGNATURES
    with pytest.raises(ValueError, match=r"bandwidth = 0 must be above 0; a link's probability is at least exp\(-2"):
        links.link_probabilities(s, bandwidth=0)
    with pytest.raises(ValueError, match=r"truncation = 2.5 is no distance 1 - cos: use a value in \(0, 2\]"):
        links.link_probabilities(s, bandwidth=1.0, truncation=2.5)
    with pytest.raises(ValueError, match=r"temperature = -1 must be above 0; the paper's is 0.5"):
        links.draw_log_links(s.new_zeros(2), s.new_zeros(2), temperature=-1)
    with pytest.raises(ValueError, match="signature 2 has length 0, so it has no cosine"):
        links.link_probabilities(torch.tensor([[1.0, 0], [0, 1], [0, 0]]), bandwidth=1.0)
