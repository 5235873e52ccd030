# SPDX-License-Identifier: Apache-2.0
"""Networks that answer :mod:`questions`: the sentence generates the circuit, or its tokens join those of the images.

The first is the paper's way on NLVR2. The second is what a dense network does, which has no circuit to generate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipes_lib.models.nac.network import NeuralAttentiveCircuit
from recipes_lib.models.nac.tokens import BYTES, ImageTokens, PairTokens, TextEncoder, Tokens
from recipes_lib.recipes.nac import questions, tasks
from recipes_lib.recipes.nac.questions import LENGTH, Questions
from recipes_lib.recipes.nac.tasks import Part, Task


@dataclass(frozen=True)
class Asked:
    """Pairs of images with a text each, which are chosen together like the rows of a tensor."""

    pairs: Tensor
    """float32 [N, 2, 1, side, side]"""
    texts: Tensor
    """int64 [N, L]"""

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, rows: Tensor) -> "Asked":
        return Asked(self.pairs[rows], self.texts[rows])


class JointTokens(nn.Module):
    """The tokens of the images, then those of the text, mapped to the width of the images' tokens.

    Shapes: B pairs with texts of L ids -> [B, 2 V + L, d_in], V and d_in those of ``pairs``.
    """

    def __init__(self, pairs: PairTokens, texts: TextEncoder) -> None:
        super().__init__()
        self.pairs, self.texts, self.width = pairs, texts, pairs.width
        self.lift = nn.Linear(texts.width, pairs.width)

    def forward(self, asked: Asked) -> Tokens:
        """All tokens."""
        images, text = self.pairs(asked.pairs).values, self.texts(asked.texts)
        seen = torch.zeros(images.shape[:2], dtype=torch.bool, device=images.device)
        return Tokens(torch.cat([images, self.lift(text.values)], dim=1), torch.cat([seen, text.hidden], dim=1))


class Answering(nn.Module):
    """A circuit over the images that the text generates, as a backbone.  B pairs with texts -> [B, d]"""

    def __init__(self, network: NeuralAttentiveCircuit, texts: TextEncoder) -> None:
        super().__init__()
        self.network, self.texts, self.num_features = network, texts, network.num_features

    def forward(self, asked: Asked, *, kept: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """The representation; ``kept`` and ``keys`` are those of the circuit."""
        return self.network(asked.pairs, text=self.texts(asked.texts), kept=kept, keys=keys)

    def use(self, asked: Asked) -> Tensor:
        """How much the output modules attend to each module: [B, U], each row a distribution."""
        return self.network.use(asked.pairs, text=self.texts(asked.texts))


def pair_tokens(width: int) -> PairTokens:
    """The tokens of two scans of digits: 32 patches of 2x2 pixels."""
    return PairTokens(ImageTokens(8, 2, width, stem="patch", position_width=16, channels=1))


def text_encoder(width: int) -> TextEncoder:
    """An encoder of the sentences' bytes."""
    return TextEncoder(BYTES, LENGTH, width, depth=1, heads=2)


def joint_tokens(width: int) -> JointTokens:
    """The tokens of two scans and of a sentence."""
    return JointTokens(pair_tokens(width), text_encoder(width))


def task(seed: int, *, train: int = 6000, sentences: Sequence[int] = (0, 1)) -> tuple[Task, dict[str, Questions]]:
    """The questions as a task of two classes, false and true, and the same questions with their factors.

    ``sentences``: positions in :data:`questions.SENTENCES`. The default asks only which digits are even: no network of the
    toy's size learned all six sentences in two minutes of one core.
    """
    scans = tasks.digits()
    drawn = {
        "train": questions.draw(scans.train, train, seed=seed, split="train", sentences=sentences),
        "validation": questions.draw(scans.validation, 600, seed=seed, split="validation", sentences=sentences),
        "test": questions.draw(scans.test, 1200, seed=seed, split="test", sentences=sentences),
    }
    parts = {split: Part(Asked(each.pairs, each.texts), each.labels) for split, each in drawn.items()}

    def distort(asked: Asked, keys: Tensor) -> Asked:
        return Asked(questions.distort(asked.pairs, keys), asked.texts)

    return Task(**parts, classes=2, tokens=joint_tokens, distort=distort), drawn
