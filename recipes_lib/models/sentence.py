# SPDX-License-Identifier: Apache-2.0
"""Sentence encoders: map texts to unit vectors whose cosine says how similar the meanings are."""

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
    """A model that maps texts to unit vectors."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encodes each text, even an empty one, as a unit vector.  n texts -> float32 [n, d]"""
        ...


def load_encoder(name: str) -> TextEncoder:
    """Loads the sentence encoder ``name``.

    ``minilm``: all-MiniLM-L6-v2 from its package; ``ngrams``: :class:`HashedNgrams`; any other name is the name or the
    folder of a model of the sentence-transformers library.

    Raises: ``DataError`` if weights or packages are missing. No encoder is silently replaced by another.
    """
    if name == "minilm":
        return minilm.load()
    return HashedNgrams() if name == "ngrams" else SentenceTransformer(name)


class HashedNgrams:
    """An encoder without weights: counts of words and of three-letter pieces of words, hashed to ``dim`` dimensions.

    It knows spelling but no meaning ("dog" and "puppy" have nothing in common), so it is far weaker than a trained
    encoder. It is for tests and for machines without weights, which must ask for it by name.
    """

    def __init__(self, dim: int = 1024) -> None:
        if dim < 1:
            raise ValueError(f"dim = {dim}; use a size of at least 1.")
        self.num_features = dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encodes each text as a unit vector without negative coordinates.  n texts -> float32 [n, dim]"""
        counts = torch.zeros(len(texts), self.num_features)
        for row, text in enumerate(texts):
            for piece, count in Counter(_pieces(text)).items():
                counts[row, zlib.crc32(piece.encode("utf-8", "replace")) % self.num_features] += count
        return F.normalize(counts.sqrt(), dim=1)  # the root: a word that occurs ten times is not ten times as important


def _pieces(text: str) -> list[str]:
    """The words of ``text``, and all runs of three characters of each word between blanks, marked by #; never empty."""
    words = re.findall(r"\w+", text.lower()) or [""]
    return words + [f" {word} "[start : start + 3] + "#" for word in words for start in range(len(word))]


class SentenceTransformer:
    """A model of the sentence-transformers library, for full-scale scoring and other languages.

    Raises: ``DataError`` if the library is not installed or finds no model of this name or in this folder.
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
        """Encodes each text as a unit vector, on the device of the model.  n texts -> float32 [n, d]"""
        found = self.model.encode(
            [*texts, ""],  # for an empty list it would return a tensor without the dimension d
            normalize_embeddings=True,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        return found[:-1].float()
