# SPDX-License-Identifier: Apache-2.0
"""A convolution against the attention that computes the same, over the side of the feature map: time and memory.

``python benchmarks/tcnn.py``; one thread, process time, about two minutes. 3x3 kernels, so nine heads. "kept" is what
the forward pass keeps for the backward pass, parameters and input left out. The slope is that of the logarithm of the
attention's time over the logarithm of the number of pixels: 1 is linear, 2 quadratic. ``--device cuda`` measures a GPU.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from side_by_side import Timing, show, side_by_side
from torch import Tensor, nn

from recipes_lib.models.gated_convolution import GatedConvolution


def kept_bytes(layer: nn.Module, maps: Tensor) -> int:
    """Bytes of the tensors that the forward pass keeps, each storage once, without parameters and input."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*layer.parameters(), maps)}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = layer(maps)
    del output
    return sum(sizes.values())


def rivals(layer: nn.Module, maps: Tensor, grad: Tensor) -> dict[str, Callable[[], None]]:
    """The layer's forward pass, and forward and backward pass; without the short cut of local heads."""
    weights = [maps, *layer.parameters()]
    wait = torch.cuda.synchronize if maps.is_cuda else lambda: None

    def forward() -> None:
        layer(maps)
        wait()

    def both() -> None:
        torch.autograd.grad(layer(maps), weights, grad)
        wait()

    return {"forward": forward, "forward and backward": both}


def measure(
    sides: list[int], channels: int, batch: int, dtype: torch.dtype, device: str, rounds: int
) -> dict[str, dict[str, Timing]]:
    """The timings by side and pass; prints what is kept for the backward pass."""
    table = Table(title="MiB kept for the backward pass")
    for column in ("side", "convolution", "attention", "attention maps alone"):
        table.add_column(column, justify="right")
    cases = {}
    clock = time.perf_counter if device == "cuda" else time.process_time
    for side in sides:
        convolution = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)
        twin = GatedConvolution(convolution)
        maps = torch.randn(batch, channels, side, side, device=device, dtype=dtype, requires_grad=True)
        grad = torch.randn_like(maps)
        plain, attention = rivals(convolution, maps, grad), rivals(twin, maps, grad)
        for name in plain:
            pair = {"convolution": plain[name], "attention": attention[name]}
            cases[f"{side}x{side}, {name}"] = side_by_side(pair, rounds=rounds, reference="convolution", clock=clock)
        sizes = (
            kept_bytes(convolution, maps),
            kept_bytes(twin, maps),
            batch * 9 * side**4 * maps.element_size(),
        )
        table.add_row(f"{side}", *(f"{size / 2**20:.2f}" for size in sizes))
    Console(width=110).print(table)
    return cases


def slope(cases: dict[str, dict[str, Timing]], sides: list[int], name: str, rival: str) -> float:
    """The exponent of the number of pixels in the time of ``rival``, by least squares on logarithms."""
    seconds = [cases[f"{side}x{side}, {name}"][rival].seconds for side in sides]
    return float(np.polyfit(np.log(np.square(sides)), np.log(seconds), 1)[0])


def main() -> None:
    """Prints memory, times and slopes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[7, 10, 14, 20, 28])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sides, dtype = arguments.sides, getattr(torch, arguments.dtype)
    cases = measure(sides, arguments.channels, arguments.batch, dtype, arguments.device, arguments.rounds)
    show(f"3x3, {arguments.channels} channels, batch {arguments.batch}, {arguments.dtype}, one thread", cases)
    for name in ("forward", "forward and backward"):
        exponents = ", ".join(
            f"{rival} {slope(cases, sides, name, rival):.2f}" for rival in ("convolution", "attention")
        )
        Console(width=110).print(f"time grows with this power of the number of pixels, {name}: {exponents}")


if __name__ == "__main__":
    main()
