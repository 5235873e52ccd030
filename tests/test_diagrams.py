# SPDX-License-Identifier: Apache-2.0
"""Diagrams drawn from plain arrays."""

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from recipes_lib import diagrams
from recipes_lib.diagrams import Arrow, Box, Image, Shares

IMAGE = np.full((3, 8, 8), 128, dtype=np.uint8)
NODES = {
    "image": Image(0, 0.5, IMAGE, "an image"),
    "first": Box(1, 0, "a network with\na long name"),
    "second": Box(1, 1, "its copy"),
    "share": Shares(2, 0, (0.5, 0.25, 0.25), "shares"),
}
ARROWS = [("image", "first"), Arrow("first", "second", "follows", "average"), Arrow("first", "share", "stop")]


@pytest.fixture
def ax() -> Axes:
    figure = Figure(figsize=(5, 2.4))
    FigureCanvasAgg(figure)
    return figure.subplots()


def extents(ax: Axes) -> dict[str, matplotlib.transforms.Bbox]:
    """Where each text of the drawn figure lies, in dots."""
    ax.figure.canvas.draw()
    return {text.get_text(): text.get_window_extent() for text in ax.texts}


def test_words_stay_inside_their_boxes(ax):
    diagrams.draw(ax, NODES, ARROWS)
    texts = extents(ax)
    boxes = [patch.get_window_extent() for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    for box, node in zip(boxes, (NODES["first"], NODES["second"]), strict=True):
        words = texts[node.text]
        assert box.x0 < words.x0 < words.x1 < box.x1
        assert box.y0 < words.y0 < words.y1 < box.y1


def test_everything_lies_within_the_figure_and_no_words_lie_upon_others(ax):
    diagrams.draw(ax, NODES, ARROWS)
    texts = list(extents(ax).values())
    edge = ax.figure.bbox
    assert all(edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 and box.y1 <= edge.y1 for box in texts)
    assert not [1 for place, box in enumerate(texts) if box.count_overlaps(texts[place + 1 :])]


def test_an_image_is_drawn_as_it_is(ax):
    diagrams.draw(ax, NODES, ARROWS)
    (drawn,) = ax.images
    np.testing.assert_allclose(drawn.get_array(), 128 / 255)
    left, right, bottom, top = drawn.get_extent()
    assert right - left == pytest.approx(top - bottom) == pytest.approx(diagrams.IMAGE_INCHES)


def test_a_stop_gradient_bears_two_bars_and_sg_and_a_copy_is_dashed(ax):
    diagrams.draw(ax, NODES, ARROWS[:2])
    bars = len(ax.lines)
    assert "sg" not in extents(ax)
    assert [patch.get_linestyle() for patch in ax.patches if isinstance(patch, FancyArrowPatch)] == ["-", "--"]
    ax.clear()
    diagrams.draw(ax, NODES, ARROWS)
    assert len(ax.lines) == bars + 2
    assert "sg" in extents(ax)


def test_an_arrow_to_nowhere_is_refused(ax):
    with pytest.raises(ValueError, match="There is no node 'nowhere'; there are 'image'"):
        diagrams.draw(ax, NODES, [("image", "nowhere")])


def test_nodes_that_do_not_fit_are_refused(ax):
    wide = {name: Box(place, 0, "quite a few words in one line") for place, name in enumerate("abc")}
    with pytest.raises(ValueError, match="inches too wide for 5; break lines"):
        diagrams.draw(ax, wide, [])
    with pytest.raises(ValueError, match=r"'a' and 'b' overlap by .* make the figure higher"):
        diagrams.draw(ax, {"a": Box(0, 0, "a"), "b": Box(0, 0.1, "b"), "c": Box(0, 1, "c")}, [])
