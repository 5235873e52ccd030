# SPDX-License-Identifier: Apache-2.0
"""Tests the text part of Sieve on real alt-texts of 278 Wikipedia images, each with one description by a captioner.

The data may not be shipped: it is read from the folder in ``RECIPES_DATA``, and only aggregates are stored. Kreiss et
al. collected the descriptions and alt-texts (Concadia, arXiv 2104.08376).
"""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes_lib.errors import DataError
from recipes_lib.models.sentence import TextEncoder, load_encoder
from recipes_lib.recipes.sieve import separation
from recipes_lib.recipes.sieve.pair_scores import cosines
from recipes_lib.recipes.sieve.phrases import PHRASES, remove_phrases

SHIFTS = 10
"""Number of wrong descriptions that each alt-text is compared with."""


def measure(seed: int) -> dict[str, Any]:
    """AUCs of right against wrong descriptions by encoder, and shares of web texts with a phrase about the medium.

    ``seed`` chooses the ten other images whose descriptions are the wrong ones.

    Raises: ``DataError`` without the data.
    """
    texts, descriptions = _wikipedia()
    found = {
        "minilm": auc(load_encoder("minilm"), texts, descriptions, seed),
        "with_phrases": auc(load_encoder("minilm"), texts, descriptions, seed, phrases=()),
        "ngrams": auc(load_encoder("ngrams"), texts, descriptions, seed),
    }
    shares = {
        name: phrase_share(_column(f"web_alttext/{name}.csv", "text")) for name in ("raw_alttext", "cc3m_val_captions")
    }
    return {"auc": found, "phrases": shares, "pairs": len(texts)}


def auc(
    encoder: TextEncoder, texts: Sequence[str], descriptions: Sequence[str], seed: int, phrases: Sequence[str] = PHRASES
) -> float:
    """The AUC: probability that a text is nearer to its own description than a text to another image's description."""
    count = len(texts)
    shifts = [0, *range(1 + SHIFTS * seed, 1 + SHIFTS * (seed + 1))]
    rows = [[descriptions[(row + shift) % count] for shift in shifts] for row in range(count)]
    scores = cosines(encoder, texts, rows, phrases=phrases).numpy()  # [N, 1 + SHIFTS]
    own = np.zeros_like(scores, dtype=bool)
    own[:, 0] = True
    return separation.auc(scores.ravel(), own.ravel())


def phrase_share(texts: Sequence[str]) -> float:
    """The share of texts, in [0, 1], that contain a phrase about the medium."""
    return float(np.mean([remove_phrases(text) != " ".join(text.split()) for text in texts]))


def _wikipedia() -> tuple[list[str], list[str]]:
    name = "wiki_alttext64/texts.csv"
    return _column(name, "alt_text"), [json.loads(text) for text in _column(name, "generated_descr_json")]


def _column(name: str, column: str) -> list[str]:
    folder = os.environ.get("RECIPES_DATA")
    path = Path(folder or "", name)
    if not folder or not path.is_file():
        raise DataError(f"{name} is not in RECIPES_DATA = {folder}. Set it to the folder of the test data.")
    with path.open(newline="", encoding="utf-8") as file:
        return [row[column] for row in csv.DictReader(file)]
