# SPDX-License-Identifier: Apache-2.0
"""What masking saves, as the chapter measures it."""

import pytest

from recipes_lib.recipes.msn import study


def test_the_flops_left_are_those_of_58_of_196_patches(monkeypatch):
    monkeypatch.setattr(study, "REPEATS", 1)
    cost = study.mask_cost(seed=0)["cost"]
    assert cost["whole"] == 1.0
    assert cost["flops_left"] == cost["flops_masked"] / cost["flops_full"]
    # 59 of 197 tokens: the linear layers shrink by that share, attention by its square, the patch embedding not at all
    assert 0.25 < cost["flops_left"] < 59 / 197 + 0.05
    assert cost["seconds_left"] == pytest.approx(cost["seconds_masked"] / cost["seconds_full"])
