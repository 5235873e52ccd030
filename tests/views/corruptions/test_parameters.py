# SPDX-License-Identifier: Apache-2.0
from dataclasses import fields

import pytest

from recipes_lib.config.evaluation import CORRUPTIONS
from recipes_lib.views.corruptions.parameters import CIFAR10_C, IMAGENET_C, TINY_IMAGENET_C, Published, for_side


def test_every_corruption_has_five_strengths_in_every_table():
    assert {field.name for field in fields(Published)} == {*CORRUPTIONS, "side", "frost_scale"}
    for table in (IMAGENET_C, TINY_IMAGENET_C, CIFAR10_C):
        assert [name for name in CORRUPTIONS if len(vars(table)[name]) != 5] == []


@pytest.mark.parametrize(
    ("side", "table"),
    [(16, 32), (32, 32), (45, 32), (46, 64), (64, 64), (96, 64), (119, 64), (120, 224), (224, 224), (512, 224)],
)
def test_a_side_takes_the_strengths_of_the_nearest_published_side(side, table):
    assert for_side(side).side == table


def test_strengths_that_are_quoted_often_are_the_papers():
    assert IMAGENET_C.gaussian_noise == (0.08, 0.12, 0.18, 0.26, 0.38)
    assert IMAGENET_C.jpeg_compression == (25, 18, 15, 10, 7)
    assert CIFAR10_C.gaussian_noise == (0.04, 0.06, 0.08, 0.09, 0.10)
    assert CIFAR10_C.contrast == (0.75, 0.5, 0.4, 0.3, 0.15)
