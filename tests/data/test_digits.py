# SPDX-License-Identifier: Apache-2.0
import torch
from sklearn.datasets import load_digits

from recipes_lib.data import digits


def draw(count: int, **changes):
    return digits.dataset(count, **({"size": 16, "seed": 0, "split": "train"} | changes))


def test_an_image_depends_on_seed_split_and_index_alone(monkeypatch):
    few = draw(700)
    monkeypatch.setattr(digits, "_CHUNK_VALUES", 100 * 3 * 16 * 16)  # seven chunks for one
    many = draw(800)
    assert torch.equal(many.images[:700], few.images)
    assert not torch.equal(few.images, draw(700, seed=1).images)
    assert not torch.equal(few.images, draw(700, split="test").images)


def test_no_scan_is_in_both_splits_and_all_are_drawn():
    train, test = draw(1297), draw(500, split="test")
    scans = torch.cat([train.factors["scan"], test.factors["scan"]])
    assert scans.sort().values.tolist() == list(range(1797))


def test_the_held_out_scans_are_the_same_for_every_seed():
    assert torch.equal(draw(500, split="test").factors["scan"], draw(500, split="test", seed=9).factors["scan"])


def test_labels_are_those_of_the_scans():
    images = draw(200)
    assert torch.equal(images.labels, torch.from_numpy(load_digits().target)[images.factors["scan"]])
    assert images.class_names == tuple("0123456789")


def test_factors_lie_in_their_ranges_and_ink_can_be_read_on_its_paper():
    factors = draw(5000, size=8).factors
    assert factors["angle"].abs().max() <= digits.ANGLE
    assert factors["shift"].abs().max() <= digits.SHIFT
    assert digits.SCALE[0] <= factors["scale"].min() <= factors["scale"].max() <= digits.SCALE[1]
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert ((factors["ink"] - factors["paper"]) @ luma).abs().min() >= digits.CONTRAST - 1e-6


def test_an_image_shows_its_ink_on_its_paper():
    images = draw(50, size=32)
    corners = images.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean(dim=2) / 255  # [50, 3]
    assert (corners - images.factors["paper"]).abs().mean() < 0.03
    # where the scan is fully covered by ink, the pixel nearest to the ink colour has it up to the noise
    distance = (images.images.float() / 255 - images.factors["ink"][:, :, None, None]).abs().amax(dim=1)
    assert distance.flatten(1).amin(dim=1).median() < 0.1


def test_shift_moves_the_scan_right_and_down():
    scans = torch.zeros(1, 8, 8)
    scans[0, 3:5, 3:5] = 1
    still = {
        "scan": torch.tensor([0]),
        "angle": torch.zeros(1),
        "scale": torch.ones(1),
        "ink": torch.ones(1, 3),
        "paper": torch.zeros(1, 3),
    }
    image = digits._draw(scans, still | {"shift": torch.tensor([[0.25, 0.125]])}, size=16)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    assert torch.isclose((image * columns).sum() / image.sum(), torch.tensor(7.5 + 4))
    assert torch.isclose((image * rows).sum() / image.sum(), torch.tensor(7.5 + 2))
