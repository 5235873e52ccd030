# SPDX-License-Identifier: Apache-2.0
"""Why SwitchBack leaves the weight's gradient alone: how the error of an 8-bit inner product grows with its length.

Theory. x and y of n entries are held as integers times s_x / 127 and s_y / 127. Rounding x_i leaves an error that is
nearly uniform over one step, of variance a = (s_x / 127)^2 / 12; b for y likewise. All errors being unrelated to each
other and to x and y, that of sum x_i y_i has

    variance = a sum y_i^2 + b sum x_i^2 + n a b,

with the scales as measured, for the largest of n numbers grows too: its square like 2 ln n for Gaussian numbers, like
n^(2/3) for Student's t of 3 degrees of freedom. So the error's variance grows faster than n.

The sum itself has variance n where its terms have random signs: relative to it, the error grows with the scales alone.

Source: the argument is that of Wortsman et al., arXiv 2304.13013; the formula is the usual one of uniform rounding.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.lowbit import Int8Linear, SwitchBackLinear, quantize
from recipes_lib.lowbit.matmul import product

LENGTHS = tuple(2**power for power in range(6, 16))
"""Inner lengths: from a head's width to a large batch's tokens."""
COUNT = 64
"""Vectors a side: COUNT^2 inner products a length."""
WIDTH = 384
"""Inputs and outputs of the layer: a ViT-S's output projection, whose Y and dX have this inner length."""
TOKENS = (1024, 4096, 16384)
"""Inner lengths of its dW: batches of 5, 21 and 84 images of 196 patches."""

Numbers = Literal["gaussian", "student"]
Scaling = Literal["row_row", "row_tensor"]
Gradients = Literal["even", "uneven"]
LAYERS = {"switchback": SwitchBackLinear, "int8": Int8Linear}


def measure(seed: int) -> dict[str, Any]:
    """All metrics of one seed.

    ``products``: by kind of numbers and of scaling, what :func:`growth` gives. ``layers``: by how even the tokens'
    gradients are, by number of tokens, by result (y, dx, dw) and by layer, the relative error.
    """
    torch.set_num_threads(1)
    products = {
        numbers: {scaling: growth(numbers, scaling, seed) for scaling in ("row_row", "row_tensor")}
        for numbers in ("gaussian", "student")
    }
    layers = {
        gradients: {str(tokens): layer_errors(tokens, gradients, seed) for tokens in TOKENS}
        for gradients in ("even", "uneven")
    }
    return {"products": products, "layers": layers}


def fingerprint() -> dict[str, Any]:
    """What tells that the numerics moved: three error variances, and the relative errors of a small layer's dW."""
    found = growth("gaussian", "row_tensor", 0, lengths=LENGTHS[:3])
    error = layer_errors(256, "uneven", 0)["dw"]["int8"]
    return {"variances": list(found["variance"].values()), "relative_error_of_dw": error}


def growth(numbers: Numbers, scaling: Scaling, seed: int, *, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Any]:
    """Error variance of inner products by length, measured and by the theory.

    ``variance``, ``theory_ratio`` (measured over theory) and ``relative`` (over the mean square of the exact products)
    have one value per length; ``slope`` and ``theory_slope`` are d log variance / d log length, 1 at fixed scales.
    """
    found = {length: _errors(numbers, scaling, length, seed) for length in lengths}
    measured, theory, size = np.array(list(found.values())).T
    names = [str(length) for length in lengths]
    return {
        "variance": dict(zip(names, measured.tolist(), strict=True)),
        "theory_ratio": dict(zip(names, (measured / theory).tolist(), strict=True)),
        "relative": dict(zip(names, (measured / size).tolist(), strict=True)),
        "slope": _slope(lengths, measured),
        "theory_slope": _slope(lengths, theory),
    }


def _slope(lengths: tuple[int, ...], values: np.ndarray) -> float:
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def _errors(numbers: Numbers, scaling: Scaling, length: int, seed: int) -> tuple[float, float, float]:
    """Mean square of the error, its expectation by the theory, and mean square of the exact products."""
    x, y = (draw(numbers, length, seed, side) for side in ("x", "y"))  # float64 [COUNT, n] each
    left, right = quantize.rows(x), (quantize.rows if scaling == "row_row" else quantize.tensor)(y)
    coarse = product(left, right.T, dtype=torch.float64, backend="reference", name="x")
    exact = x @ y.T
    return (coarse - exact).square().mean().item(), theory(x, y, left.scale, right.scale), exact.square().mean().item()


def draw(numbers: Numbers, length: int, seed: int, side: str) -> Tensor:
    """Numbers of variance 1: Gaussian, or Student's t of 3 degrees of freedom, whose tails are heavy.

    Shapes: -> float64 [COUNT, length].
    """
    generator = randomness.generator(seed, length, f"{numbers} {side}")
    z = torch.randn(COUNT, length, generator=generator, dtype=torch.float64)
    if numbers == "gaussian":
        return z
    squares = torch.randn(3, COUNT, length, generator=generator, dtype=torch.float64).square().sum(dim=0)
    return z / squares.sqrt()  # t = z / sqrt(squares / 3) has variance 3


def theory(x: Tensor, y: Tensor, x_scale: Tensor, y_scale: Tensor) -> float:
    """The module's formula, averaged over all pairs of rows.

    Shapes: ``x``, ``y`` [COUNT, n]; scales [COUNT, 1], or [1, 1] for one scale.
    """
    a, b = ((scale / quantize.LARGEST).square() / 12 for scale in (x_scale, y_scale))
    # every product of two rows' values is averaged over all pairs, so the average of each factor is enough
    energy_x, energy_y = (side.square().sum(dim=1).mean() for side in (x, y))
    return (a.mean() * energy_y + b.mean() * energy_x + x.shape[1] * a.mean() * b.mean()).item()


def layer_errors(tokens: int, gradients: Gradients, seed: int) -> dict[str, dict[str, float]]:
    """Relative errors, |coarse - exact| / |exact|, of Y, dX and dW of each layer: ``found["dw"]["int8"]``.

    X is Gaussian, as a LayerNorm leaves it; W has deviation 0.02. ``even`` gradients are Gaussian too. ``uneven``: each
    token's is as much larger or smaller as a standard log-normal number, for a loss weighs few tokens heavily. Y and dX
    have a scale for each token; in dW all tokens share one.
    """
    generator = randomness.generator(seed, tokens, f"{gradients} layer")
    x = torch.randn(tokens, WIDTH, generator=generator)
    weight = 0.02 * torch.randn(WIDTH, WIDTH, generator=generator)
    grad = torch.randn(tokens, WIDTH, generator=generator)
    if gradients == "uneven":
        grad *= torch.randn(tokens, 1, generator=generator).exp()
    wide_x, wide_weight, wide_grad = x.double(), weight.double(), grad.double()
    exact = {"y": wide_x @ wide_weight.T, "dx": wide_grad @ wide_weight, "dw": wide_grad.T @ wide_x}
    errors: dict[str, dict[str, float]] = {name: {} for name in exact}
    for kind, made in LAYERS.items():
        layer = made(WIDTH, WIDTH, bias=False)
        layer.weight = nn.Parameter(weight)
        start = x.clone().requires_grad_()
        y = layer(start)
        dx, dw = torch.autograd.grad(y, (start, layer.weight), grad)
        for name, coarse in (("y", y.detach()), ("dx", dx), ("dw", dw)):
            errors[name][kind] = ((coarse - exact[name]).norm() / exact[name].norm()).item()
    return errors
