# SPDX-License-Identifier: Apache-2.0
"""Perceiver IO: latents read tokens, attend to each other, and are read by learned queries.

It is the dense control of Neural Attentive Circuits: the same tokens, layers and widths, but every latent has the same
layers and listens to all others. Latents can be left out like modules.

Symbols: B samples, U latents, O output queries, V tokens, d width of a latent.
Source: Jaegle et al., "Perceiver IO", arXiv 2107.14795.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.models.nac import network as nac
from recipes_lib.models.nac.circuit import check_kept
from recipes_lib.models.nac.links import attend
from recipes_lib.models.nac.network import Shape


class Sizes(NamedTuple):
    """The sizes of a Perceiver IO."""

    latents: int
    """U."""
    outputs: int
    """O."""
    width: int
    """d."""
    depth: int
    """Number of layers of self-attention, each with weights of its own."""
    heads: int
    """Heads of self-attention; both cross-attentions have one."""
    head_width: int
    """Dimensions of a head."""
    hidden: int
    """Hidden units of the MLPs."""


def operations(sizes: Sizes, latents: int, *, tokens: int, token_width: int) -> int:
    """Floating-point operations per sample of the matrix products of a Perceiver IO of which ``latents`` run.

    A multiply-add counts as two; the tokens themselves are not counted.
    """
    _, outputs, d, depth, heads, head, hidden = sizes
    inner, mlp = heads * head, 2 * d * hidden
    read_in = tokens * 2 * token_width * head + latents * (2 * d * head + 2 * tokens * head + mlp)
    layer = latents * (4 * d * inner + 2 * latents * inner + mlp)
    read_out = latents * 2 * d * head + outputs * (2 * d * head + 2 * latents * head + mlp)
    return 2 * (read_in + depth * layer + read_out)


def matched(shape: Shape, by: Literal["operations", "parameters"], *, tokens: int, token_width: int) -> Sizes:
    """The Perceiver IO of the size of a circuit: as many latents as modules, the same width, layers and heads.

    Only the hidden units of its MLPs differ, so that it has as many operations per sample, or as many parameters, as
    the whole circuit, those that belong to codes included. By operations it has about 0.6 times the parameters; by
    parameters, 1.3 to 1.5 times the operations.
    """
    few, more = (Sizes(*shape[:3], *shape[4:7], hidden) for hidden in (1, 2))
    if by == "operations":
        given = {"tokens": tokens, "token_width": token_width}
        wanted = nac.operations(shape, shape.modules, **given)
        counts = [operations(sizes, sizes.latents, **given) for sizes in (few, more)]
    else:
        with torch.device("meta"):
            none = _NoTokens(token_width)
            wanted = _parameters(nac.NeuralAttentiveCircuit(shape, none))
            counts = [_parameters(PerceiverIO(sizes, none)) for sizes in (few, more)]
    return few._replace(hidden=1 + round((wanted - counts[0]) / (counts[1] - counts[0])))


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class _NoTokens(nn.Module):
    """Stands for tokens of a known width, without parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class PerceiverIO(nn.Module):
    """A Perceiver IO as a backbone; its representation is the state of its output query.

    Of several output queries the states are averaged with softmax weights, as in
    :class:`recipes_lib.models.nac.network.NeuralAttentiveCircuit`. ``tokens``: a module of
    :mod:`recipes_lib.models.nac.tokens`. The weights are drawn from torch's global generator.

    Shapes: whatever ``tokens`` takes -> [B, d].
    """

    def __init__(self, sizes: Sizes, tokens: nn.Module) -> None:
        super().__init__()
        self.sizes, self.tokens = sizes, tokens
        d, head, hidden = sizes.width, sizes.head_width, sizes.hidden
        self.latents = nn.Parameter(torch.randn(sizes.latents, d) * 0.02)
        self.queries = nn.Parameter(torch.randn(sizes.outputs, d) * 0.02)
        self.read_in = Layer(d, tokens.width, 1, head, hidden)
        self.blocks = nn.ModuleList(Layer(d, None, sizes.heads, head, hidden) for _ in range(sizes.depth))
        self.read_out = Layer(d, d, 1, head, hidden, residual=False)
        self.confidence = nn.Linear(d, 1) if sizes.outputs > 1 else None
        self.norm = nn.LayerNorm(d)
        self.num_features = d

    def forward(self, inputs: Tensor, *, kept: Tensor | None = None) -> Tensor:
        """The representation, after the final LayerNorm; the arguments are those of :meth:`before_norm`."""
        return self.norm(self.before_norm(inputs, kept=kept))

    def before_norm(self, inputs: Tensor, *, kept: Tensor | None = None) -> Tensor:
        """The representation before the final LayerNorm. ``kept``: the latents that are computed, int64 [n].

        Raises: ``ValueError`` if ``kept`` is empty, or names a latent twice or one that there is not.
        """
        values, hidden = self.tokens(inputs)
        latents = self.latents
        if kept is not None:
            check_kept(kept, len(latents))
            latents = latents[kept.to(latents.device)]
        states = self.read_in(latents.repeat(len(values), 1, 1), values, hidden)
        for block in self.blocks:
            states = block(states)
        found = self.read_out(self.queries.repeat(len(values), 1, 1), states)  # [B, O, d]
        if self.confidence is None:
            return found[:, 0]
        return (self.confidence(found).softmax(dim=1) * found).sum(dim=1)

    @torch.no_grad()
    def prune(self, kept: Tensor) -> None:
        """Removes all but these latents for good.

        Raises: ``ValueError`` as :meth:`before_norm`.
        """
        check_kept(kept, len(self.latents))
        self.latents = nn.Parameter(self.latents[kept].clone())


class Layer(nn.Module):
    """Attention of latents to tokens (or to each other), then an MLP; both after a LayerNorm, both with a residual.

    ``in_width``: width of the tokens; None: self-attention. ``residual``: whether the attention has one.

    Shapes: latents [B, U, d], tokens [B, V, in_width], ``hidden`` bool [B, V] (tokens that do not exist) -> [B, U, d].
    """

    def __init__(
        self, width: int, in_width: int | None, heads: int, head_width: int, hidden: int, *, residual: bool = True
    ) -> None:
        super().__init__()
        inner, source = heads * head_width, in_width or width
        self.heads, self.residual = heads, residual
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token_norm = nn.LayerNorm(in_width) if in_width else None
        self.query, self.key, self.value = nn.Linear(width, inner), nn.Linear(source, inner), nn.Linear(source, inner)
        self.leave = nn.Linear(inner, width)
        self.mlp1, self.mlp2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, latents: Tensor, tokens: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """The next states of the latents."""
        x = self.norm1(latents)
        source = x if self.token_norm is None else self.token_norm(tokens)
        seen = None if hidden is None else x.new_zeros(1).masked_fill(hidden[:, None], -torch.inf)  # [B, 1, V]
        mixed = self.leave(attend(self.query(x), self.key(source), self.value(source), seen, self.heads))
        latents = latents + mixed if self.residual else mixed
        return latents + self.mlp2(F.gelu(self.mlp1(self.norm2(latents))))
