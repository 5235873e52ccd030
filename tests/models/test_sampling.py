# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.models import sampling
from recipes_lib.models.sampling import Sampling, nucleus, repetition_penalty

SHARES = torch.tensor([0.05, 0.5, 0.15, 0.3])  # in the order of likelihood: tokens 1, 3, 2, 0


def drawn(top_p: float, draws: list[float], shares=SHARES) -> list[int]:
    return nucleus(shares.log().expand(len(draws), -1), top_p, torch.tensor(draws)).tolist()


@pytest.mark.parametrize(
    ("top_p", "allowed"),
    [(1e-9, {1}), (0.49, {1}), (0.51, {1, 3}), (0.79, {1, 3}), (0.81, {1, 2, 3}), (1, {0, 1, 2, 3})],
)
def test_the_nucleus_is_the_fewest_tokens_that_hold_the_share(top_p, allowed):
    assert set(drawn(top_p, torch.linspace(0, 1 - 2**-24, 1000).tolist())) == allowed


def test_tokens_of_the_nucleus_keep_their_shares():
    # of the nucleus 0.5 + 0.3 the first has 0.625
    assert drawn(0.75, [0.0, 0.62, 0.63, 0.999]) == [1, 1, 3, 3]
    frequency = torch.bincount(torch.tensor(drawn(1, ((torch.arange(10000) + 0.5) / 10000).tolist()))) / 10000
    torch.testing.assert_close(frequency, SHARES, atol=2e-4, rtol=0)


def test_what_may_not_be_drawn_never_is():
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]]).expand(500, -1)
    draws = torch.linspace(0, 1 - 2**-24, 500)
    assert set(nucleus(logits, 1.0, draws).tolist()) == {0, 2}


def test_of_equal_logits_the_first_is_likelier():
    assert nucleus(torch.zeros(3, 5), 0.3, torch.tensor([0.0, 0.6, 0.99])).tolist() == [0, 1, 1]


def test_a_nucleus_of_few_tokens_and_one_of_many_are_drawn_from_alike(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 400, generator=generator) * torch.linspace(0.1, 8, 300)[:, None]
    logits = logits.round(decimals=1)  # many equal ones
    draws = torch.rand(300, generator=generator)
    together = [nucleus(logits, top_p, draws) for top_p in (0.01, 0.5, 0.9, 1.0)]
    for few in (1, 400):
        monkeypatch.setattr(sampling, "_FEW", few)
        for top_p, found in zip((0.01, 0.5, 0.9, 1.0), together, strict=True):
            assert torch.equal(nucleus(logits, top_p, draws), found)


def test_a_huge_vocabulary_is_drawn_from_to_its_end():
    logits = torch.randn(4, 50000, generator=torch.Generator().manual_seed(0))
    ids = nucleus(logits, 1.0, torch.full((4,), 1 - 2**-24))
    assert (ids >= 0).all()
    assert (ids < 50000).all()


def test_a_repeated_token_is_penalised_once_whatever_its_sign():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5], [2.0, -2.0, 1.0, 0.5]])
    found = repetition_penalty(logits, torch.tensor([[0, 1, 0], [3, 3, 3]]), 2.0)
    assert found.tolist() == [[1.0, -4.0, 1.0, 0.5], [2.0, -2.0, 1.0, 0.25]]


def test_logits_and_the_rule_are_those_of_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[text]'")
    logits = torch.randn(16, 40, generator=torch.Generator().manual_seed(0)) * 3
    ids = torch.randint(0, 40, (16, 9), generator=torch.Generator().manual_seed(1))
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.1)(ids, logits.clone())
    ours = repetition_penalty(logits, ids, 1.1)
    torch.testing.assert_close(ours, theirs)
    kept = transformers.TopPLogitsWarper(0.9)(ids, theirs).isfinite()
    draws = torch.linspace(0, 1 - 2**-24, 2000)
    for row in range(16):
        found = nucleus(ours[row].expand(2000, -1), 0.9, draws)
        allowed = kept[row].nonzero().squeeze(1)
        assert set(found.tolist()) <= set(allowed.tolist())
        frequency = torch.bincount(found, minlength=40) / 2000
        expected = ours[row].masked_fill(~kept[row], -torch.inf).softmax(0)
        torch.testing.assert_close(frequency, expected, atol=2e-3, rtol=0)


def test_more_captions_leave_the_earlier_draws_as_they_are():
    defaults, seeds = Sampling(), torch.tensor([3, -5, 2**62])
    few, many = (defaults.draws(seeds, count).view(3, count, 16) for count in (2, 8))
    assert torch.equal(few, many[:, :2])
    assert torch.equal(defaults.draws(seeds[1:2], 8).view(8, 16), many[1])
    assert len(many.unique()) == many.numel()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"top_p": float("nan")}, "top_p = nan"),
        ({"min_length": 5, "max_length": 4}, "min_length = 5, max_length = 4"),
        ({"min_length": 0, "max_length": 0}, "max_length = 0"),
        ({"min_length": -1}, "min_length = -1"),
        ({"repetition_penalty": 0.9}, "repetition_penalty = 0.9"),
    ],
)
def test_settings_out_of_range_are_named(fields, named):
    with pytest.raises(ValueError, match=named):
        Sampling(**fields)
