# SPDX-License-Identifier: Apache-2.0
"""The chapter's diagram, from three small matrices."""

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recipes_lib import plots
from recipes_lib.diagrams import NUMBERS
from recipes_lib.recipes.switchback import diagram

X = torch.tensor([[0.5, -1.0, 0.25], [2.0, 0.1, -0.3]], dtype=torch.float64)
W = torch.tensor([[0.2, -0.4, 0.1], [0.05, 0.3, -0.25]], dtype=torch.float64)
G = torch.tensor([[1.0, -0.5], [0.03, 0.7]], dtype=torch.float64)


def drawn():
    figure = Figure(figsize=(plots.WIDTH, 4.4))
    FigureCanvasAgg(figure)
    return diagram.draw(figure.subplots(), X, W, G)


def test_only_the_roundings_let_no_gradient_through_and_products_have_their_numbers():
    numbers = [text.get_text() for text in drawn().texts]
    assert numbers.count("sg") == 3
    cells = [text.get_text() for text in drawn().texts if text.get_fontsize() == NUMBERS]
    # gradient of W = G' X: 1 * 0.5 + 0.03 * 2 = 0.56, ...
    assert cells[:6] == [".56", "-1", ".24", "1.15", ".57", "-.33"]
    assert cells[-4:] == [".53", "-.34", ".34", ".2"]  # X W'
    assert {"-127", "127", "64", "-79"} <= set(cells)


def test_every_number_stays_in_its_cell():
    ax = drawn()
    ax.figure.canvas.draw()
    third = (ax.transData.transform((0.3, 0)) - ax.transData.transform((0, 0)))[0]
    for text in ax.texts:
        if text.get_fontsize() == NUMBERS:
            assert text.get_window_extent().width < third, text.get_text()
