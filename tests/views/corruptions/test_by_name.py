# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.config.evaluation import CORRUPTIONS, SEVERITIES
from recipes_lib.data import pantry
from recipes_lib.views.corruptions import corrupt
from recipes_lib.views.corruptions.rounding import rounded, to_bytes

RANDOM = {
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
}
NOT_RISING = {
    # The published strengths themselves: pixels are moved less and less far at higher severities (elastic_transform),
    # a wider blur follows a narrower one (glass_blur), a shorter path a longer one (motion_blur), and less weight of
    # the image leaves less to change (frost, fog, snow).
    32: {"glass_blur", "motion_blur", "frost", "elastic_transform"},
    64: {"glass_blur", "frost", "elastic_transform"},
    224: {"glass_blur", "snow", "frost", "fog", "elastic_transform"},
}


@pytest.fixture(scope="module")
def images():
    """Pantry images of each published side: {side: uint8 [B, 3, side, side]}."""
    counts = {32: 64, 64: 32, 224: 8}
    draw = {"split": "test", "seed": 0, "scenes": "natural"}
    return {side: pantry.dataset(count, size=side, **draw).images for side, count in counts.items()}


def change(images, name, severity):
    corrupted = corrupt(images, name, severity, torch.arange(len(images)))
    return (corrupted.float() - images.float()).abs().mean().item() / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [32, 64, 224])
def test_the_mean_change_rises_with_the_severity_wherever_the_published_strengths_make_it(images, side, name):
    changes = [change(images[side], name, severity) for severity in SEVERITIES]
    assert all(0.003 < amount < 0.5 for amount in changes), changes
    rises = changes == sorted(changes) and len(set(changes)) == 5
    assert rises or name in NOT_RISING[side], changes


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_batch_is_corrupted_as_each_of_its_images_alone(images, name):
    some, indices = images[32][:6], torch.tensor([5, 0, 70_000, 3, 1, 9])
    together = corrupt(some, name, 4, indices)
    alone = [corrupt(some[i : i + 1], name, 4, indices[i : i + 1]) for i in range(6)]
    assert together.dtype == torch.uint8
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_random_numbers_come_from_the_seed_the_index_and_the_severity(images, name):
    same = images[32][:1].expand(2, -1, -1, -1)
    first, other = corrupt(same, name, 3, torch.tensor([0, 1]))
    assert torch.equal(first, corrupt(same, name, 3, torch.tensor([0, 1]))[0])
    assert torch.equal(first, other) == (name not in RANDOM)
    assert torch.equal(first, corrupt(same, name, 3, torch.tensor([0, 1]), seed=1)[0]) == (name not in RANDOM)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_need_not_be_square_and_may_be_small(name):
    draw = torch.Generator().manual_seed(0)
    for height, width in ((48, 80), (8, 8)):
        images = torch.randint(256, (2, 3, height, width), dtype=torch.uint8, generator=draw)
        for severity in (1, 5):
            assert corrupt(images, name, severity, torch.arange(2)).shape == images.shape


@pytest.mark.parametrize("name", ["brightness", "jpeg_compression", "pixelate"])
def test_float_images_are_rounded_to_bytes_first(images, name):
    pictures, indices = images[32][:4], torch.arange(4)
    found = corrupt(pictures.double() / 255 + 1e-3, name, 2, indices)
    assert found.dtype == torch.float64
    assert torch.equal((found * 255).round().byte(), corrupt(pictures, name, 2, indices))


def test_a_large_batch_is_worked_off_in_parts(images, monkeypatch):
    whole = corrupt(images[32][:8], "fog", 3, torch.arange(8))
    monkeypatch.setattr("recipes_lib.views.corruptions.by_name._PART", 3 * 3 * 32 * 32)
    assert torch.equal(corrupt(images[32][:8], "fog", 3, torch.arange(8)), whole)


def test_fractions_of_a_byte_are_cut_off_but_rounding_errors_are_not():
    values = torch.tensor([0.0, 51 / 255, 51.9 / 255, 52 / 255 - 1e-7, 1.0, 1.5, -0.2])
    assert to_bytes(values).tolist() == [0, 51, 51, 52, 255, 255, 0]
    assert (rounded(values) * 255).round().tolist() == [0, 51, 52, 52, 255, 255, 0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": "rain"}, "There is no corruption 'rain'. There are gaussian_noise, "),
        ({"severity": 0}, "severity = 0: use 1 to 5."),
        ({"images": torch.zeros(2, 1, 32, 32, dtype=torch.uint8)}, "give \\[B, 3, H, W\\]"),
        ({"indices": torch.arange(3)}, "and 3 indices"),
        ({"images": torch.zeros(2, 3, 32, 32, dtype=torch.int64)}, "images are torch.int64: give uint8"),
        ({"images": torch.zeros(2, 3, 7, 32, dtype=torch.uint8)}, "images of 7x32 pixels: both sides must have 8."),
    ],
)
def test_wrong_input_is_refused_in_a_line(changes, line):
    given = {"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "name": "fog", "severity": 1}
    with pytest.raises(ValueError, match=line):
        corrupt(**{**given, "indices": torch.arange(2), **changes})
