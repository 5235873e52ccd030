# SPDX-License-Identifier: Apache-2.0
"""Networks to compare a circuit with: the same one without codes and links, and a Perceiver IO of its size."""

import torch
from torch import nn

from recipes_lib.models.nac.modulation import ModulatedLinear
from recipes_lib.models.nac.network import NeuralAttentiveCircuit, Shape
from recipes_lib.models.perceiver import PerceiverIO, matched


@torch.no_grad()
def densely(network: NeuralAttentiveCircuit) -> NeuralAttentiveCircuit:
    """Changes a circuit, in place, to one whose modules share all weights and listen to all others, and returns it.

    No code scales an input, since all gains are 0, and all signatures are equal, so that every link has probability 1.
    Neither is learned. Codes stay what modules start from, so modules differ as the latents of a Perceiver IO do.
    """
    for layer in network.modules():
        if isinstance(layer, ModulatedLinear):
            layer.gain.zero_().requires_grad_(False)
            layer.code.requires_grad_(False)
    network.circuit.signatures.fill_(1.0).requires_grad_(False)
    return network


def perceiver(shape: Shape, tokens: nn.Module, count: int) -> PerceiverIO:
    """A Perceiver IO over ``count`` tokens a sample with as many latents, layers and parameters as the circuit of ``shape``."""
    return PerceiverIO(matched(shape, "parameters", tokens=count, token_width=tokens.width), tokens)
