# SPDX-License-Identifier: Apache-2.0
import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

pytest.importorskip("pyarrow")

from recipes_lib.data.pairs import Pair
from recipes_lib.models.sentence import HashedNgrams
from recipes_lib.recipes.sieve.pair_scores import SieveScorer


class FixedCaptions:
    def __init__(self, *captions: list[str]) -> None:
        self.captions = list(captions)

    def generate(self, images, count, seeds):
        return self.captions


class Table:
    """An encoder that knows the vectors of a few texts, and notes what it was asked for."""

    def __init__(self, vectors: dict[str, tuple[float, ...]], *, normalise: bool = True) -> None:
        self.vectors, self.normalise, self.asked = vectors, normalise, []

    def encode(self, texts):
        self.asked.append(list(texts))
        rows = torch.tensor([self.vectors[text] for text in texts])
        return F.normalize(rows, dim=1) if self.normalise else rows


def pair(number: int, text: str = "a mug on a table") -> Pair:
    uid = hashlib.md5(str(number).encode()).hexdigest()
    return Pair(uid, f"{number:06d}", text, Image.new("RGB", (4, 4), (number % 256, 0, 0)))


GOLDEN = {"t": (3.0, 4, 0), "a": (1.0, 0, 0), "b": (0.0, 2, 0), "c": (1.0, 1, 1), "d": (-3.0, -4, 0)}


def test_the_score_is_the_cosine_of_the_nearest_caption():
    for captions in (["a", "b", "c", "d"], ["d", "c", "b", "a"]):
        found = SieveScorer(FixedCaptions(captions), Table(GOLDEN), count=4).score([pair(0, "t")])
        assert found.sieve.dtype == np.float32
        np.testing.assert_allclose(found.sieve, [0.8082903769], atol=1e-6)
        assert found.clip is None
        assert found.captions == [captions]


def test_more_captions_never_lower_a_score():
    found = [
        SieveScorer(FixedCaptions(["d", "a", "b", "c"][:count]), Table(GOLDEN), count=count)
        .score([pair(0, "t")])
        .sieve[0]
        for count in (1, 2, 3, 4)
    ]
    np.testing.assert_allclose(found, [-1, 0.6, 0.8, 0.8082903769], atol=1e-6)


def test_medium_phrases_are_removed_from_texts_and_captions_alike():
    encoder = Table(GOLDEN)
    captions = FixedCaptions(["a photo of c", "Stock photo d"])
    found = SieveScorer(captions, encoder, count=2).score([pair(0, "An image of t")])
    np.testing.assert_allclose(found.sieve, [0.8082903769], atol=1e-6)
    assert sorted(encoder.asked[0]) == ["c", "d", "t"]
    assert found.texts == ["An image of t"]
    assert found.captions == [["a photo of c", "Stock photo d"]]
    with_all = Table({"a photo of c": (1.0, 0), "Stock photo d": (0.0, 1), "An image of t": (0.0, 1)})
    assert SieveScorer(captions, with_all, count=2, phrases=()).score([pair(0, "An image of t")]).sieve[0] == 1


def test_an_empty_text_scores_zero_and_an_empty_caption_counts_zero():
    texts = ["", "  photo ", "t", "t", "t"]
    captions = [["a", "b"], ["c", "c"], ["", "image"], ["", "d"], ["", "a"]]
    found = SieveScorer(FixedCaptions(*captions), Table(GOLDEN), count=2).score([pair(0, text) for text in texts])
    np.testing.assert_allclose(found.sieve, [0, 0, 0, 0, 0.6], atol=1e-6)
    assert SieveScorer(FixedCaptions([""]), Table({}), count=1).score([pair(0, "")]).sieve.tolist() == [0]


def test_each_text_is_encoded_once_and_short_ones_first():
    encoder = Table({"t": (1.0, 0), "longer": (0.0, 1)})
    captions = FixedCaptions(["longer", "t"], ["t", "longer"])
    SieveScorer(captions, encoder, count=2).score([pair(0, "t"), pair(1, "longer")])
    assert encoder.asked == [["t", "longer"]]


def test_clip_sees_texts_as_they_are_and_its_scores_stand_beside():
    class Reads:
        def similarity(self, images, texts):
            assert texts == ["a photo of c"]
            return torch.tensor([0.25], dtype=torch.bfloat16)

    found = SieveScorer(FixedCaptions(["a"]), Table(GOLDEN), Reads(), count=1).score([pair(0, "a photo of c")])
    assert found.clip.dtype == np.float32
    assert found.clip.tolist() == [0.25]


@pytest.mark.parametrize("captions", [[["a"]], [["a", "b"]], [["a", "b"], ["a"]], [["a", "b"], ["a", "b"], ["a", "b"]]])
def test_a_wrong_number_of_captions_is_told(captions):
    told = rf"FixedCaptions: expected B\*r=2\*2=4 captions, got {sum(map(len, captions))}"
    with pytest.raises(ValueError, match=told):
        SieveScorer(FixedCaptions(*captions), Table(GOLDEN), count=2).score([pair(0, "t"), pair(1, "t")])


@pytest.mark.parametrize(
    "rows",
    [torch.ones(2, 3), torch.ones(3), torch.full((2, 1), torch.nan), torch.ones(1, 1), torch.ones(3, 1), torch.ones(2)],
)
def test_embeddings_that_are_not_unit_vectors_are_told(rows):
    class Wrong:
        def encode(self, texts):
            return rows

    with pytest.raises(ValueError, match=r"Wrong: expected 2 unit vectors \[n, d\], got \[\d"):
        SieveScorer(FixedCaptions(["a"]), Wrong(), count=1).score([pair(0, "t")])


def test_a_clip_that_compares_all_with_all_is_told():
    class Wrong:
        def similarity(self, images, texts):
            return torch.ones(2, 2)

    with pytest.raises(ValueError, match=r"Wrong: expected 2 scores \[n\], got \[2, 2\]"):
        SieveScorer(FixedCaptions(["a"], ["a"]), Table(GOLDEN), Wrong(), count=1).score([pair(0, "t"), pair(1, "t")])


def test_arguments_that_are_not_allowed_are_told_at_once():
    with pytest.raises(ValueError, match="count = 0"):
        SieveScorer(FixedCaptions(), HashedNgrams(), count=0)
    with pytest.raises(ValueError, match="boundary"):
        SieveScorer(FixedCaptions(), HashedNgrams(), boundary="line")
