# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.evaluation.rotation import rotation_accuracy, turned


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_the_four_turns_of_an_image_stand_together():
    some = images(5)
    found = turned(some)
    assert found.shape == (20, 3, 6, 6)
    assert torch.equal(found[::4], some)
    assert torch.equal(found[1], some[0].rot90(1, (1, 2)))
    assert torch.equal(found[7], some[1].rot90(3, (1, 2)))


def test_images_with_a_way_up_are_told_and_noise_is_not():
    some = images(200)
    assert rotation_accuracy(turned(some).flatten(1).unflatten(0, (-1, 4)), seed=0) < 0.4  # chance is 0.25
    some[:, :, :2] += 1  # the top is bright
    assert rotation_accuracy(turned(some).flatten(1).unflatten(0, (-1, 4)), seed=0) > 0.99


def test_the_turns_of_an_image_are_never_split_between_learning_and_scoring():
    """Each image has a mark of its own that turns with it: if its other turns were learned from, they would tell."""
    marks = torch.eye(40)[:, None].expand(40, 4, 40).clone()
    assert rotation_accuracy(marks, seed=0) == 0.25  # nothing distinguishes the turns


@pytest.mark.parametrize("shape", [(8, 3, 5), (7, 4, 5), (8, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"four turns of at least 8 images are wanted, \[N, 4, D\]; got"):
        rotation_accuracy(torch.zeros(shape), seed=0)
