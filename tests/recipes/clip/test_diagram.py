# SPDX-License-Identifier: Apache-2.0
"""The chapter's diagram, from plain arrays."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from recipes_lib import diagrams, plots
from recipes_lib.recipes.clip import diagram

IMAGES = np.arange(3 * 3 * 8 * 8, dtype=np.uint8).reshape(3, 3, 8, 8)
CAPTIONS = ["a white counter with a red mug on top", "a bowl", "a brown banded glass bottle on a wooden table"]
COSINES = np.array([[0.82, 0.09, -0.17], [0.12, 0.67, 0.01], [0.22, 0.32, 0.77]])


@pytest.fixture
def ax():
    figure = Figure(figsize=(plots.WIDTH, 3.5))
    FigureCanvasAgg(figure)
    return diagram.draw(figure.subplots(), IMAGES, CAPTIONS, COSINES, scale=37.8)


def test_it_shows_three_images_the_table_and_the_temperature(ax):
    words = [text.get_text() for text in ax.texts]
    assert len(ax.images) == 4
    assert {"a bowl", ".82", "-.17", "divide by the\ntemperature 0.026"} <= set(words)


def test_the_frames_hold_the_cosines_of_the_right_pairs(ax):
    ax.figure.canvas.draw()
    frames = [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_linewidth() == 2]
    inside = []
    for frame in frames:
        box = frame.get_window_extent()
        inside.append(
            [text.get_text() for text in ax.texts if box.contains(*ax.transData.transform(text.get_position()))]
        )
    assert inside == [[".82"], [".67"], [".77"]]


def test_every_number_stays_in_its_cell(ax):
    ax.figure.canvas.draw()
    left, right = ax.transData.transform([(x, 0) for x in ax.images[3].get_extent()[:2]])[:, 0]
    numbers = [text for text in ax.texts if text.get_fontsize() == diagrams.NUMBERS]
    assert len(numbers) == 9
    assert max(text.get_window_extent().width for text in numbers) < (right - left) / 3


def test_a_larger_magnitude_is_darker_whatever_its_sign():
    light, dark, darkest = diagrams.shaded([[0.1, -0.5, 1.0]], "Blues")[0].sum(axis=-1)
    assert light > dark > darkest
