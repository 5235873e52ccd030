# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor

from recipes_lib.models.text import TextTransformer

START, END = 1, 2
SIZES = {"vocabulary": 50, "context": 12, "width": 16, "layers": 2, "heads": 4, "dim": 8, "end": END}


@pytest.fixture
def tower() -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(**SIZES).double()


def rows(*texts: list[int], context: int = 12) -> Tensor:
    return torch.tensor([[START, *ids, END] + [0] * (context - len(ids) - 2) for ids in texts])


TOKENS = rows([5, 9, 30], [7], [8, 8, 9, 40, 41])


def test_a_text_becomes_one_vector_of_the_shared_space(tower):
    features = tower(TOKENS)
    assert features.shape == (3, 8)
    assert tower.num_features == 8
    assert (features.norm(dim=1) - 1).abs().min() > 1e-3  # not normalised


def test_what_follows_the_end_does_not_count(tower):
    noisy = TOKENS.clone()
    noisy[0, 5:], noisy[1, 3:] = 33, torch.tensor([END, 9, 49, END, 3, 0, 0, 0, 0])
    torch.testing.assert_close(tower(noisy), tower(TOKENS), rtol=0, atol=1e-12)


def test_what_precedes_the_end_does(tower):
    for place in (0, 1, 3):
        other = TOKENS.clone()
        other[0, place] = 44
        assert (tower(other)[0] - tower(TOKENS)[0]).abs().max() > 1e-3


def test_the_end_is_found_by_its_id_and_not_as_the_largest(tower):
    assert TOKENS.max() > END
    alone = tower(rows([5, 9, 30], context=5))
    torch.testing.assert_close(tower(TOKENS)[:1], alone, rtol=0, atol=1e-12)


def test_a_text_does_not_depend_on_its_batch_or_on_the_length_of_the_padding(tower):
    for row in range(3):
        torch.testing.assert_close(tower(TOKENS[row : row + 1]), tower(TOKENS)[row : row + 1], rtol=0, atol=1e-12)
    torch.testing.assert_close(tower(TOKENS[:, :8]), tower(TOKENS), rtol=0, atol=1e-12)


def test_order_of_words_counts(tower):
    features = tower(rows([5, 9, 30], [30, 9, 5]))
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_a_token_sees_only_those_before_it(tower):
    x = torch.randn(1, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 3] += 1
    block = tower.transformer["resblocks"][0]
    moved = (block(changed) - block(x)).abs().amax(dim=2)[0]
    assert (moved[:3] == 0).all()
    assert (moved[3:] > 0).all()


def test_every_weight_gets_a_gradient(tower):
    tower(TOKENS).square().sum().backward()
    assert [name for name, weight in tower.named_parameters() if weight.grad is None] == []


def test_a_text_without_an_end_is_named(tower):
    tokens = TOKENS.clone()
    tokens[1, 2] = 9
    with pytest.raises(ValueError, match=r"text 1 of 3 has no end-of-text token \(id 2\)"):
        tower(tokens)


def test_too_many_tokens_are_refused(tower):
    with pytest.raises(ValueError, match=r"shape \[1, 14\]; this tower takes \[n, 12\] or shorter"):
        tower(rows([5], context=14))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"heads": 3}, "width = 16 does not divide among 3 heads"), ({"end": 50}, "end = 50 is no id")],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        TextTransformer(**(SIZES | change))
