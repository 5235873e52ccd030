# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch

from recipes_lib.evaluation.assignments import describe, tint


def test_one_prototype_for_all_is_a_collapse():
    p = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(6, 1)
    figures = describe(p, {})
    assert figures == {"prototypes_used": 1.0, "exp_mean_entropy": 1.0, "exp_entropy": 1.0}


def test_flat_assignments_are_spread_and_say_nothing():
    figures = describe(torch.full((6, 4), 0.25), {})
    assert figures["exp_mean_entropy"] == pytest.approx(4)
    assert figures["exp_entropy"] == pytest.approx(4)


def test_sure_and_balanced_assignments_have_one_prototype_an_image_and_all_in_use():
    figures = describe(torch.eye(4).repeat(3, 1), {"class": torch.arange(4).repeat(3), "other": torch.zeros(12)})
    assert figures["prototypes_used"] == 4
    assert figures["exp_mean_entropy"] == pytest.approx(4)
    assert figures["exp_entropy"] == pytest.approx(1)
    assert figures["nmi_class"] == pytest.approx(1)
    assert figures["nmi_other"] == pytest.approx(0)


def test_the_six_orders_of_the_channels_are_six_tints():
    colours = torch.tensor(list(itertools.permutations([0.1, 0.5, 0.9])))
    assert sorted(tint(colours).tolist()) == list(range(6))
