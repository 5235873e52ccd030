# SPDX-License-Identifier: Apache-2.0
"""Removes phrases about the medium, such as "a photo of", which do not say what an image shows.

Source: Mahmoud et al., "Sieve: Multimodal Dataset Pruning Using Image Captioning Models", arXiv 2310.02110, and the
    order of phrases in its official code.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

PHRASES = ("an image of", "a photo of", "stock photo", "photo stock", "a photo", "an image", "image", "photo")


def remove_phrases(text: str, phrases: Sequence[str] = PHRASES, boundary: Literal["word", "substring"] = "word") -> str:
    """Removes ``phrases`` from ``text``, in upper or lower case.

    ``word``: only whole words are removed, longer phrases before shorter ones. White space of any kind and length
    (newlines, tabs, no-break spaces) is replaced by one blank, before and after. ``substring``: phrases are removed one
    after another in the given order, also inside words, and white space stays. The official code does this, so that
    "photographer" becomes "grapher".

    Raises: ``ValueError`` for another ``boundary`` and for an empty phrase.
    """
    if boundary not in ("word", "substring"):
        raise ValueError(f"boundary = {boundary!r}; there are: word, substring.")
    patterns = _patterns(tuple(phrases), boundary)
    if boundary == "substring":
        for pattern in patterns:
            text = pattern.sub("", text)
        return text
    text = _with_single_blanks(text)
    for pattern in patterns:
        text = pattern.sub("", text)
    return _with_single_blanks(text)


def _with_single_blanks(text: str) -> str:
    return " ".join(text.split())


@lru_cache(maxsize=8)
def _patterns(phrases: tuple[str, ...], boundary: str) -> list[re.Pattern[str]]:
    if not all(phrase.strip() for phrase in phrases):
        raise ValueError(f"phrases = {phrases!r} has an empty one; leave it out.")
    if boundary == "substring":
        return [re.compile(re.escape(phrase), re.IGNORECASE) for phrase in phrases]
    longest_first = sorted(map(_with_single_blanks, phrases), key=len, reverse=True)
    any_of_them = "|".join(re.escape(phrase) for phrase in longest_first)
    # lookarounds, not \b: a phrase may begin or end with a character that is no letter, as in "photo:"
    return [re.compile(rf"(?<!\w)(?:{any_of_them})(?!\w)", re.IGNORECASE)] if phrases else []
