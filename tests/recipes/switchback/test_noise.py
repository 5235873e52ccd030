# SPDX-License-Identifier: Apache-2.0
"""What the SwitchBack chapter measures of quantisation: theory by hand, and the figures at small sizes."""

import numpy as np
import pytest
import torch

from recipes_lib.lowbit import quantize
from recipes_lib.recipes.switchback import noise


def test_the_theory_by_hand():
    """Scales of 127 and 254: steps of 1 and 2, a = 1/12 and b = 4/12; sums of squares 5 and 3, n = 2."""
    x, y = (torch.tensor([values], dtype=torch.float64) for values in ([1.0, 2.0], [1.0, 2.0**0.5]))
    found = noise.theory(x, y, torch.tensor([[127.0]]), torch.tensor([[254.0]]))
    assert found == pytest.approx((1 * 3 + 4 * 5) / 12 + 2 * 4 / 144, rel=1e-6)


def test_rows_of_several_scales_are_averaged_over_all_pairs():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 5, generator=g, dtype=torch.float64) for _ in range(2))
    s, t = quantize.rows(x).scale, quantize.rows(y).scale
    pairs = [noise.theory(x[i, None], y[j, None], s[i, None], t[j, None]) for i in range(3) for j in range(3)]
    assert noise.theory(x, y, s, t) == pytest.approx(np.mean(pairs), rel=1e-12)


@pytest.mark.parametrize("scaling", ["row_row", "row_tensor"])
@pytest.mark.parametrize(("numbers", "tolerance"), [("gaussian", 0.06), ("student", 0.15)])
def test_the_error_is_that_of_uniform_rounding(numbers, scaling, tolerance):
    found = noise.growth(numbers, scaling, 0, lengths=(256, 1024, 4096))
    for ratio in found["theory_ratio"].values():
        assert ratio == pytest.approx(1, abs=tolerance)


def test_the_variance_grows_faster_than_the_length_and_most_under_heavy_tails():
    slopes = {name: noise.growth(name, "row_row", 0, lengths=(64, 512, 4096)) for name in ("gaussian", "student")}
    assert 1.05 < slopes["gaussian"]["slope"] < 1.35  # the largest of n Gaussian numbers: its square is about 2 ln n
    assert 1.45 < slopes["student"]["slope"] < 1.85  # n^(2/3) on top of n
    for found in slopes.values():
        assert found["theory_slope"] == pytest.approx(found["slope"], abs=0.05)


def test_a_slope_is_the_exponent_of_a_power():
    assert noise._slope((1, 2, 4), np.array([3.0, 12.0, 48.0])) == pytest.approx(2)


def test_figures_of_a_length_do_not_depend_on_the_other_lengths():
    alone = noise.growth("gaussian", "row_row", 3, lengths=(64, 128))
    among = noise.growth("gaussian", "row_row", 3, lengths=(32, 64, 128))
    assert alone["variance"] == {name: among["variance"][name] for name in ("64", "128")}
    assert alone["variance"] != noise.growth("gaussian", "row_row", 4, lengths=(64, 128))["variance"]


@pytest.mark.parametrize("numbers", ["gaussian", "student"])
def test_numbers_have_variance_one_and_sides_of_their_own(numbers):
    x, y = (noise.draw(numbers, 4096, 0, side) for side in ("x", "y"))
    assert x.square().mean().item() == pytest.approx(1, rel=0.1)
    assert abs((x * y).mean().item()) < 0.01
    largest = x.abs().amax().item()
    assert largest < 7 if numbers == "gaussian" else largest > 15


def test_dw_is_exact_in_switchback_and_the_noisiest_product_of_all_int8_where_tokens_are_uneven():
    errors = noise.layer_errors(1024, "uneven", 0)
    assert set(errors) == {"y", "dx", "dw"}
    assert errors["dw"]["switchback"] < 1e-6
    assert errors["dw"]["int8"] > 2 * errors["y"]["int8"] > 0.01
    even = noise.layer_errors(1024, "even", 0)
    assert even["dw"]["int8"] == pytest.approx(even["y"]["int8"], rel=0.2)  # no noisier than Y where they are alike


def test_a_seeds_report_has_every_figure(monkeypatch):
    monkeypatch.setattr(noise, "LENGTHS", (64, 128, 256))
    monkeypatch.setattr(noise.growth, "__kwdefaults__", {"lengths": (64, 128)})
    monkeypatch.setattr(noise, "TOKENS", (32, 64))
    report = noise.measure(0)
    assert set(report["products"]) == {"gaussian", "student"}
    for scalings in report["products"].values():
        assert set(scalings) == {"row_row", "row_tensor"}
    one = report["products"]["gaussian"]["row_tensor"]
    assert set(one["relative"]) == {"64", "128"}
    assert {type(value) for value in (one["slope"], *one["variance"].values())} == {float}
    assert set(report["layers"]) == {"even", "uneven"}
    assert set(report["layers"]["even"]) == {"32", "64"}


def test_the_fingerprint_is_that_of_a_moment():
    found = noise.fingerprint()
    assert len(found["variances"]) == 3
    assert found == noise.fingerprint()
