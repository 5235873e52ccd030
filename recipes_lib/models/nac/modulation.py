# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose input is scaled by a module's code (the paper's ModFC), and the feed-forward layer made of them.

Symbols: U modules, c code, sigma(c) the scales of the input.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAIN = 0.1
"""Initial gain of a code's influence: every module starts near the same linear layer."""


class ModulatedLinear(nn.Module):
    """y = W (x * sigma(c)) + b with sigma(c) = 1 + gain * LayerNorm(M c), and a learned gain.

    All modules share W, M and the gain; a module's code decides which parts of its input count how much.

    Shapes: states [..., U, in_features], codes [U, code_dim] or [B, U, code_dim] -> [..., U, out_features].
    Source: ``mweiss17/NeuralAttentiveCircuits``, ``utils.py``, ``ModFC``, with the settings of the ImageNet configs.
    """

    fixed: Tensor | None

    def __init__(self, in_features: int, out_features: int, code_dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        nn.init.kaiming_uniform_(self.linear.weight, a=math.sqrt(5))
        if bias:
            nn.init.zeros_(self.linear.bias)
        self.code = nn.Linear(code_dim, in_features, bias=False)
        self.gain = nn.Parameter(torch.tensor(GAIN))
        self.register_buffer("fixed", None, persistent=False)

    def scales(self, codes: Tensor) -> Tensor:
        """sigma(c), the factors of the input.  [..., U, code_dim] -> [..., U, in_features]"""
        if self.fixed is not None:
            return self.fixed
        return 1 + self.gain * F.layer_norm(self.code(codes), (self.linear.in_features,))

    def fix(self, codes: Tensor) -> None:
        """Computes the scales once, for inference with these ``codes`` only."""
        self.fixed = self.scales(codes).detach()

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """The modules' outputs."""
        return self.linear(x * self.scales(codes))


class FeedForward(nn.Module):
    """A gated feed-forward layer (GEGLU) of each module: W2 (GELU(a) * b), where a and b are halves of W1's output.

    Shapes: states [B, U, width], codes [U, code_dim] or [B, U, code_dim] -> [B, U, width].
    Source: Shazeer, "GLU variants improve transformer", arXiv 2002.05202.
    """

    def __init__(self, width: int, hidden: int, code_dim: int) -> None:
        super().__init__()
        self.enter = ModulatedLinear(width, 2 * hidden, code_dim)
        self.leave = ModulatedLinear(hidden, width, code_dim)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """The modules' outputs, without a residual."""
        value, gate = self.enter(x, codes).chunk(2, dim=-1)
        return self.leave(value * F.gelu(gate), codes)
