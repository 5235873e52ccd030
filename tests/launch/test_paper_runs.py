# SPDX-License-Identifier: Apache-2.0
"""The paper's largest networks go through a whole micro-batch of fake tensors, on a laptop, in seconds."""

import pytest

from recipes_lib import recipes
from recipes_lib.launch import plan

LARGEST = {
    "families": ("ijepa_vith14_imagenet", 16),
    "paws": ("rn50_imagenet_10pct", 64),
    "switchback": ("vith14_laion2b", 128),
    "clip": ("datacomp_xlarge", 512),
}


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_preset_is_counted_on_as_many_gpus_as_it_needs(name):
    preset, world = LARGEST[name]
    found = plan.plan(name, recipes.named(name).presets[preset], world=world)
    # backward takes twice the forward products, so three for each trained weight that an image meets at least once
    assert found.flops_per_image > 3 * 2 * found.trained_parameters
    assert found.memory["activations"] > found.memory["inputs"] > 0
    assert found.wire_bytes_per_step == pytest.approx(2 * (world - 1) / world * 4 * found.trained_parameters)
    assert found.warnings == ()
