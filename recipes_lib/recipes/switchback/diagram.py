# SPDX-License-Identifier: Apache-2.0
"""The chapter's diagram: the three products of a SwitchBack layer in one picture, with their numbers."""

from matplotlib.axes import Axes
from torch import Tensor

from recipes_lib import diagrams
from recipes_lib.diagrams import Arrow, Image
from recipes_lib.lowbit import quantize

# X: the layer's input, W: its weight, G: the gradient of its output Y


def draw(ax: Axes, x: Tensor, w: Tensor, g: Tensor) -> Axes:
    """The matrices of one layer, those of 8-bit integers in orange; two products start from the integers, one does not.

    Shapes: X [n, d], W [m, d], G [n, m]; n, d and m of at most 3, or the numbers do not fit.
    """
    of_x, of_w, of_g = quantize.rows(x), quantize.tensor(w), quantize.rows(g)
    x8, w8, g8 = (quantize.dequantize(each, x.dtype) for each in (of_x, of_w, of_g))
    floats = {"weight gradient": g.T @ x, "G": g, "W": w, "X": x, "input gradient": g8 @ w8, "Y": x8 @ w8.T}
    integers = {"G in 8 bits": of_g.values, "W in 8 bits": of_w.values, "X in 8 bits": of_x.values}
    places = {
        "weight gradient": (0, 1, "gradient\nof W,\nfrom floats"),
        "G": (1, 0, "gradient G of Y"),
        "W": (1, 1, "weight W"),
        "X": (1, 2, "input X"),
        "G in 8 bits": (2, 0, "rounded by row"),
        "W in 8 bits": (2, 1, "rounded, one scale"),
        "X in 8 bits": (2, 2, "rounded by row"),
        "input gradient": (3, 0.5, "gradient\nof X, from\nintegers"),
        "Y": (3, 1.5, "output Y,\nfrom\nintegers"),
    }
    colours = dict.fromkeys(floats, "Blues") | dict.fromkeys(integers, "Oranges")
    matrices = floats | integers
    nodes = {
        name: Image(column, row, diagrams.shaded(matrices[name], colours[name]), words)
        for name, (column, row, words) in places.items()
    }
    arrows = [Arrow(name, f"{name} in 8 bits", "stop") for name in ("G", "W", "X")]
    arrows += [("G", "weight gradient"), ("X", "weight gradient")]
    arrows += [("G in 8 bits", "input gradient"), ("W in 8 bits", "input gradient")]
    arrows += [("W in 8 bits", "Y"), ("X in 8 bits", "Y")]
    diagrams.draw(ax, nodes, arrows)
    for image, name in enumerate(nodes):
        diagrams.write(ax, image, [[f"{round(value, 2):g}" for value in row] for row in matrices[name].tolist()])
    return ax
