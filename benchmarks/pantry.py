# SPDX-License-Identifier: Apache-2.0
"""How fast the Pantry renders: pictures a second by size and chunk, against following every ray of all at once.

``python benchmarks/pantry.py``; one thread, about four minutes.
"""

import argparse
import time
from unittest import mock

import torch
from side_by_side import Timing, show, side_by_side
from torch import Tensor

from recipes_lib.data import pantry
from recipes_lib.data.pantry import ground, painting
from recipes_lib.data.pantry.marching import Points

BASELINE = "every ray, one chunk"
COUNTS = {32: 2048, 64: 256, 224: 12}


def _everywhere(origin: Points, direction: Points, *_: object) -> tuple[Tensor, Tensor]:
    """In place of an object's box: a span that no ray misses."""
    near = torch.zeros_like(origin.x + direction.x)
    return near + 0.05, near + 12


def every_ray(factors: pantry.Factors, size: int) -> Tensor:
    """The same pictures without leaving out rays, all images together."""
    with mock.patch.object(painting, "box_span", _everywhere), mock.patch.object(ground, "box_span", _everywhere):
        return pantry.render(factors, size, chunk=len(factors))


def measure(size: int, chunks: list[int], rounds: int) -> dict[str, Timing]:
    """Times each chunk and the baseline on natural scenes."""
    factors = pantry.sample_factors(COUNTS[size], seed=0)
    rivals = {BASELINE: lambda: every_ray(factors, size)}
    for chunk in chunks:
        rivals[f"chunk {chunk}"] = lambda chunk=chunk: pantry.render(factors, size, chunk)
    rivals["chunk chosen by itself"] = lambda: pantry.render(factors, size)
    return side_by_side(rivals, rounds=rounds, reference=BASELINE, clock=time.process_time)


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(COUNTS), choices=COUNTS)
    parser.add_argument("--chunks", type=int, nargs="+", default=[16, 64, 256])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = {f"{size} pixels": measure(size, arguments.chunks, arguments.rounds) for size in arguments.sizes}
    per_call = {f"{size} pixels": COUNTS[size] for size in arguments.sizes}
    show("The Pantry, natural scenes, one thread, process time", cases, per_call=per_call)


if __name__ == "__main__":
    main()
