# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from recipes_lib.evaluation.spectrum import alpha_req, lidar, rankme

# the card's inputs: two views of four images in three dimensions
Z1 = torch.tensor([[1, 0, 2], [0, 1, -1], [2, 1, 0], [-1, 1, 1]], dtype=torch.float64)
Z2 = torch.tensor([[1, 0.5, 1.5], [0, 1, -2], [1, 1, 0], [-1, 0, 1]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (Z1, 2.942065738301412),
        (Z1 - Z1.mean(dim=0), 2.5583644319389616),  # another number: RankMe does not centre
        (torch.eye(3), 3.000000088750926),  # the 1e-7 lifts it above the number of dimensions
        (torch.ones(4, 3), 1.000003123624),
        (torch.diag(torch.tensor([4.0, 2.0, 1.0])), 2.6004902031817805),
    ],
)
def test_rankme_has_the_values_of_the_card(features, expected):
    assert rankme(features) == pytest.approx(expected, abs=1e-9)


def test_rankme_ignores_scale_and_rotation():
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    assert rankme(7 * Z1 @ turn) == pytest.approx(rankme(Z1), abs=1e-12)


def test_rankme_of_noise_is_nearly_full_and_of_a_line_one():
    noise = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    assert rankme(noise) > 15.9
    assert rankme(noise[:, :1] * torch.ones(16)) == pytest.approx(1, abs=1e-4)


def test_rankme_of_fewer_images_than_dimensions_warns_that_it_is_bounded_by_them():
    with pytest.warns(UserWarning, match="RankMe of 4 images is at most 4, and the features have 50 dimensions"):
        found = rankme(torch.randn(4, 50, generator=torch.Generator().manual_seed(0)))
    assert found <= 4 + 1e-5


def test_alpha_req_has_the_value_of_the_card():
    assert alpha_req(Z1) == pytest.approx(2.610488603846338, abs=1e-9)


def test_alpha_req_reads_off_an_exact_power_law_and_its_range_is_an_argument():
    exact = torch.diag(torch.arange(1, 4, dtype=torch.float64) ** -0.75)  # singular values i^-0.75: eigenvalues i^-1.5
    rows = torch.cat([exact, -exact])  # centred
    assert alpha_req(rows) == pytest.approx(1.5, abs=1e-12)
    bent = rows * torch.tensor([10.0, 1.0, 1.0])  # the first eigenvalue does not follow the law
    assert alpha_req(bent) > 2
    assert alpha_req(bent, first=2) == pytest.approx(1.5, abs=1e-12)
    assert alpha_req(bent, first=2, last=3) == pytest.approx(1.5, abs=1e-12)


def test_alpha_req_centres_and_leaves_out_eigenvalues_of_0():
    assert alpha_req(Z1 + 100) == pytest.approx(alpha_req(Z1), abs=1e-9)
    padded = torch.cat([Z1, torch.ones(4, 5, dtype=torch.float64)], dim=1)
    assert alpha_req(padded) == pytest.approx(alpha_req(Z1), abs=1e-9)


def test_lidar_has_the_value_of_the_card():
    assert lidar(torch.stack([Z1, Z2], dim=1)) == pytest.approx(2.0441893781384506, abs=1e-9)


def test_lidar_is_the_rank_of_what_differs_between_images_and_rankme_is_not():
    draw = torch.Generator().manual_seed(0)
    signal = torch.zeros(400, 5, 16, dtype=torch.float64)
    signal[..., :2] = torch.randn(400, 1, 2, generator=draw, dtype=torch.float64)  # the same in all views
    noise = torch.randn(400, 5, 16, generator=draw, dtype=torch.float64)
    noisy = signal * 3 + noise * 0.5
    assert rankme(noisy[:, 0]) > 8
    assert lidar(noisy) < 4


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: rankme(torch.zeros(3, 2)), "all features are 0, or the same"),
        (lambda: rankme(torch.zeros(3)), r"\[N, D\]; got \[3\]"),
        (lambda: rankme(torch.full((3, 2), math.nan)), "NaN or Inf"),
        (lambda: alpha_req(torch.zeros(1, 3)), "1 image has no covariance"),
        (lambda: alpha_req(torch.ones(5, 3)), "0 are above 0"),
        (lambda: alpha_req(Z1, first=3), "eigenvalues 3 to 3, and 3 are above 0"),
        (lambda: alpha_req(Z1, last=4), "eigenvalues 1 to 4, and 3 are above 0"),
        (lambda: lidar(torch.zeros(4, 1, 3)), r"n >= 2 and q >= 2; got \[4, 1, 3\]"),
        (lambda: lidar(Z1), r"got \[4, 3\]"),
        (lambda: lidar(torch.ones(5, 2, 3)), "the same for all images"),
    ],
)
def test_what_has_no_spectrum_is_refused_in_words(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_lidar_of_fewer_images_than_dimensions_warns():
    with pytest.warns(UserWarning, match="LiDAR of 4 images is at most 3, and the features have 9"):
        lidar(torch.randn(4, 3, 9, generator=torch.Generator().manual_seed(0)))
