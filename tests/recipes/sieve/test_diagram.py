# SPDX-License-Identifier: Apache-2.0
"""The chapter's diagram, from one made-up pair."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from recipes_lib import plots
from recipes_lib.recipes.sieve import diagram

PICTURE = np.full((3, 8, 8), 99, np.uint8)
CAPTIONS = ["a blue goblet on a marble top", "a goblet"]


@pytest.mark.parametrize(
    ("cosines", "decision"),
    [((0.2, 0.38), "largest: 0.38\n< 0.50, so\ndrop"), ((0.9, -0.1), "largest: 0.90\n≥ 0.50, so\nkeep")],
)
def test_the_largest_cosine_decides(cosines, decision):
    ax = Figure(figsize=(plots.WIDTH, 3.3)).subplots()
    diagram.draw(ax, PICTURE, "a brown pan on tiles", CAPTIONS, cosines, threshold=0.5)
    words = {text.get_text() for text in ax.texts}
    assert len(ax.images) == 1
    assert {decision, "its alt-text:\na brown pan on\ntiles"} <= words
    assert "1. a blue goblet on\na marble top\n2. a goblet" in words
