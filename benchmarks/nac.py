# SPDX-License-Identifier: Apache-2.0
"""A pruned circuit against the whole one, and against a Perceiver IO of equal size, by latency.

``python benchmarks/nac.py``; one thread, float32, inference without gradients, scales of the codes computed beforehand.
Ratios: times of the whole circuit's forward pass at the same batch size. Tokens are given, so no time is spent on a stem.
``counted`` is the ratio that the operations of matrix products predict (:func:`recipes_lib.models.nac.network.operations`).
Perceiver IO: "operations" has as many of them as the whole circuit, "parameters" has as many parameters. A masked circuit
computes all modules and silences 7 of 8 through their links, which saves nothing.
"""

import argparse

import torch
from side_by_side import show, side_by_side
from torch import Tensor, nn

from recipes_lib.models import perceiver
from recipes_lib.models.nac import network as nac
from recipes_lib.models.nac.circuit import Circuit
from recipes_lib.models.nac.tokens import Tokens
from recipes_lib.recipes.nac.pruning import pruned

SHARES = (1, 2, 4, 8)
"""A circuit keeps one in so many of its modules."""


class Given(nn.Module):
    """Tokens that are given as they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, values: Tensor) -> Tokens:
        """The tokens."""
        return Tokens(values, None)


class Masked(nac.NeuralAttentiveCircuit):
    """A circuit of which only the first modules have links, though all are computed."""

    heard = 0

    def log_links(self, circuit: Circuit) -> Tensor:
        """Links of strength 0 to all modules but the first ``heard``, themselves excepted."""
        found = super().log_links(circuit)
        away = (torch.arange(len(found)) >= self.heard) & (torch.arange(len(found)) < circuit.modules)
        return found.masked_fill(away & ~torch.eye(len(found), dtype=torch.bool), -torch.inf)


def networks(shape: nac.Shape, tokens: int, token_width: int) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """The rivals by name, and their operations in times the whole circuit's."""
    size = {"tokens": tokens, "token_width": token_width}
    whole = nac.NeuralAttentiveCircuit(shape, Given(token_width))
    rivals: dict[str, nn.Module] = {}
    counted = {}
    for share in SHARES:
        name = "whole circuit" if share == 1 else f"circuit / {share}"
        rivals[name] = pruned(whole, torch.arange(shape.modules // share))
        counted[name] = nac.operations(shape, shape.modules // share, **size)
    masked = Masked(shape, Given(token_width)).eval()
    masked.load_state_dict(whole.state_dict())
    masked.heard = shape.modules // SHARES[-1]
    masked.fix()
    rivals["masked to 1 / 8"], counted["masked to 1 / 8"] = masked, counted["whole circuit"]
    for by in ("operations", "parameters"):
        sizes = perceiver.matched(shape, by, **size)
        rivals[f"Perceiver IO, {by}"] = perceiver.PerceiverIO(sizes, Given(token_width)).eval()
        counted[f"Perceiver IO, {by}"] = perceiver.operations(sizes, sizes.latents, **size)
    return rivals, {name: count / counted["whole circuit"] for name, count in counted.items()}


def main() -> None:
    """Prints a table of each shape and batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archs", nargs="+", default=["nac_nano"], choices=sorted(nac.ARCHS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=21)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for arch in given.archs:
        shape = nac.ARCHS[arch]
        width = shape.width + 64
        rivals, counted = networks(shape, given.tokens, width)
        for batch in given.batches:
            x = torch.randn(batch, given.tokens, width)
            with torch.inference_mode():
                calls = {
                    f"{name} ({counted[name]:.2f} counted)": lambda m=model, x=x: m(x) for name, model in rivals.items()
                }
                timed = side_by_side(calls, rounds=given.rounds, reference=next(iter(calls)), warm_up=3)
            show(f"{arch}, {given.tokens} tokens", {f"batch {batch}": timed})


if __name__ == "__main__":
    main()
