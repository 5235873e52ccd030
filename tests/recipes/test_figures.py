# SPDX-License-Identifier: Apache-2.0
"""A figure in ``metrics.jsonl`` means the same in every recipe that logs it."""

import math

import pytest
import torch

from recipes_lib.objectives import priors
from recipes_lib.objectives.prototypes import msn_loss
from recipes_lib.objectives.snn import paws_loss

CHOICES = 4


def embeddings(choices: torch.Tensor) -> torch.Tensor:
    """A row beside the axis that it chooses, [len(choices), CHOICES]."""
    return torch.eye(CHOICES)[choices] + 0.01


def of_msn(choices: torch.Tensor) -> dict[str, torch.Tensor]:
    return msn_loss(embeddings(choices), embeddings(choices), torch.eye(CHOICES, requires_grad=True))


def of_pmsn(choices: torch.Tensor) -> dict[str, torch.Tensor]:
    axes = torch.eye(CHOICES, requires_grad=True)
    return msn_loss(embeddings(choices), embeddings(choices), axes, prior=priors.power_law(CHOICES, 1.0))


def of_paws(choices: torch.Tensor) -> dict[str, torch.Tensor]:
    views, supports = embeddings(choices).repeat(2, 1), torch.eye(CHOICES)
    return paws_loss(views, views, supports, supports, torch.eye(CHOICES))


@pytest.mark.parametrize("parts_of", [of_msn, of_pmsn, of_paws])
def test_the_mean_entropy_is_0_in_a_collapse_and_me_max_is_its_distance_from_the_maximum(parts_of):
    even, collapsed = parts_of(torch.arange(CHOICES)), parts_of(torch.zeros(CHOICES, dtype=torch.int64))
    assert float(even["mean_entropy"]) == pytest.approx(math.log(CHOICES), abs=1e-3)
    assert float(collapsed["mean_entropy"]) == pytest.approx(0.0, abs=1e-2)
    for parts in (even, collapsed):
        assert float(parts["mean_entropy"] + parts["me_max"]) == pytest.approx(math.log(CHOICES), abs=1e-6)
    assert ("prior_divergence" in even) == (parts_of is of_pmsn)
