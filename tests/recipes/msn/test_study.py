# SPDX-License-Identifier: Apache-2.0
from recipes_lib.recipes.msn import study


def test_dropping_seven_patches_in_ten_leaves_about_three_tenths_of_the_operations():
    cost = study.mask_cost(0)["cost"]
    assert cost["whole"] == 1.0
    # 59 of 196 patches are kept, which is .301; attention's own products, quadratic in the tokens, shrink more
    assert 0.25 < cost["flops_left"] < 59 / 196
    assert cost["flops_left"] == cost["flops_masked"] / cost["flops_full"]
    assert cost["seconds_left"] == cost["seconds_masked"] / cost["seconds_full"]
