# SPDX-License-Identifier: Apache-2.0
"""Scores of two towers whose answers are known: images of one colour, and texts that name it."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.data.load import Splits
from recipes_lib.data.pairs import PairSet
from recipes_lib.errors import DataError
from recipes_lib.pretraining import image_text_scores
from recipes_lib.pretraining.image_text_scores import PairEval
from recipes_lib.pretraining.scoring import Scored

COLOURS = ("red", "green", "blue")
CONFIG = SimpleNamespace(
    data=SimpleNamespace(image_size=8, workers=0),
    views=SimpleNamespace(normalize="imagenet", resize="bilinear"),
    eval=PairEval(),
)


class Colour(nn.Module):
    """The mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()
        self.weight = nn.Parameter(torch.ones(()))

    def before_norm(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) * self.weight


class Towers(nn.Module):
    """Images lie where their colour is, texts where the colour is that they name; ``turn`` names the next one."""

    def __init__(self, turn: int = 0) -> None:
        super().__init__()
        self.backbone, self.turn = Colour(), turn

    def embed(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1)

    def encode_texts(self, texts: list[str]) -> Tensor:
        return torch.tensor([[(COLOURS.index(c) + self.turn) % 3 for c in COLOURS if c in text] for text in texts])

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens[:, 0], 3).float()


def pairs(labels: list[int], texts: list[str]) -> PairSet:
    images = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
    images[range(len(labels)), labels] = 255
    uids = tuple(f"{i:032x}" for i in range(len(labels)))
    return PairSet(images, torch.tensor(labels), COLOURS, texts=tuple(texts), uids=uids)


def score(towers: nn.Module, test: PairSet, names: tuple[str, ...], untrained: nn.Module | None = None) -> dict:
    return image_text_scores.score(
        Scored(
            config=CONFIG,
            method=towers,
            splits=Splits(test, test),
            probes=names,
            untrained=None if untrained is None else lambda: untrained,
            diagnostics=lambda method, features, splits: {"scale": 1.0},
        )
    )


def test_the_class_whose_sentences_are_nearest_is_the_answer():
    test = pairs([0, 1, 2, 2], ["red", "green", "blue", "blue"])
    assert score(Towers(), test, ("zero_shot",))["scores"] == {"zero_shot": {"method": 1.0}}
    mislabelled = pairs([0, 1, 2, 2], ["red"] * 4)
    mislabelled.labels[3] = 0
    both = score(Towers(), mislabelled, ("zero_shot",), Towers(turn=2))["scores"]["zero_shot"]
    assert both == {"method": 0.75, "random_init": 0.25}


def test_retrieval_is_scored_on_the_test_pairs_own_texts_both_ways():
    test = pairs([0, 1, 2], ["a red mug", "a green mug", "a red jug"])  # the third image is blue
    found = score(Towers(), test, ("retrieval",), Towers(turn=1))["scores"]
    assert set(found) == {"tr1", "tr5", "ir1", "ir5"}
    assert found["tr5"] == found["ir5"] == {"method": 1.0, "random_init": 1.0}  # of three, any is among five
    assert found["ir1"]["method"] == pytest.approx(2 / 3)
    assert 1 / 3 <= found["tr1"]["method"] < 1
    assert found["ir1"]["random_init"] < found["ir1"]["method"]


def test_nothing_asked_is_nothing_scored_but_the_diagnostics():
    found = score(Towers(), pairs([0, 1], ["red", "green"]), ())
    assert found == {"scores": {}, "spread": {}, "diagnostics": {"scale": 1.0}}


def test_texts_are_embedded_in_chunks_in_their_order():
    texts = ["red", "blue", "green", "blue", "red"]
    found = image_text_scores.embed_texts(Towers(), texts, chunk=2)
    assert found.argmax(dim=1).tolist() == [0, 2, 1, 2, 0]


def test_an_imagenet_of_other_classes_is_refused(tmp_path):
    pytest.importorskip("open_clip")
    from PIL import Image

    for place in ("train/n01", "val/n01"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "a.JPEG")
    image_text_scores.require_imagenet(tmp_path)
    config = SimpleNamespace(data=CONFIG.data, views=CONFIG.views, eval=PairEval(imagenet=tmp_path))
    with pytest.raises(DataError, match=r"has 1 classes; the sentences are of ImageNet's 1,000"):
        image_text_scores.classify(Towers(), config, Splits(None, None))
