# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.data import pantry
from recipes_lib.data.pantry import lettering
from recipes_lib.randomness import sample_keys


def noise(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def stamp(images: torch.Tensor, words: list[str]) -> torch.Tensor:
    return lettering.stamp(images, words, sample_keys(0, 0, torch.arange(len(images))))


def band(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The rows of one picture that changed."""
    return (before != after).any(0).any(1).nonzero()[:, 0]


def test_no_word_leaves_the_picture_as_it_is():
    images = noise(3)
    stamped = stamp(images, ["", "mug", ""])
    assert torch.equal(stamped[[0, 2]], images[[0, 2]])
    assert not torch.equal(stamped[1], images[1])


@pytest.mark.parametrize("size", [16, 32, 64, 224])
@pytest.mark.parametrize("word", ["pot", "goblet"])
def test_the_band_covers_one_edge_and_less_than_a_third(size, word):
    images = noise(8, size)
    for before, after in zip(images, stamp(images, [word] * 8), strict=True):
        rows = band(before, after)
        assert int(rows.min()) == 0 or int(rows.max()) == size - 1
        assert len(rows) <= max(0.3 * size, 11)


def test_letters_of_six_letter_words_stay_inside_a_small_picture():
    for word in ("goblet", "bottle", "carrot"):
        image = stamp(noise(1), [word])[0, 0]
        rows = band(noise(1)[0], stamp(noise(1), [word])[0])
        edges = image[rows][:, [0, -1]]
        assert len(edges.unique()) == 1  # nothing of a letter at the left and right border


def test_words_look_different_from_each_other():
    images = noise(1).expand(12, -1, -1, -1)
    stamped = stamp(images, pantry.CLASSES)
    assert len(stamped.flatten(1).unique(dim=0)) == 12


def test_both_edges_and_both_polarities_come_up_whatever_the_word():
    images = noise(64)
    stamped = stamp(images, ["mug"] * 64)
    tops = [int(band(*pair).min()) == 0 for pair in zip(images, stamped, strict=True)]
    paints = [int(after[0, 0 if top else -1, 0]) for after, top in zip(stamped, tops, strict=True)]
    assert 10 < sum(tops) < 54
    assert 10 < paints.count(0) < 54
    assert set(paints) == {0, 255}


def test_a_picture_is_stamped_alike_alone_and_among_others():
    images, keys = noise(5), sample_keys(0, 0, torch.arange(5))
    together = lettering.stamp(images, ["jar"] * 5, keys)[3:4]
    assert torch.equal(together, lettering.stamp(images[3:4], ["jar"], keys[3:4]))


def test_a_last_bit_of_the_picture_does_not_move_its_band():
    images = noise(16)
    nearly = images.clone()
    nearly[:, 0, 16, 16] ^= 1
    differs = stamp(images, ["pan"] * 16) != stamp(nearly, ["pan"] * 16)
    assert int(differs.sum()) == 16


def test_one_word_and_one_key_an_image_are_needed():
    with pytest.raises(ValueError, match="2 words and 3 keys for 3 images"):
        stamp(noise(3), ["a", "b"])
    with pytest.raises(ValueError, match="3 words and 1 keys for 3 images"):
        lettering.stamp(noise(3), ["a", "b", "c"], sample_keys(0, 0, torch.arange(1)))
