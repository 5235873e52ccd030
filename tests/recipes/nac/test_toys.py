# SPDX-License-Identifier: Apache-2.0
import statistics

import pytest
import torch

from recipes_lib.recipes.nac import toys


def value(words: list[str]) -> int:
    """The value of an expression, computed with a stack."""
    stack: list[list] = [[]]
    for word in words:
        if word.startswith("["):
            stack.append([word])
        elif word == "]":
            operator, *values = stack.pop()
            ways = {"[MIN": min, "[MAX": max, "[MED": lambda v: int(statistics.median(v)), "[SM": lambda v: sum(v) % 10}
            stack[-1].append(ways[operator](values))
        else:
            stack[-1].append(int(word))
    ((found,),) = stack
    return found


def test_expressions_have_the_value_that_a_stack_computes_and_fit_their_length():
    drawn = toys.expressions(400, seed=0, split="train", length=30)
    for words, label in drawn:
        assert value(words.split()) == label
        assert 4 <= len(words.split()) <= 30
    assert max(words.count("[") for words, _ in drawn) > 3
    assert {word for words, _ in drawn for word in words.split() if word.startswith("[")} == set(toys.OPERATORS)


def test_all_ten_values_are_about_equally_frequent():
    counts = toys.symbols(2000, seed=0, split="train").labels.bincount(minlength=10)
    assert counts.min() > 140
    assert counts.max() < 270


def test_symbols_spell_the_expressions():
    drawn, made = (make(50, seed=3, split="test") for make in (toys.expressions, toys.symbols))
    names = [*map(str, range(10)), *toys.OPERATORS, toys.CLOSE]
    assert [" ".join(names[i] for i in ids.tolist()) for ids in made.ids] == [words for words, _ in drawn]
    assert made.labels.tolist() == [label for _, label in drawn]
    assert made.vocabulary == 15


def test_each_string_of_letters_has_its_word_and_no_other():
    made = toys.letters(400, seed=0, split="train")
    texts = [bytes(ids.tolist()).decode() for ids in made.ids]
    assert {len(text) for text in texts} == {20}
    assert all(toys.WORDS[label] in text for text, label in zip(texts, made.labels.tolist(), strict=True))
    others = [word for text, label in zip(texts, made.labels.tolist(), strict=True)
              for word in toys.WORDS if word in text and word != toys.WORDS[label]]  # fmt: skip
    assert len(others) <= 4  # 18 places, 3 words, 26 ** 3 strings of three letters: 0.3 % of the texts
    places = {text.index(toys.WORDS[label]) for text, label in zip(texts, made.labels.tolist(), strict=True)}
    assert (min(places), max(places)) == (0, 17)


def test_points_lie_on_their_solids_turned_at_random():
    made = toys.clouds(40, 500, seed=0, split="train", noise=0.0)
    lengths = made.points.norm(dim=-1)  # a turn does not change them
    sphere = lengths[made.labels == 0]
    torch.testing.assert_close(sphere, torch.ones_like(sphere))
    nearest, farthest = lengths.amin(1), lengths.amax(1)
    bounds = {1: (0.8, 0.8 * 3**0.5), 2: (1.3 / 3**0.5, 1.3), 3: (0.85, 0.85 * 2**0.5)}
    for label, (low, high) in bounds.items():
        of_it = made.labels == label
        assert nearest[of_it].min() >= low - 1e-4
        assert farthest[of_it].max() <= high + 1e-4
        assert nearest[of_it].mean() == pytest.approx(low, abs=0.02)
    faces = made.points[made.labels == 1].abs().amax(-1)  # an unturned cube's are all 0.8
    assert faces.std(dim=1).min() > 0.02


def test_solids_have_about_the_same_mean_radius():
    made = toys.clouds(80, 400, seed=0, split="train")
    means = torch.stack([made.points[made.labels == label].norm(dim=-1).mean() for label in range(4)])
    assert means.max() - means.min() < 0.15


@pytest.mark.parametrize("make", [toys.symbols, toys.letters])
def test_a_sample_depends_on_seed_split_and_index_alone(make):
    few, many = (make(count, seed=1, split="train") for count in (5, 9))
    assert all(torch.equal(a, b) for a, b in zip(few.ids, many.ids, strict=False))
    for other in (make(5, seed=2, split="train"), make(5, seed=1, split="test")):
        assert not all(torch.equal(a, b) for a, b in zip(few.ids, other.ids, strict=True))


def test_a_cloud_depends_on_seed_split_and_index_alone():
    few, many = (toys.clouds(count, 16, seed=1, split="train").points for count in (5, 9))
    torch.testing.assert_close(few, many[:5])
    assert (toys.clouds(5, 16, seed=1, split="test").points - few).abs().max() > 0.1


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(
        ValueError, match="length = 3; the shortest expression, an operator of two digits, has 4 symbols"
    ):
        toys.expressions(2, seed=0, split="train", length=3)
    with pytest.raises(ValueError, match=r"SUM is none of ListOps' operators: \[MIN, \[MAX, \[MED, \[SM"):
        toys.evaluate("SUM", [1])
