# SPDX-License-Identifier: Apache-2.0
"""The whole network: tokens -> read-in -> propagators -> read-out, with a circuit that may be pruned.

Symbols: B samples, U modules, O output modules, V tokens, d width of a module's state.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.errors import Faults
from recipes_lib.models.nac import links
from recipes_lib.models.nac.circuit import Circuit, LearnedCircuit, TextCircuit
from recipes_lib.models.nac.layers import Propagator, ReadIn, ReadOut
from recipes_lib.models.nac.modulation import ModulatedLinear
from recipes_lib.models.nac.tokens import Tokens


class Shape(NamedTuple):
    """The sizes of a circuit."""

    modules: int
    """Number of modules without the output modules, U."""
    outputs: int
    """Number of output modules, O. One gives the features itself; of several, a weighted mean is taken."""
    width: int
    """Dimensions of a module's state and of its code, d."""
    signature_dim: int
    """Dimensions of a signature."""
    depth: int
    """Number of propagators."""
    heads: int
    """Heads of a propagator; read-in and read-out have one."""
    head_width: int
    """Dimensions of a head."""
    hidden: int
    """Hidden units of the gated feed-forward layers."""


ARCHS = {
    "nac_pico": Shape(16, 1, 32, 8, 2, 2, 16, 64),
    "nac_nano": Shape(32, 1, 64, 8, 3, 2, 32, 128),
    "nac_320": Shape(320, 64, 384, 64, 8, 6, 64, 512),  # Tiny-ImageNet: 1.333 times the width
    "nac_640": Shape(640, 64, 384, 64, 8, 8, 64, 1536),  # ImageNet, 110 epochs
    "nac_960": Shape(960, 64, 512, 64, 8, 8, 64, 1536),
    "nac_1120": Shape(1120, 64, 512, 64, 8, 8, 64, 1536),
    "nac_1280": Shape(1280, 128, 768, 64, 8, 12, 64, 2304),
}
Arch = Literal["nac_pico", "nac_nano", "nac_320", "nac_640", "nac_960", "nac_1120", "nac_1280"]


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """How modules are linked."""

    bandwidth: float = 1.0
    """eps, above 0: the link of two modules has probability exp(-(1 - cos) / eps), so at least exp(-2 / eps)."""
    temperature: float = 0.5
    """tau, above 0: the lower, the nearer a drawn link is to 0 or 1."""
    truncation: float | None = None
    """Largest distance 1 - cos, in (0, 2], at which two modules are linked; None: no limit."""
    evaluation: Literal["mean", "sample", "threshold"] = "mean"
    """The strength of a link in evaluation. mean: its probability; sample: a draw, as in training;
    threshold: 1 where the probability is at least 0.5, else 0."""

    def check(self, faults: Faults, group: str = "model") -> None:
        """Adds every fault of this group to ``faults``."""
        floor = "A link's probability is at least exp(-2 / bandwidth)."
        faults.need(self.bandwidth > 0, f"{group}.bandwidth", self.bandwidth, "above 0", floor)
        faults.need(self.temperature > 0, f"{group}.temperature", self.temperature, "above 0", "The paper's is 0.5.")
        ok = self.truncation is None or 0 < self.truncation <= 2
        faults.need(ok, f"{group}.truncation", self.truncation, "in (0, 2], or None", "It is a distance 1 - cos.")


