# SPDX-License-Identifier: Apache-2.0
from recipes_lib import recipes
from recipes_lib.launch import data_sizes


def test_sizes_of_what_is_drawn_are_the_configs():
    config = recipes.named("msn").presets["toy"]
    assert data_sizes.images(config.data, None, "") == 3000
    assert data_sizes.classes(config.data) == 12
    assert data_sizes.images(config.data, 7, "") == 7
