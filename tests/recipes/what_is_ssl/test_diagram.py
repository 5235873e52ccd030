# SPDX-License-Identifier: Apache-2.0
"""The opening chapter's drawings, from plain arrays: everything they name is there, and inside the page."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from recipes_lib import plots
from recipes_lib.recipes.what_is_ssl import diagram

IMAGE = np.arange(3 * 16 * 16, dtype=np.uint8).reshape(3, 16, 16)


def drawn(name: str):
    height = {"origins": diagram.ORIGINS_HEIGHT, "families": diagram.FAMILIES_HEIGHT}[name]
    ax = Figure(figsize=(plots.WIDTH, height)).subplots()
    if name == "origins":
        diagram.origins(ax, IMAGE, np.stack([IMAGE, IMAGE]), np.stack([IMAGE] * 4))
    else:
        diagram.families(ax, IMAGE)
    return ax


def test_six_tasks_are_named_and_what_is_asked_of_each():
    words = [text.get_text() for text in drawn("origins").texts]
    names = {"restoring information", "order in time", "spatial context", "grouping", "generating", "several views"}
    assert names <= set(words)
    assert sum(word.endswith("?") for word in words) == 6


def test_four_families_lead_to_the_methods_that_came_after():
    words = " ".join(text.get_text().replace("\n", " ") for text in drawn("families").texts)
    for name in ("deep metric learning", "canonical correlation", "masked modelling", "sg", "CLIP", "LeJEPA", "I-JEPA"):
        assert name in words


@pytest.mark.parametrize("name", ["origins", "families"])
def test_words_stay_on_the_page_and_are_large_enough_to_read(name):
    ax = drawn(name)
    ax.figure.canvas.draw()
    page = ax.figure.bbox
    for text in ax.texts:
        box = text.get_window_extent()
        assert page.x0 <= box.x0 <= box.x1 <= page.x1
        assert page.y0 <= box.y0 <= box.y1 <= page.y1
        assert text.get_fontsize() >= 9


def test_a_quarter_of_the_patches_pattern_hides_two_of_four_in_every_row():
    hidden, whole = (image.get_array() for image in drawn("families").images[-2:])
    patches = (np.asarray(hidden) == 0.85).all(axis=-1).reshape(4, 4, 4, 4).all(axis=(1, 3))
    assert patches.sum(axis=1).tolist() == [2, 2, 2, 2]
    np.testing.assert_allclose(whole, np.moveaxis(IMAGE, 0, -1) / 255)
