# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score
from torch import Tensor

from recipes_lib.data.pantry.factors import RANGES
from recipes_lib.evaluation import readout
from recipes_lib.evaluation.readout import factor_scores


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def score(features: Tensor, values: Tensor, name: str = "it", **options) -> float:
    """Of one factor, fitted on the first two thirds."""
    cut = 2 * len(features) // 3
    both = {name: values[:cut]}, {name: values[cut:]}
    return factor_scores(features[:cut], both[0], features[cut:], both[1], **options)[name]


FEATURES = draw(600, 8)
MIX = draw(8, 3, seed=1)


def test_what_is_linear_in_the_features_scores_one_and_what_is_not_there_zero():
    number, choice = FEATURES @ MIX, (FEATURES @ MIX).argmax(dim=1)
    assert score(FEATURES, number) == pytest.approx(1, abs=1e-6)
    assert score(FEATURES, number[:, 0]) == pytest.approx(1, abs=1e-6)
    assert score(FEATURES, choice) > 0.8
    assert score(draw(600, 8, seed=2), number) == 0
    assert score(draw(600, 8, seed=2), choice) < 0.1


def test_half_of_a_numbers_variance_hidden_leaves_half_of_the_score():
    seen, hidden = draw(6000, 1), draw(6000, 1, seed=3)
    assert score(seen, (seen + hidden)[:, 0]) == pytest.approx(0.5, abs=0.03)


def test_the_columns_of_a_number_count_by_their_variance():
    wide, narrow = draw(600, 1), draw(600, 1, seed=3)
    assert score(wide, torch.cat([3 * wide, narrow], dim=1)) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("width", [40, 100], ids=["more rows than features", "more features than rows"])
@pytest.mark.parametrize("penalty", readout.PENALTIES)
def test_the_regression_is_scikit_learns_ridge_on_standardised_features(penalty, width, monkeypatch):
    monkeypatch.setattr(readout, "PENALTIES", (penalty,))
    features, values = draw(90, width).double() * 5 + 2, draw(90, 1, seed=1).double() + draw(90, width).double()[:, :2]
    train, test = (features[:60], values[:60]), (features[60:], values[60:])
    mean, deviation = train[0].mean(dim=0), train[0].std(dim=0, correction=0)
    model = Ridge(alpha=60 * penalty).fit((train[0] - mean) / deviation, train[1])
    read = model.predict((test[0] - mean) / deviation)
    expected = r2_score(test[1], read, multioutput="variance_weighted")
    found = factor_scores(train[0], {"it": train[1]}, test[0], {"it": test[1]})
    assert found["it"] == pytest.approx(max(0, expected), abs=1e-9)


def test_the_score_of_choices_is_scikit_learns_adjusted_balanced_accuracy():
    read, truth = draw(60, 3).double(), torch.arange(60) % 3
    expected = balanced_accuracy_score(truth, read.argmax(dim=1))
    assert readout._score(read, truth) == pytest.approx((expected - 1 / 3) / (1 - 1 / 3))


def test_a_rare_value_is_found_and_guessing_the_frequent_one_earns_nothing():
    rare = (draw(3000, seed=4) > 1.5).long()  # 7 %
    weak = draw(3000, 1) + 1.5 * rare[:, None]
    assert score(weak, rare) > 0.4
    assert score(draw(3000, 1), rare) < 0.08


def test_an_angle_is_read_around_the_circle():
    degrees = 360 * torch.rand(600, generator=torch.Generator().manual_seed(0))
    radians = degrees * math.pi / 180
    features = torch.stack([radians.sin(), radians.cos()], dim=1)
    assert score(features, degrees, "azimuth") == pytest.approx(1, abs=1e-6)
    assert score(features, degrees, "azimuth", periods={}) < 0.8
    assert score(features, degrees / 360, "turn", periods={"turn": 1.0}) == pytest.approx(1, abs=1e-6)


def test_the_columns_of_a_choice_are_averaged():
    left, right = (FEATURES[:, 0] > 0).long(), (draw(600, seed=5) > 0).long()
    both = score(FEATURES, torch.stack([left, right], dim=1))
    assert both == pytest.approx(score(FEATURES, left) / 2, abs=0.06)


def test_factors_that_do_not_vary_or_are_all_new_are_left_out():
    train = {"one": torch.zeros(60), "same": torch.ones(60, dtype=torch.long), "name": torch.arange(60)}
    test = {"one": torch.zeros(30), "same": torch.ones(30, dtype=torch.long), "name": torch.arange(60, 90)}
    varied = torch.arange(90) % 2 == 0  # true or false is a choice
    found = factor_scores(FEATURES[:60], {**train, "odd": varied[:60]}, FEATURES[60:90], {**test, "odd": varied[60:]})
    assert list(found) == ["odd"]
    assert factor_scores(FEATURES[:60], train, FEATURES[60:90], test) == {}


def test_a_value_that_no_training_row_has_is_an_error_each_time():
    values = (FEATURES[:, 0] > 0).long()
    test = values[400:].clone()
    test[:50] = 7
    found = factor_scores(FEATURES[:400], {"it": values[:400]}, FEATURES[400:], {"it": test})["it"]
    assert found == pytest.approx((2 / 3 - 1 / 3) / (2 / 3), abs=0.08)


def test_scale_and_shift_and_dead_columns_of_the_features_do_not_count():
    values = FEATURES @ MIX + draw(600, 3, seed=6)
    moved = torch.cat([1000 * FEATURES + 50, torch.full((600, 2), 3.0)], dim=1)
    assert score(moved, values) == pytest.approx(score(FEATURES, values), abs=1e-5)
    assert score(torch.zeros(600, 4), values) == 0
    assert score(torch.zeros(600, 4), values.argmax(dim=1)) == 0


def test_many_features_for_few_rows_do_not_ruin_what_can_be_read():
    values = draw(300, 1)
    assert score(torch.cat([values + 0.1 * draw(300, 1, seed=8), 0.5 * draw(300, 400, seed=9)], dim=1), values) > 0.2


def test_the_same_rows_give_the_same_score():
    values = FEATURES @ MIX + draw(600, 3, seed=6)
    assert score(FEATURES, values) == score(FEATURES, values)


@pytest.mark.parametrize(
    ("train", "train_factors", "test", "test_factors", "text"),
    [
        (FEATURES[:9], {}, FEATURES, {}, "9 training rows are too few"),
        (FEATURES, {}, FEATURES[:, :4], {}, r"not \[600, 8\] and \[600, 4\]"),
        (FEATURES, {"a": FEATURES[:, 0]}, FEATURES, {}, r"one lacks \['a'\]"),
        (FEATURES, {"a": FEATURES[:5, 0]}, FEATURES, {"a": FEATURES[:, 0]}, r"a has shape \[5\] for 600 rows"),
        (FEATURES, {"a": FEATURES}, FEATURES, {"a": FEATURES[:, :2]}, r"\[600, 8\] and \[600, 2\]"),
    ],
)
def test_what_does_not_fit_together_is_told(train, train_factors, test, test_factors, text):
    with pytest.raises(ValueError, match=text):
        factor_scores(train, train_factors, test, test_factors)


def test_the_pantrys_circular_factors_are_what_its_ranges_call_angles_and_its_hue():
    angles = {name for name, bounds in RANGES.items() if bounds == (-360.0, 360.0)}
    assert set(readout.PERIODS) == angles | {"extra_hue"}