class NeuralAttentiveCircuit(nn.Module):
    """A Neural Attentive Circuit as a backbone; its representation is the state of the output module.

    Modules start from their codes, read the tokens, exchange messages along their links ``depth`` times, and are read
    by the output modules. Of several output modules the states are averaged with softmax weights, which a linear map of
    each state gives. The same kernel links all layers; each layer has its own draws.

    ``tokens``: a module of :mod:`recipes_lib.models.nac.tokens`. ``text_dim``: width of the encoded text that generates
    the circuit; None: the circuit is learned. Both ``layer_scale`` (the initial size of a branch) and ``drop_path``
    belong to the propagators.

    The weights are drawn from torch's global generator, like those of torch's own layers.

    Shapes: whatever ``tokens`` takes -> [B, d].
    Source: arXiv 2210.08031.
    Differs: the official code adds noise to codes in some configs, and draws Gumbel noise in the weights of the output
    modules; here there is neither.
    """

    def __init__(
        self,
        shape: Shape,
        tokens: nn.Module,
        *,
        link: LinkConfig | None = None,
        text_dim: int | None = None,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape, self.link, self.tokens = shape, link or LinkConfig(), tokens
        sizes = (shape.modules, shape.outputs, shape.width, shape.signature_dim)
        self.circuit = LearnedCircuit(*sizes) if text_dim is None else TextCircuit(*sizes, text_dim)
        d, head, hidden = shape.width, shape.head_width, shape.hidden
        self.read_in = ReadIn(tokens.width, d, head, hidden, d)
        self.blocks = nn.ModuleList(
            Propagator(d, shape.heads, head, hidden, d, layer_scale=layer_scale, drop_path=drop_path)
            for _ in range(shape.depth)
        )
        self.read_out = ReadOut(d, head, hidden, d)
        self.confidence = nn.Linear(d, 1) if shape.outputs > 1 else None
        self.norm = nn.LayerNorm(d)
        self.num_features = d

    def forward(
        self,
        inputs: Tensor,
        *,
        text: Tokens | None = None,
        kept: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The representation, after the final LayerNorm; the arguments are those of :meth:`before_norm`."""
        return self.norm(self.before_norm(inputs, text=text, kept=kept, keys=keys))

    def before_norm(
        self,
        inputs: Tensor,
        *,
        text: Tokens | None = None,
        kept: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The representation before the final LayerNorm.

        ``text``: the encoded texts that generate the circuits. ``kept``: the modules that run, int64 [n]; all others
        are not computed. ``keys``: one key per sample (:func:`recipes_lib.randomness.sample_keys`), from which the
        links are drawn; without keys they come from torch's global generator.

        Shapes: inputs as for ``tokens``, ``keys`` int64 [B] -> [B, d].
        Raises: ``ValueError`` for tokens or modules that do not fit.
        """
        found = self.read_out(*self._read(inputs, text, kept, keys))  # [B, O, d]
        if self.confidence is None:
            return found[:, 0]
        return (self.confidence(found).softmax(dim=1) * found).sum(dim=1)

    def use(self, inputs: Tensor, *, text: Tokens | None = None, kept: Tensor | None = None) -> Tensor:
        """How much the output modules attend to each module, averaged over them: [B, U], each row a distribution."""
        return self.read_out.weights(*self._read(inputs, text, kept, None)).mean(dim=1)

    def log_links(self, circuit: Circuit) -> Tensor:
        """The logarithms of the links' probabilities of a circuit: [U + O, U + O] or [B, U + O, U + O]."""
        signatures = circuit.signatures
        return links.log_link_probabilities(
            signatures, signatures, bandwidth=self.link.bandwidth, truncation=self.link.truncation
        )

    @torch.no_grad()
    def fix(self) -> None:
        """Computes once, for inference, what depends on the codes alone: the scales of every layer's inputs.

        Afterwards the network's codes, its modules and the weights of its scales must stay as they are.
        Raises: ``ValueError`` if texts generate the circuit, so that each sample has codes of its own.
        """
        if isinstance(self.circuit, TextCircuit):
            raise ValueError(
                "a circuit that texts generate has other codes for each sample: its scales cannot be fixed."
            )
        circuit = self.circuit()
        codes, output_codes = circuit.codes.split([circuit.modules, circuit.outputs])
        of_outputs = {self.read_out.query, self.read_out.leave, *self.read_out.feed_forward.children()}
        for layer in self.modules():
            if isinstance(layer, ModulatedLinear):
                layer.fix(output_codes if layer in of_outputs else codes)

    def _read(
        self, inputs: Tensor, text: Tokens | None, kept: Tensor | None, keys: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The arguments of the read-out."""
        tokens = self._tokens(inputs)
        circuit = self._circuit(text, kept)
        count = circuit.modules
        codes, output_codes = circuit.codes.split([count, circuit.outputs], dim=-2)
        log_p = self.log_links(circuit)
        states = self.read_in(codes, codes, *tokens)
        for number, block in enumerate(self.blocks):
            strengths = self._strengths(log_p[..., :count, :count], len(states), keys, f"nac links {number}")
            states = block(states, codes, strengths)
        strengths = self._strengths(log_p[..., count:, :count], len(states), keys, "nac links out")
        return output_codes, output_codes, states, codes, strengths

    def _tokens(self, inputs: Tensor) -> Tokens:
        tokens = self.tokens(inputs)
        wanted = self.tokens.width
        if tokens.values.dim() != 3 or tokens.values.shape[-1] != wanted:
            raise ValueError(f"tokens have shape {list(tokens.values.shape)}; [B, V, {wanted}] is wanted.")
        return tokens

    def _circuit(self, text: Tokens | None, kept: Tensor | None) -> Circuit:
        if (text is not None) != isinstance(self.circuit, TextCircuit):
            raise ValueError("a circuit that texts generate needs texts, and no other takes them.")
        circuit = self.circuit() if text is None else self.circuit(*text)
        return circuit if kept is None else circuit.kept(kept)

    def _strengths(self, log_p: Tensor, batch: int, keys: Tensor | None, purpose: str) -> Tensor:
        """log C of every link, drawn per sample in training.  [..., R, S] -> the same, or [B, R, S]"""
        way = "sample" if self.training else self.link.evaluation
        if way == "mean":
            return log_p
        if way == "threshold":
            return links.hard_log_links(log_p)
        receivers, senders = log_p.shape[-2:]
        if keys is not None:
            uniform = randomness.uniform(keys, purpose, receivers * senders).view(batch, receivers, senders)
        elif self.training:
            uniform = torch.rand(batch, receivers, senders, device=log_p.device)
        else:
            raise ValueError(
                "links are drawn in evaluation (model.evaluation sample), so it needs keys: one random key per sample."
            )
        return links.draw_log_links(log_p, uniform.to(log_p.dtype), temperature=self.link.temperature)


def draw_kept(modules: int, probability: float, generator: torch.Generator) -> Tensor:
    """Module dropout: the modules that a step keeps, int64 [n], sorted.

    With ``probability`` they are n random ones, n uniform from an eighth of the modules to all; otherwise all.
    Source: ours; the paper's own training drops no modules. Smaller subsets make a pruned circuit accurate.
    """
    if float(torch.rand(1, generator=generator)) >= probability:
        return torch.arange(modules)
    fewest = max(1, modules // 8)
    count = int(torch.randint(fewest, modules + 1, (1,), generator=generator))
    return torch.randperm(modules, generator=generator)[:count].sort().values


def operations(shape: Shape, modules: int, *, tokens: int, token_width: int) -> int:
    """Floating-point operations per sample of the matrix products of a circuit of which ``modules`` run.

    A multiply-add counts as two. What depends on codes alone is not counted (:meth:`NeuralAttentiveCircuit.fix`), nor
    are the tokens themselves, which cost the same whatever is pruned. The read-in grows with modules times tokens, a
    propagator's attention with modules squared, all else with modules.
    """
    _, outputs, d, _, depth, heads, head, hidden = shape
    inner, feed_forward = heads * head, 3 * d * hidden
    read_in = modules * (2 * tokens * token_width + token_width * head + head * d + feed_forward)
    propagator = modules * (4 * d * inner + 2 * modules * inner + feed_forward)
    read_out = modules * 2 * d * head + outputs * (2 * modules * head + head * d + feed_forward)
    return 2 * (read_in + depth * propagator + read_out)
