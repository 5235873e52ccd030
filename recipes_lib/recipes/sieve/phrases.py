# SPDX-License-Identifier: Apache-2.0
"""Medium phrases, "a photo of" and the like: they say how a picture was made, and nothing of what it shows.

Source: Mahmoud et al., "Sieve: Multimodal Dataset Pruning Using Image Captioning Models", arXiv 2310.02110, and the
    order of phrases in its official code.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

PHRASES = ("an image of", "a photo of", "stock photo", "photo stock", "a photo", "an image", "image", "photo")


def remove_phrases(text: str, phrases: Sequence[str] = PHRASES, boundary: Literal["word", "substring"] = "word") -> str:
    """``text`` without ``phrases``, whatever their case.

    ``word``: whole words only, a longer phrase before a shorter one. White space of any kind and length (newlines, tabs,
    no-break spaces) counts as one blank, before and after. ``substring``: phrase by phrase in the order given, inside
    words too and with all white space kept, which is what the official code does: "photographer" becomes "grapher".

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
    # lookarounds, not \b: a phrase may begin or end with a sign that is no letter, as in "photo:"
    return [re.compile(rf"(?<!\w)(?:{any_of_them})(?!\w)", re.IGNORECASE)] if phrases else []
