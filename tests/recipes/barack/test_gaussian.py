# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.recipes.barack import gaussian


def test_means_and_the_share_that_agrees_are_those_of_the_docstring():
    found = gaussian.draw(40_000, 0, "train", agree=0.97)
    assert float((found.labels == found.attributes).double().mean()) == pytest.approx(0.97, abs=0.005)
    sign = torch.stack([2 * found.labels - 1, 2 * found.attributes - 1], dim=1)
    assert (found.inputs[:, :2] * sign).mean(dim=0).tolist() == pytest.approx([1.6, 2.0], abs=0.02)
    assert found.inputs.shape == (40_000, 12)
    assert found.inputs[:, 2:].mean(dim=0).abs().max() < 0.02
    torch.testing.assert_close(found.inputs[:, 2:].std(dim=0), torch.ones(10), atol=0.02, rtol=0)
    assert found.groups.bincount(minlength=4).tolist() == pytest.approx([19_400, 600, 600, 19_400], rel=0.1)


def test_sets_of_one_seed_are_independent_and_a_larger_one_begins_with_a_smaller_one():
    train, test = (gaussian.draw(500, 3, name, agree=0.5) for name in ("train", "test"))
    assert not torch.equal(train.labels, test.labels)
    assert torch.equal(gaussian.draw(900, 3, "train", agree=0.5).inputs[:500], train.inputs)
    assert not torch.equal(gaussian.draw(500, 4, "train", agree=0.5).inputs, train.inputs)


def test_a_share_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="agree = 1"):
        gaussian.draw(5, 0, "train", agree=1)
