# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib import randomness
from recipes_lib.data import digits as drawn_digits
from recipes_lib.recipes.nac import tasks, toys
from recipes_lib.recipes.nac.tasks import Part


def keys(count: int, epoch: int = 0) -> torch.Tensor:
    return randomness.sample_keys(0, epoch, torch.arange(count))


def test_digits_are_real_scans_of_which_no_test_scan_is_trained_on():
    task = tasks.digits()
    assert [len(part.labels) for part in (task.train, task.validation, task.test)] == [997, 300, 500]
    assert (float(task.train.inputs.min()), float(task.train.inputs.max())) == (-1.0, 1.0)
    theirs = drawn_digits.dataset(500, size=8, seed=0, split="test")  # 500 images: each of its scans once
    assert torch.equal(theirs.labels, task.test.labels)
    assert task.tokens(24)(task.test.inputs).values.shape == (500, 16, 24 + 16)


def test_a_task_of_some_classes_numbers_them_from_0():
    task = tasks.digits()
    some = tasks.only(task, range(6, 10))
    assert some.classes == 4
    assert some.test.labels.unique().tolist() == [0, 1, 2, 3]
    chosen = (task.test.labels >= 6).nonzero()[:, 0]
    assert torch.equal(some.test.inputs, task.test.inputs[chosen])


def test_distortions_are_small_and_depend_on_the_key_alone():
    task = tasks.digits()
    images = task.train.inputs[:200]
    moved = tasks.distort_scans(images, keys(200))
    torch.testing.assert_close(tasks.distort_scans(images[3:5], keys(200)[3:5]), moved[3:5])
    assert (tasks.distort_scans(images, keys(200, epoch=1)) - moved).abs().mean() > 0.05
    assert 0.1 < (moved - images).square().mean().sqrt() < 0.5
    blank = tasks.distort_scans(torch.full((500, 1, 8, 8), -1.0), keys(500))
    assert float(blank.mean()) == pytest.approx(-1, abs=0.005)  # what comes in from outside is paper
    assert float(blank.std()) == pytest.approx(tasks.NOISE, rel=0.02)


def test_distortions_without_a_move_or_noise_are_none(monkeypatch):
    for name in ("ANGLE", "SCALE", "SHIFT", "NOISE"):
        monkeypatch.setattr(tasks, name, 0.0)
    images = tasks.digits().train.inputs[:5]
    torch.testing.assert_close(tasks.distort_scans(images, keys(5)), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "classes", "vocabulary"), [("symbols", 10, 15), ("letters", 4, 256)])
def test_sequences_have_one_length_and_tokens_of_their_vocabulary(kind, classes, vocabulary):
    task = tasks.sequences(kind, 0, train=50, length=20)
    assert task.classes == classes
    assert task.train.inputs.shape == (50, 20)
    assert int(task.train.inputs.max()) <= vocabulary
    tokens = task.tokens(8)(task.train.inputs)
    assert tokens.hidden.any().item() == (kind == "symbols")
    assert task.test.inputs.shape == (1000, 20)


def test_clouds_are_a_task_of_four_solids():
    task = tasks.clouds(3, train=20, points=10)
    assert torch.equal(task.train.inputs, toys.clouds(20, 10, seed=3, split="train").points)
    assert task.validation.inputs.shape == (500, 10, 3)
    assert (task.test.inputs[:20] - task.train.inputs).abs().max() > 0.1
    assert task.tokens(8)(task.train.inputs).values.shape == (20, 10, 8)


def test_a_part_is_chosen_by_a_condition_or_by_indices():
    part = Part(torch.arange(4.0), torch.tensor([1, 0, 1, 0]))
    assert part.where(part.labels == 1).inputs.tolist() == [0, 2]
    assert part.where(torch.tensor([3, 0])).labels.tolist() == [0, 1]


def test_corrupted_scans_have_more_noise_or_lack_rows_or_are_moved_by_a_pixel():
    images = tasks.digits().test.inputs[:100]
    noisy = tasks.corrupt(images, "noise", keys(100)) - images
    assert float(noisy.std()) == pytest.approx(6 * tasks.NOISE, rel=0.03)
    blank = (tasks.corrupt(images + 2, "rows", keys(100)) == -1).all(dim=3)[:, 0]  # [100, 8]; no other value is -1
    assert blank.sum(1).tolist() == [2] * 100
    assert (blank[:, :-1] & blank[:, 1:]).sum(1).tolist() == [1] * 100
    moved = tasks.corrupt(images, "shift", keys(100))
    ways = set()
    for image, other in zip(images[:, 0], moved[:, 0], strict=True):
        fits = [
            (down, right)
            for down in (-1, 1)
            for right in (-1, 1)
            if torch.equal(
                other[max(0, -down) : 8 - max(0, down), max(0, -right) : 8 - max(0, right)],
                image[max(0, down) : 8 - max(0, -down), max(0, right) : 8 - max(0, -right)],
            )
        ]
        assert fits
        ways.add(fits[0])
    assert len(ways) == 4
