# SPDX-License-Identifier: Apache-2.0
"""Ways to apply exp(sum_k t_k L_k) to one embedding per t, forward and backward, side by side.

``python benchmarks/lie_operator.py``; one thread, float32, skew generators whose norm is sqrt(d), |t| up to 1. Ratios: times
of the dense matrix exponential. ``error``: relative to the dense one in float64. ``kept``: megabytes that the forward pass
keeps for the backward pass. The block-diagonal generators are another model, with fewer parameters, so they have no error.
"""

import argparse
import time
from collections.abc import Callable

import torch
from side_by_side import show, side_by_side
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from recipes_lib.models.lie_operator import LieOperator, act, operators, taylor_action

TERMS = {4: 8, 8: 9, 16: 9}
"""Substeps of the Taylor action -> terms of each."""


def rivals(dim: int, generators: int, pairs: int, block: int) -> dict[str, Callable[[], Tensor]]:
    """The ways by name; each gives the moved embeddings [pairs, dim]."""
    torch.manual_seed(0)
    dense, blocks = LieOperator(dim, generators), LieOperator(dim, generators, block_size=block)
    z, t = torch.randn(pairs, dim), 2 * torch.rand(pairs, generators) - 1
    found = {"dense": lambda: dense(z, t), f"blocks of {block}": lambda: blocks(z, t)}
    for substeps, terms in TERMS.items():
        found[f"Taylor {substeps} x {terms}"] = lambda substeps=substeps, terms=terms: taylor_action(
            t, dense.blocks, z, substeps=substeps, terms=terms
        )
    exact = act(operators(t.double(), dense.blocks.detach().double()), z.double())
    for name, way in found.items():
        if not name.startswith("blocks"):
            error = ((way().detach() - exact).norm() / exact.norm()).item()
            print(f"{name:16} error {error:.1e}, kept {kept(way) / 1e6:.1f} MB")
        else:
            print(f"{name:16} kept {kept(way) / 1e6:.1f} MB")
    return found


def kept(way: Callable[[], Tensor]) -> int:
    """The bytes that one forward pass keeps, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        way()  # the result is dropped, so addresses may be used again: a lower bound
    return sum(storages.values())


def main() -> None:
    """Prints both tables, of the forward pass alone and with the backward pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--generators", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    forward, both = {}, {}
    for dim in given.dims:
        print(f"d = {dim}, {given.generators} generators, {given.pairs} pairs")
        ways = rivals(dim, given.generators, given.pairs, given.block)
        how = {"reference": "dense", "rounds": given.rounds, "clock": time.process_time}
        with torch.no_grad():
            forward[f"d = {dim}"] = side_by_side(ways, **how)
        steps = {name: (lambda way=way: way().square().sum().backward()) for name, way in ways.items()}
        both[f"d = {dim}"] = side_by_side(steps, **how)
    show("forward", forward)
    show("forward and backward", both)


if __name__ == "__main__":
    main()
