# SPDX-License-Identifier: Apache-2.0
"""Makes true captions of pictures from their factors.

>>> from recipes_lib.data import pantry
>>> captions(pantry.sample_factors(2, seed=0), seed=0)
['a shiny orange mug on a wooden table', 'a glossy purple banded jar on planks next to a jar and a mug']
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recipes_lib.data.pantry.factors import BACKGROUNDS, CLASSES, MATERIALS, PATTERNS, STYLES, Factors
from recipes_lib.data.pantry.words import PLAIN, UNUSUAL, Lexicon, Wording, name_colours
from recipes_lib.randomness import sample_keys, uniform

LONGEST = 14
"""Number of words of the longest plain caption."""

_DRAWS = 16


def captions(factors: Factors, seed: int, *, wording: Wording = "plain", start: int = 0) -> list[str]:
    """Makes a true caption per image: its object, colour, place and style, and some of the other factors.

    ``plain`` captions have 5 to ``LONGEST`` words and name the class; ``unusual`` captions contain no word of
    ``CLASSES``, but synonyms and periphrases. A caption of a sketch names no colours, because a sketch shows none.
    ``start`` is the position of the first image in the data set: the words derive from (seed, position) only.

    Raises: ``ValueError`` for an unknown wording.
    """
    return describe(factors, sample_keys(seed, 0, start + torch.arange(len(factors))), wording)


def describe(factors: Factors, keys: Tensor, wording: Wording) -> list[str]:
    """:func:`captions` with the words of each image drawn from a given key: ``keys`` int64 [N]."""
    if wording not in ("plain", "unusual"):
        raise ValueError(f"wording = {wording!r} is not known. Use plain or unusual.")
    lexicon, longest = (PLAIN, LONGEST) if wording == "plain" else (UNUSUAL, None)
    draws = uniform(keys, f"pantry {wording} caption", _DRAWS).tolist()
    return [_caption(scene, lexicon, iter(row), longest) for scene, row in zip(_scenes(factors), draws, strict=True)]


class _Scene(NamedTuple):
    """The names of one picture's factors."""

    label: str
    material: str
    pattern: str
    ground: str
    style: str
    colour: str
    ground_colour: str
    others: list[str]


def _scenes(factors: Factors) -> Iterator[_Scene]:
    lists = {"label": CLASSES, "material": MATERIALS, "pattern": PATTERNS, "background": BACKGROUNDS, "style": STYLES}
    names = [[names[row] for row in getattr(factors, field).tolist()] for field, names in lists.items()]
    colours = name_colours(factors.colour), name_colours(factors.table_colour)
    others = zip(factors.extra_label.tolist(), factors.objects.tolist(), strict=True)
    for label, material, pattern, ground, style, colour, below, (extra, count) in zip(
        *names, *colours, others, strict=True
    ):
        if material == "metal" and colour == "grey":
            colour = "silver"
        if style == "sketch":
            colour = below = ""
        yield _Scene(label, material, pattern, ground, style, colour, below, [CLASSES[i] for i in extra[: count - 1]])


def _caption(scene: _Scene, lexicon: Lexicon, draws: Iterator[float], longest: int | None) -> str:
    """The caption of a scene; if it would be too long, the least important words are left out first."""

    def pick(options: Sequence[str], share: float = 1.0) -> str:
        """One of ``options`` in the share ``share`` of captions, else ""; "" if there are no options."""
        draw = next(draws)
        return options[int(draw / share * len(options))] if options and draw < share else ""

    order = int(next(draws) * 3)
    noun, colour = pick(lexicon.nouns[scene.label]), pick(lexicon.colours.get(scene.colour, ()))
    ground, beside = pick(lexicon.grounds[scene.ground]), pick(lexicon.beside)
    look, time = pick(lexicon.looks.get(scene.style, ())), pick(lexicon.times.get(scene.style, ()))
    extra = {
        "ground colour": pick(lexicon.colours.get(scene.ground_colour, ()), 0.4),
        "finish": pick(lexicon.finishes.get(scene.material, ()), 0.5),
        "stuff": pick(lexicon.stuffs.get(scene.material, ()), 0.7),
        "pattern": pick(lexicon.patterns.get(scene.pattern, ()), 0.9),
    }
    others = [_thing(pick(lexicon.nouns[label]), []) for label in scene.others]

    def text() -> str:
        thing = _thing(noun, [extra["finish"], colour, extra["pattern"], extra["stuff"]])
        place = ground.format(extra["ground colour"])
        company = [beside, " and ".join(others)] if others else []
        orders = (
            [thing, "on", place, *company],
            [thing, *company, "on", place],
            [place, "with", " and ".join([thing, *others]), "on top"],
        )
        return _tidy([look, *orders[order], time])

    while longest and len(text().split()) > longest:
        if any(extra.values()):
            extra[next(part for part, word in extra.items() if word)] = ""
        else:
            others.pop()
    return text()


def _thing(noun: str, adjectives: list[str]) -> str:
    """A noun or a periphrasis, with its adjectives and article."""
    words = " ".join(adjectives)
    return noun.format(words) if "{}" in noun else f"a {words} {noun}"


def _tidy(parts: list[str]) -> str:
    """Joins phrases with one blank between words, and writes "an" before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", " ".join(" ".join(parts).split()))
