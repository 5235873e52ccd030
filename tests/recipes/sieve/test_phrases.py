# SPDX-License-Identifier: Apache-2.0
import pytest

from recipes_lib.recipes.sieve.phrases import PHRASES, remove_phrases


@pytest.mark.parametrize(
    ("text", "substring", "word"),
    [
        ("A photo of a dog", " a dog", "a dog"),
        ("photographer at an imaged photostock", "grapher at d stock", "photographer at an imaged photostock"),
        ("an image of photo of cat", "  of cat", "of cat"),
        ("image", "", ""),
        ("imagination", "imagination", "imagination"),
        ("", "", ""),
    ],
)
def test_both_boundaries_give_the_values_worked_out_by_hand(text, substring, word):
    assert remove_phrases(text, boundary="substring") == substring
    assert remove_phrases(text, boundary="word") == word


def test_substrings_go_in_the_order_given_and_words_longest_first():
    backwards = PHRASES[::-1]
    assert remove_phrases("a photo of a dog", backwards, "substring") == "a  of a dog"
    assert remove_phrases("a photo of a dog", backwards, "word") == "a dog"


@pytest.mark.parametrize(
    "text", ["a photo\nof a red car", "a  photo of\ta red car", "a\N{NO-BREAK SPACE}photo of a red\ncar"]
)
def test_white_space_of_any_kind_inside_a_phrase_counts_as_one_blank(text):
    assert remove_phrases(text) == "a red car"
    assert remove_phrases("a photo of a red car", ["a \n photo of"]) == "a red car"


def test_a_phrase_is_text_and_no_pattern():
    assert remove_phrases("stock (c) of a cat.jpg", ["(c)", ".jpg"]) == "stock of a cat.jpg"
    assert remove_phrases("stock (c) of a cat.jpg", ["(c)", ".jpg"], "substring") == "stock  of a cat"


def test_without_phrases_the_text_stays():
    assert remove_phrases("a photo", ()) == "a photo"
    assert remove_phrases(" a  photo", (), "substring") == " a  photo"


def test_removing_twice_in_words_changes_nothing_more_in_ordinary_texts():
    for text in ("A photo of a dog", "stock photo: a cup", "an image of photo of cat", "ünïcode photo 📷 image"):
        once = remove_phrases(text)
        assert remove_phrases(once) == once


@pytest.mark.parametrize(("argument", "value"), [("boundary", "line"), ("phrases", ["a", " "])])
def test_what_cannot_be_meant_is_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        remove_phrases("a dog", **{argument: value})
