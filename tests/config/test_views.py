# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest

from recipes_lib.config.views import ViewsConfig
from recipes_lib.errors import Faults


def faults_of(**fields):
    faults = Faults()
    ViewsConfig(**fields).check(faults)
    return faults.lines


def test_the_papers_recipe_is_the_default_and_sound():
    config = ViewsConfig()
    assert faults_of() == []
    assert (config.global_views, config.local_views) == (1, 10)
    assert (config.brightness, config.contrast, config.saturation, config.hue) == (0.4, 0.4, 0.4, 0.1)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("image_size", 4, "at least 8"),
        ("local_size", 7, "at least 8"),
        ("global_views", -1, "at least 0"),
        ("local_views", -1, "at least 0"),
        ("global_scale", (0.9, 0.3), "0 < first <= second <= 1"),
        ("local_scale", (0.0, 0.3), "0 < first <= second <= 1"),
        ("global_scale", (0.3, 1.1), "0 < first <= second <= 1"),
        ("flip", 1.5, "in [0, 1]"),
        ("jitter", -0.1, "in [0, 1]"),
        ("solarize", 2, "in [0, 1]"),
        ("solarize_threshold", (0.6, 0.2), "0 <= first <= second <= 1"),
        ("equalize", -0.2, "in [0, 1]"),
        ("brightness", -0.4, "at least 0"),
        ("noise", -0.1, "at least 0"),
        ("hue", 0.6, "in [0, 0.5]"),
        ("rotate", 200, "in [0, 180]"),
        ("blur_sigma", (0.0, 2.0), "0 < first <= second"),
    ],
)
def test_a_value_out_of_range_is_named(field, value, allowed):
    (line,) = faults_of(**{field: value})
    assert line.startswith(f"views.{field} = {value} is not allowed")
    assert allowed in line


def test_an_anchor_without_views_is_refused():
    (line,) = faults_of(global_views=0, local_views=0)
    assert "leave the anchor no view" in line


def test_the_config_needs_no_torch():
    code = "import sys, recipes_lib.config.views; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
