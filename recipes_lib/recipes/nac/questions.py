# SPDX-License-Identifier: Apache-2.0
"""Two digits and a sentence that is true of them or not: a task in which the sentence may choose the circuit.

It is a small stand-in for NLVR2, with every true factor known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.recipes.nac import tasks, toys
from recipes_lib.recipes.nac.samples import text_bytes
from recipes_lib.recipes.nac.tasks import Part

SENTENCES = ("left is even", "right is even", "left is large", "right is large", "left is larger", "they are equal")
"""The sentences; a digit is large from 5 on."""
LENGTH = max(map(len, SENTENCES))
"""Bytes of the longest sentence."""


@dataclass(frozen=True)
class Questions:
    """Pairs of scans with a sentence, and whether it is true."""

    pairs: Tensor
    """float32 [N, 2, 1, 8, 8]"""
    texts: Tensor
    """int64 [N, LENGTH], the bytes of the sentence; 256 fills the row."""
    labels: Tensor
    """int64 [N]: 1 where the sentence is true. Of each sentence half are."""
    factors: dict[str, Tensor]
    """int64 [N] each: ``sentence`` (position in ``SENTENCES``), ``left`` and ``right`` (the digits)."""

    def __len__(self) -> int:
        return len(self.labels)


def is_true(sentence: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Whether each sentence is true of its digits.  int64 [N] each -> bool [N]"""
    answers = torch.stack([left % 2 == 0, right % 2 == 0, left >= 5, right >= 5, left > right, left == right])
    return answers[sentence, torch.arange(len(sentence))]


def draw(
    part: Part, count: int, *, seed: int, split: toys.Split, sentences: Sequence[int] = range(len(SENTENCES))
) -> Questions:
    """Draws pairs of scans of ``part`` with sentences, each sentence equally often, and true half of the time.

    ``part``: a part of :func:`recipes_lib.recipes.nac.tasks.digits`; ``sentences``: positions in ``SENTENCES``. A sample depends only on ``(seed, split, index)``.
    """
    keys = toys.sample_keys(seed, split, count)
    sentence = torch.tensor(sentences)[torch.arange(count) % len(sentences)]
    wanted = torch.arange(count) // len(sentences) % 2 == 1
    places = torch.zeros(count, 2, dtype=torch.int64)
    waiting, attempt = torch.ones(count, dtype=torch.bool), 0
    while waiting.any():
        rows = waiting.nonzero()[:, 0]
        drawn = (randomness.uniform(keys[rows], f"pair {attempt}", 2) * len(part.labels)).long()  # [rows, 2]
        left, right = part.labels[drawn].unbind(1)
        fits = is_true(sentence[rows], left, right) == wanted[rows]
        places[rows[fits]] = drawn[fits]
        waiting[rows[fits]] = False
        attempt += 1
    ids = [text_bytes(text, LENGTH).long() for text in SENTENCES]
    table = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=256)
    left, right = part.labels[places].unbind(1)
    factors = {"sentence": sentence, "left": left, "right": right}
    return Questions(part.inputs[places], table[sentence], wanted.long(), factors)


def distort(pairs: Tensor, keys: Tensor) -> Tensor:
    """Distorts both scans of each pair, each in its own way.  [B, 2, 1, 8, 8], int64 [B] -> the same shape"""
    other = randomness.sample_keys(1, 0, keys)
    return torch.stack([tasks.distort_scans(pairs[:, 0], keys), tasks.distort_scans(pairs[:, 1], other)], dim=1)
