# SPDX-License-Identifier: Apache-2.0
import torch

from recipes_lib import randomness
from recipes_lib.recipes.nac import questions, tasks
from recipes_lib.recipes.nac.questions import SENTENCES


def drawn(count: int = 240, **changes: object) -> questions.Questions:
    return questions.draw(tasks.digits().train, count, **{"seed": 0, "split": "train"} | changes)


def test_each_sentence_is_as_often_true_as_false_and_its_label_says_which():
    made = drawn()
    truths = {
        "left is even": lambda a, b: a % 2 == 0,
        "right is even": lambda a, b: b % 2 == 0,
        "left is large": lambda a, b: a >= 5,
        "right is large": lambda a, b: b >= 5,
        "left is larger": lambda a, b: a > b,
        "they are equal": lambda a, b: a == b,
    }
    for index in range(len(made)):
        text = bytes(b for b in made.texts[index].tolist() if b < 256).decode()
        left, right = int(made.factors["left"][index]), int(made.factors["right"][index])
        assert text == SENTENCES[made.factors["sentence"][index]]
        assert int(made.labels[index]) == truths[text](left, right)
    for number in range(len(SENTENCES)):
        of_it = made.factors["sentence"] == number
        assert made.labels[of_it].float().mean() == 0.5
        assert of_it.sum() == 40


def test_only_some_sentences_may_be_asked():
    made = drawn(sentences=(4, 1))
    assert made.factors["sentence"].unique().tolist() == [1, 4]
    assert made.labels[made.factors["sentence"] == 4].float().mean() == 0.5
    assert bytes(made.texts[0].tolist()).decode() == "left is larger"


def test_the_digits_are_those_of_the_scans():
    part, made = tasks.digits().train, drawn(60)
    for index in range(60):
        for side, name in enumerate(("left", "right")):
            found = (part.inputs == made.pairs[index, side]).flatten(1).all(1).nonzero()[:, 0]
            assert int(made.factors[name][index]) in part.labels[found].tolist()


def test_a_question_depends_on_seed_split_and_index_alone():
    few, many = drawn(12), drawn(30)
    assert torch.equal(few.pairs, many.pairs[:12])
    for other in (drawn(12, seed=1), drawn(12, split="test")):
        assert not torch.equal(other.pairs, few.pairs)


def test_both_scans_of_a_pair_are_distorted_each_in_its_own_way():
    same = tasks.digits().train.inputs[:20][:, None].repeat(1, 2, 1, 1, 1)
    keys = randomness.sample_keys(0, 0, torch.arange(20))
    moved = questions.distort(same, keys)
    torch.testing.assert_close(moved[:, 0], tasks.distort_scans(same[:, 0], keys))
    assert (moved[:, 0] - moved[:, 1]).abs().mean() > 0.05
    torch.testing.assert_close(questions.distort(same[4:6], keys[4:6]), moved[4:6])
