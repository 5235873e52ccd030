# SPDX-License-Identifier: Apache-2.0
"""PAWS's loss, forward and backward, beside the same from plain parts and beside its matrix products alone.

``python benchmarks/paws_step.py``; one thread, a minute on a quiet machine. Sizes of one process, as in the paper.
ImageNet: 64 images, so 512 anchors, against the gathered support of 960 classes x 7, in 2048 dimensions. CIFAR-10: 256
images, so 2048 anchors, against 10 x 64 x 2, in 128 dimensions.
"""

import time

import torch
import torch.nn.functional as F
from side_by_side import Timing, show, side_by_side
from torch import Tensor

from recipes_lib.objectives.snn import paws_loss, support_labels

TAU, T = 0.1, 0.25


def plain_loss(z: Tensor, h: Tensor, z_s: Tensor, h_s: Tensor, y: Tensor) -> Tensor:
    """The formulas, word for word."""

    def predict(queries: Tensor, supports: Tensor) -> Tensor:
        queries, supports = F.normalize(queries, dim=1), F.normalize(supports, dim=1)
        weights = F.softmax(torch.einsum("nd,sd->ns", queries, supports) / TAU, dim=1)
        return torch.einsum("ns,sc->nc", weights, y)

    def sharpen(p: Tensor) -> Tensor:
        return p ** (1 / T) / (p ** (1 / T)).sum(dim=1, keepdim=True)

    with torch.no_grad():
        first, second = sharpen(predict(h, h_s)).chunk(2)
        small = [(first + second) / 2] * (2 * len(z) // len(h) - 2)
        targets = torch.cat([second, first, *small])
        targets[targets < 1e-4] = 0
    p = predict(z, z_s)
    mean = sharpen(p).mean(dim=0)
    return -(targets * p.log()).sum(dim=1).mean() + (mean * mean.log()).sum()


def measure(images: int, small_views: int, classes: int, each: int, dim: int) -> dict[str, Timing]:
    """Median times of the three at one size, by this process's own clock."""
    torch.manual_seed(0)
    count = classes * each
    z, z_s = (torch.randn(rows, dim, requires_grad=True) for rows in ((2 + small_views) * images, count))
    h, h_s = torch.randn(2 * images, dim), torch.randn(count, dim)
    y = support_labels(torch.arange(classes).repeat(each), classes, 0.1)
    torch.testing.assert_close(paws_loss(z, h, z_s, h_s, y)["loss"], plain_loss(z, h, z_s, h_s, y))
    weights = torch.rand(len(z), count)
    upstream = torch.rand(len(z), classes)

    def products() -> None:
        torch.mm(torch.mm(h, h_s.T), y)
        similarities, _ = z @ z_s.T, torch.mm(weights, y)
        torch.autograd.grad(similarities, (z, z_s), torch.mm(upstream, y.T))

    return side_by_side(
        {
            "products alone": products,
            "ours": lambda: torch.autograd.grad(paws_loss(z, h, z_s, h_s, y)["loss"], (z, z_s)),
            "plain parts": lambda: torch.autograd.grad(plain_loss(z, h, z_s, h_s, y), (z, z_s)),
        },
        rounds=5,
        reference="products alone",
        clock=time.process_time,
    )


def main() -> None:
    """Prints the ratios."""
    torch.set_num_threads(1)
    sizes = {
        "ImageNet": (64, 6, 960, 7, 2048),
        "CIFAR-10": (256, 6, 10, 128, 128),
    }
    cases = {name: measure(*numbers) for name, numbers in sizes.items()}
    show(
        "PAWS loss, forward and backward, float32, one thread",
        cases,
        per_call=dict(zip(sizes, (512, 2048), strict=True)),
    )


if __name__ == "__main__":
    main()
