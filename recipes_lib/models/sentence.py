# SPDX-License-Identifier: Apache-2.0
"""Sentence encoders: texts to unit vectors whose cosine says how near their meanings are."""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.errors import DataError
from recipes_lib.models import minilm


class TextEncoder(Protocol):
    """What turns texts into unit vectors."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """A unit vector for each text, the empty one included: float32 [n, d]."""
        ...


def load_encoder(name: str) -> TextEncoder:
    """``minilm``: all-MiniLM-L6-v2 from its package; ``ngrams``: :class:`HashedNgrams`; anything else is the name or
    folder of a model of the sentence-transformers library.

    Raises: ``DataError`` where weights or packages are absent. No encoder ever stands in for another.
    """
    if name == "minilm":
        return minilm.load()
    return HashedNgrams() if name == "ngrams" else SentenceTransformer(name)


class HashedNgrams:
    """Counts of words and of three-letter pieces of words, hashed to ``dim`` places: an encoder without weights.

    It knows spelling and no meaning ("dog" and "puppy" share nothing), so it is far weaker than a trained encoder;
    tests and machines without weights use it, by name.
    """

    def __init__(self, dim: int = 1024) -> None:
        if dim < 1:
            raise ValueError(f"dim = {dim}; use a size of at least 1.")
        self.num_features = dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, of which no coordinate is negative: float32 [n, dim]."""
        counts = torch.zeros(len(texts), self.num_features)
        for row, text in enumerate(texts):
            for piece, count in Counter(_pieces(text)).items():
                counts[row, zlib.crc32(piece.encode("utf-8", "replace")) % self.num_features] += count
        return F.normalize(counts.sqrt(), dim=1)  # the root: a word said ten times is not ten times as telling


def _pieces(text: str) -> list[str]:
    """Words, and three letters each of the words with a blank at both ends, marked by #. No text is without a piece."""
    words = re.findall(r"\w+", text.lower()) or [""]
    return words + [f" {word} "[start : start + 3] + "#" for word in words for start in range(len(word))]


class SentenceTransformer:
    """A model of the sentence-transformers library, for full-scale scoring and other languages.

    Raises: ``DataError`` where the library is not installed or finds no model of this name or in this folder.
    """

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer as Model
        except ImportError:
            raise DataError(
                f"The sentence encoder {name!r} needs the package sentence-transformers: "
                "pip install sentence-transformers. Without it there are: minilm, ngrams."
            ) from None
        try:
            self.model = Model(name)
        except (OSError, ValueError) as error:
            raise DataError(
                f"No sentence encoder could be loaded from {name!r} ({str(error).partition(chr(10))[0]}). "
                "Use minilm, ngrams, a folder of the sentence-transformers library, or a name that it can download."
            ) from None

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors: float32 [n, d], on the device of the model."""
        found = self.model.encode(
            [*texts, ""],  # of no texts it would return a tensor without d
            normalize_embeddings=True,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        return found[:-1].float()
