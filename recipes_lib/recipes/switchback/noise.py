# SPDX-License-Identifier: Apache-2.0
"""Measures how the error of an 8-bit inner product grows with its length.

This growth is the reason why SwitchBack does not compute the weight's gradient in 8 bits.

Theory. Vectors x and y of n entries are stored as integers times s_x / 127 and s_y / 127. Rounding x_i leaves an error
that is nearly uniform over one step, with variance a = (s_x / 127)^2 / 12; b is the same for y. If all errors are
independent of each other and of x and y, the error of sum x_i y_i has

    variance = a sum y_i^2 + b sum x_i^2 + n a b.

The formula uses the measured scales s_x and s_y, because the largest of n numbers grows with n: its square grows like
2 ln n for Gaussian numbers, and like n^(2/3) for Student's t with 3 degrees of freedom. So the variance of the error
grows faster than n.

If the terms of the sum have random signs, the sum itself has variance n. Relative to the sum, the error therefore grows
only as the scales do.

Source: the argument is that of Wortsman et al., arXiv 2304.13013; the formula is the usual one for uniform rounding.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.lowbit import Int8Linear, SwitchBackLinear, quantize
from recipes_lib.lowbit.matmul import product

LENGTHS = tuple(2**power for power in range(6, 16))
"""Lengths of inner products, 64 to 32,768: from the width of an attention head to the tokens of a large batch."""
COUNT = 64
"""Number of vectors on each side, which make 64^2 = 4,096 inner products per length."""
WIDTH = 384
"""Inputs and outputs of the layer, a ViT-S's output projection. It is the inner length of the output Y and the input's
gradient dX."""
TOKENS = (1024, 4096, 16384)
"""Inner lengths of the weight's gradient dW: batches of 5, 21 and 84 images of 196 patches."""

Numbers = Literal["gaussian", "student"]
Scaling = Literal["row_row", "row_tensor"]
Gradients = Literal["even", "uneven"]
LAYERS = {"switchback": SwitchBackLinear, "int8": Int8Linear}


def measure(seed: int) -> dict[str, Any]:
    """All metrics of one seed.

    ``products``: the result of :func:`growth` by kind of numbers and kind of scaling. ``layers``: the relative error by
    kind of gradients (even or uneven), number of tokens, product (y, dx, dw) and layer.
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
    """Three error variances and the relative error of a small layer's dW, which change if the numerics change."""
    found = growth("gaussian", "row_tensor", 0, lengths=LENGTHS[:3])
    error = layer_errors(256, "uneven", 0)["dw"]["int8"]
    return {"variances": list(found["variance"].values()), "relative_error_of_dw": error}


def growth(numbers: Numbers, scaling: Scaling, seed: int, *, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Any]:
    """The error variance of inner products by length, measured and from the theory.

    ``variance``, ``theory_ratio`` (measured / theory) and ``relative`` (variance / mean square of the exact products)
    have one value per length. ``slope`` and ``theory_slope`` are d log variance / d log length; with scales that do not
    depend on the length they would be 1.
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
    """The mean square of the error, its expected value in theory, and the mean square of the exact products."""
    x, y = (draw(numbers, length, seed, side) for side in ("x", "y"))  # float64 [COUNT, n] each
    left, right = quantize.rows(x), (quantize.rows if scaling == "row_row" else quantize.tensor)(y)
    coarse = product(left, right.T, dtype=torch.float64, backend="reference", name="x")  # [COUNT, COUNT]
    exact = x @ y.T
    return (coarse - exact).square().mean().item(), theory(x, y, left.scale, right.scale), exact.square().mean().item()


def draw(numbers: Numbers, length: int, seed: int, side: str) -> Tensor:
    """Random numbers: Gaussian, or Student's t with 3 degrees of freedom, which has heavy tails; both have variance 1.

    Shapes: -> float64 [COUNT, length].
    """
    generator = randomness.generator(seed, length, f"{numbers} {side}")
    z = torch.randn(COUNT, length, generator=generator, dtype=torch.float64)
    if numbers == "gaussian":
        return z
    squares = torch.randn(3, COUNT, length, generator=generator, dtype=torch.float64).square().sum(dim=0)
    return z / squares.sqrt()  # t = z / sqrt(squares / 3) has variance 3, so this has variance 1


def theory(x: Tensor, y: Tensor, x_scale: Tensor, y_scale: Tensor) -> float:
    """The error variance by the formula at the top of this file, averaged over all pairs of rows.

    Shapes: ``x``, ``y`` [COUNT, n]; scales [COUNT, 1], or [1, 1] for one scale.
    """
    a, b = ((scale / quantize.LARGEST).square() / 12 for scale in (x_scale, y_scale))
    # the mean over all pairs of rows of a product of two rows' values is the product of their means
    energy_x, energy_y = (side.square().sum(dim=1).mean() for side in (x, y))
    return (a.mean() * energy_y + b.mean() * energy_x + x.shape[1] * a.mean() * b.mean()).item()


def layer_errors(tokens: int, gradients: Gradients, seed: int) -> dict[str, dict[str, float]]:
    """Relative errors |coarse - exact| / |exact| of Y, dX and dW of each layer, as in ``errors["dw"]["int8"]``.

    X is Gaussian, like the output of a LayerNorm; W is Gaussian with standard deviation 0.02. ``even`` gradients are
    Gaussian too. ``uneven`` gradients are multiplied by a standard log-normal number per token, since a loss weighs few
    tokens heavily. In Y and dX each token has its own scale; in dW all tokens share one.

    Shapes: X [tokens, WIDTH], W [WIDTH, WIDTH], gradient of Y [tokens, WIDTH].
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
