# SPDX-License-Identifier: Apache-2.0
"""The chapter's diagram, from a plain array."""

import numpy as np
from matplotlib.figure import Figure

from recipes_lib import plots
from recipes_lib.recipes.msn import diagram

IMAGE = np.arange(3 * 16 * 16, dtype=np.uint8).reshape(3, 16, 16)


def test_it_shows_the_image_both_views_and_where_the_gradient_stops():
    ax = Figure(figsize=(plots.WIDTH, 3.2)).subplots()
    diagram.draw(ax, IMAGE)
    words = [text.get_text() for text in ax.texts]
    assert len(ax.images) == 3
    assert {"sg", "moving\naverage", "shared\nprototypes"} <= set(words)


def test_a_crop_is_a_part_of_the_image_in_the_same_number_of_pixels():
    cut = diagram.crop(IMAGE, "right", mirrored=False)
    assert cut.shape == IMAGE.shape
    assert (cut[:, 0, 0] == IMAGE[:, 0, 4]).all()
    assert (cut[:, -1, -1] == IMAGE[:, 11, -1]).all()
    assert (diagram.crop(IMAGE, "right", mirrored=True) == cut[:, :, ::-1]).all()
    assert (diagram.crop(IMAGE, "left", mirrored=False)[:, 0, 0] == IMAGE[:, 0, 0]).all()


def test_half_of_the_patches_are_dropped_in_every_row():
    holes = (diagram.drop(np.zeros((3, 16, 16), np.uint8), 4) == 255).all(axis=0)
    assert holes.reshape(4, 4, 4, 4).all(axis=(1, 3)).sum(axis=1).tolist() == [2, 2, 2, 2]
    assert holes.mean() == 0.5
