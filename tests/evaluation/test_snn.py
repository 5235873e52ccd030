# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from recipes_lib.evaluation.snn import describe, nearest_neighbours


def angles(*degrees: float) -> torch.Tensor:
    """Vectors of different lengths at these angles from the first axis: their cosine similarities are known."""
    radians = torch.tensor(degrees).deg2rad()
    lengths = 1 + torch.arange(len(degrees))[:, None]
    return lengths * torch.stack([radians.cos(), radians.sin()], dim=1)


@pytest.mark.parametrize(("temperature", "winner"), [(0.1, 0), (1.0, 1)])
def test_one_near_image_outvotes_two_far_ones_at_a_low_temperature_only(temperature, winner):
    # by hand: exp(1/.1) = 2.2e4 against 2 exp(.5/.1) = 297; but e = 2.718 against 2 exp(.5) = 3.297
    train, labels = angles(0, 60, -60), torch.tensor([0, 1, 1])
    assert nearest_neighbours(train, labels, angles(0), torch.tensor([winner]), temperature=temperature) == 1.0


def test_the_papers_temperature_is_the_default():
    # equal votes where exp(cos a / T) = 2 exp(cos b / T): with T = 0.1 a cosine more by 0.0693 is worth a second image
    far = math.degrees(math.acos(1 - 0.1 * math.log(2)))
    for extra, winner in ((0.5, 0), (-0.5, 1)):
        train, labels = angles(0, far + extra, -far - extra), torch.tensor([0, 1, 1])
        assert nearest_neighbours(train, labels, angles(0), torch.tensor([winner])) == 1.0


def test_chunks_do_not_matter_and_an_unknown_class_is_never_right():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(9, 4, generator=generator), torch.randn(50, 4, generator=generator)
    labels, expected = torch.arange(9) % 3, torch.arange(50) % 4
    whole = nearest_neighbours(train, labels, test, expected)
    assert nearest_neighbours(train, labels, test, expected, chunk=7) == whole
    assert nearest_neighbours(train, labels, test, torch.full((50,), 3)) == 0.0


def test_among_the_first_k_classes_means_among_those_that_get_most():
    train, labels = torch.eye(7), torch.arange(7)
    test = torch.tensor([[7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]).repeat(7, 1)  # class k comes k-th
    shares = [nearest_neighbours(train, labels, test, labels, top=top) for top in range(1, 8)]
    assert shares == pytest.approx([top / 7 for top in range(1, 8)])
    figures = describe(train, labels, test, labels, classes=7, temperature=0.1)
    assert figures["snn_top5_accuracy"] == pytest.approx(5 / 7)
    for top in (0, 8):
        with pytest.raises(ValueError, match=f"top = {top}; it must be in 1 to 7"):
            nearest_neighbours(train, labels, test, labels, top=top)


def test_the_description_tells_a_collapse_from_a_classifier():
    train, labels = torch.eye(4), torch.arange(4)
    sharp = describe(train, labels, torch.eye(4).repeat(3, 1), labels.repeat(3), classes=5, temperature=0.01)
    # the fifth class has no image: it is never predicted
    expected = {"classes_predicted": 4.0, "exp_mean_entropy": 4.0, "exp_entropy": 1.0, "snn_accuracy": 1.0}
    assert sharp == pytest.approx(expected, abs=1e-4)
    one = describe(train, labels, train[:1].repeat(3, 1), None, classes=5, temperature=0.01)
    assert one == pytest.approx({"classes_predicted": 1.0, "exp_mean_entropy": 1.0, "exp_entropy": 1.0}, abs=1e-4)
    flat = describe(train, labels, torch.ones(3, 4), None, classes=5, temperature=0.1)
    assert flat == pytest.approx({"classes_predicted": 1.0, "exp_mean_entropy": 4.0, "exp_entropy": 4.0}, abs=1e-4)
