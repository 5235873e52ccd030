# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from recipes_lib.evaluation.hypersphere import alignment, normalized_std, uniformity

Z1 = torch.tensor([[1, 0, 2], [0, 1, -1], [2, 1, 0], [-1, 1, 1]], dtype=torch.float64)
Z2 = torch.tensor([[1, 0.5, 1.5], [0, 1, -2], [1, 1, 0], [-1, 0, 1]], dtype=torch.float64)


def noise(count: int, width: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_alignment_and_uniformity_have_the_values_of_the_card():
    assert alignment(Z1, Z2) == pytest.approx(0.1649769677518657, abs=1e-9)
    assert uniformity(Z1) == pytest.approx(-3.2469813508005094, abs=1e-9)


def test_collapse_has_the_best_alignment_and_the_worst_uniformity_and_no_spread():
    same = torch.ones(6, 4)
    assert alignment(same, same) == 0
    assert uniformity(same) == pytest.approx(0, abs=1e-12)
    assert normalized_std(same) == pytest.approx(0, abs=1e-7)


def test_an_even_distribution_has_the_spread_1_and_the_uniformity_of_distances_of_root_2():
    even = noise(3000, 256)
    assert normalized_std(even) == pytest.approx(1, abs=0.01)
    assert uniformity(even) == pytest.approx(-4, abs=0.05)  # -t * 2


def test_chunks_of_pairs_make_no_difference():
    rows = noise(37, 5)
    assert uniformity(rows, chunk=10) == pytest.approx(uniformity(rows), abs=1e-12)


def test_uniformity_is_the_mean_over_pairs_written_out():
    rows = torch.nn.functional.normalize(noise(9, 4), dim=1)
    pairs = [math.exp(-3 * float((rows[i] - rows[j]).square().sum())) for j in range(9) for i in range(j)]
    assert uniformity(rows, t=3) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-12)


def test_alignment_takes_its_power():
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert alignment(first, second) == pytest.approx(2, abs=1e-12)
    assert alignment(first, second, alpha=1) == pytest.approx(2**0.5, abs=1e-12)


def test_the_length_of_features_changes_nothing():
    lengths = torch.tensor([1.0, 10.0, 0.1, 3.0])[:, None]
    assert alignment(Z1 * lengths, Z2) == pytest.approx(alignment(Z1, Z2), abs=1e-12)
    assert uniformity(Z1 * lengths) == pytest.approx(uniformity(Z1), abs=1e-12)
    assert normalized_std(Z1 * lengths) == pytest.approx(normalized_std(Z1), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: alignment(Z1, Z2[:3]), r"got \[4, 3\], \[3, 3\]"),
        (lambda: alignment(Z1, Z2, alpha=0), "alpha = 0; it must be above 0"),
        (lambda: uniformity(Z1[:1]), "1 image makes no pair"),
        (lambda: uniformity(Z1, t=-1), "t = -1; it must be above 0"),
        (lambda: normalized_std(Z1[0]), r"\[N, D\]; got \[3\]"),
        (lambda: normalized_std(Z1 * math.inf), "NaN or Inf"),
    ],
)
def test_bad_input_is_refused_in_words(call, text):
    with pytest.raises(ValueError, match=text):
        call()
