# SPDX-License-Identifier: Apache-2.0
import doctest

import pytest
import torch

from recipes_lib.data import pantry
from recipes_lib.data.pantry import captions as module
from recipes_lib.data.pantry.captions import LONGEST, captions
from recipes_lib.data.pantry.words import COLOURS, PLAIN, UNUSUAL, name_colours

WORDINGS = ("plain", "unusual")


def scene(**values) -> pantry.Factors:
    """A red mug on a wooden table, alone, in daylight, 200 times."""
    plain = {"label": "mug", "material": "glossy", "pattern": "plain", "colour": (0.78, 0.18, 0.18)}
    rest = {"background": "wood", "table_colour": (0.42, 0.23, 0.1), "style": "photo", "objects": 1}
    return pantry.fix(pantry.sample_factors(200, seed=0), **{**plain, **rest, **values})


def words(captions: list[str]) -> set[str]:
    return {word for caption in captions for word in caption.split()}


@pytest.mark.parametrize("scenes", ["natural", "controlled"])
def test_plain_captions_are_short_and_name_the_class(scenes):
    factors = pantry.sample_factors(2000, 0, scenes)
    texts = captions(factors, 0)
    assert all(5 <= len(text.split()) <= LONGEST for text in texts)
    assert all(pantry.CLASSES[label] in text.split() for text, label in zip(texts, factors.label, strict=True))


@pytest.mark.parametrize("scenes", ["natural", "controlled"])
def test_unusual_captions_hold_no_class_name_even_inside_a_word(scenes):
    texts = captions(pantry.sample_factors(2000, 1, scenes), 1, wording="unusual")
    assert not [text for text in texts if any(name in text for name in pantry.CLASSES)]


def test_what_a_caption_tells_is_what_the_factors_say():
    told = "a red mug glossy shiny brown on wooden table with top"
    assert words(captions(scene(), 0)) == set(told.split(" "))
    assert {"metal", "striped", "kettle"} <= words(
        captions(scene(material="metal", pattern="stripes", label="kettle"), 0)
    )
    assert not {"beside", "next"} & words(captions(scene(objects=1), 0))
    both = captions(scene(objects=3, extra_label=(9, 10)), 0)
    assert all("spoon" in text for text in both)
    assert 100 < sum("apple" in text for text in both) < 200  # left out where the caption would be too long


@pytest.mark.parametrize("wording", WORDINGS)
def test_no_colour_is_told_of_a_sketch(wording):
    lexicon = PLAIN if wording == "plain" else UNUSUAL
    colours = {word for options in lexicon.colours.values() for word in options}
    assert not colours & words(captions(scene(style="sketch"), 0, wording=wording))
    assert colours & words(captions(scene(), 0, wording=wording))


@pytest.mark.parametrize("wording", WORDINGS)
def test_every_style_but_a_photograph_is_told(wording):
    texts = {style: set(captions(scene(style=style), 0, wording=wording)) for style in pantry.STYLES}
    lexicon = PLAIN if wording == "plain" else UNUSUAL
    for style, phrases in {**lexicon.looks, **lexicon.times}.items():
        assert all(any(phrase in text for phrase in phrases) for text in texts[style])
        assert not any(any(phrase in text for phrase in phrases) for text in texts["photo"])


@pytest.mark.parametrize("wording", WORDINGS)
def test_the_words_depend_on_seed_and_position_alone(wording):
    factors = pantry.sample_factors(60, 0)
    whole = captions(factors, 5, wording=wording)
    part = captions(factors.select(torch.arange(20, 60)), 5, wording=wording, start=20)
    assert whole[20:] == part
    assert captions(factors, 6, wording=wording) != whole


def test_both_lexicons_have_a_word_for_every_name():
    for lexicon in (PLAIN, UNUSUAL):
        assert set(lexicon.nouns) == set(pantry.CLASSES)
        assert set(lexicon.colours) == {*COLOURS, "silver"}
        assert set(lexicon.finishes) | set(lexicon.stuffs) == set(pantry.MATERIALS)
        assert set(lexicon.patterns) == set(pantry.PATTERNS) - {"plain"}
        assert set(lexicon.grounds) == set(pantry.BACKGROUNDS)
        assert set(lexicon.looks) | set(lexicon.times) == set(pantry.STYLES) - {"photo"}


def test_colours_have_the_name_a_person_would_give():
    seen = {"ff0000": "red", "00a000": "green", "0000ff": "blue", "ffff00": "yellow", "ffffff": "white",
            "000000": "black", "808080": "grey", "ff8000": "orange", "ffa0c0": "pink", "704214": "brown"}  # fmt: skip
    rows = torch.tensor([[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in seen])
    assert name_colours(rows) == list(seen.values())


def test_articles_fit_the_next_word():
    assert not [t for t in captions(pantry.sample_factors(500, 0), 0, wording="unusual") if " a e" in t or " an b" in t]
    assert any("an apple" in text for text in captions(scene(label="apple", style="sketch"), 0))


def test_an_unknown_wording_is_refused():
    with pytest.raises(ValueError, match=r"wording = 'odd' is not known. Use plain or unusual"):
        captions(scene(), 0, wording="odd")


def test_the_example_holds():
    assert doctest.testmod(module).failed == 0
