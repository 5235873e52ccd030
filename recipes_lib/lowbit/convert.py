# SPDX-License-Identifier: Apache-2.0
"""Puts low-bit layers in the place of a model's linear ones."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import nn

from recipes_lib.errors import ConfigError, nearest
from recipes_lib.lowbit.fp8 import Fp8Linear
from recipes_lib.lowbit.linear import Int8Linear, SwitchBackLinear, SwitchBackMLinear, SwitchBackQLinear

Kind = Literal["switchback", "switchback_m", "switchback_q", "int8", "fp8", "fp8_switchback"]
"""fp8: all three products from one scale per matrix, as the baseline that diverges; fp8_switchback: SwitchBack in fp8."""
KEPT = ("*head*", "*embed*", "*projection*", "*projector*", "*predictor*", "*classifier*", "fc", "prototypes")
"""Names that stay in full precision by default: what leads into a network and what leads out of it. Norms, embedding
tables and convolutions stay too, for only ``nn.Linear`` is replaced."""


def convert(model: nn.Module, kind: Kind, *, skip: Sequence[str] = KEPT) -> int:
    """Replaces, in place, the ``nn.Linear`` layers inside ``model`` by those of ``kind``, and returns their number.

    Weights and biases are the same ``Parameter`` objects afterwards, so an optimiser, a state dict or tied weights need
    no change. Subclasses of ``nn.Linear`` stay (``nn.MultiheadAttention`` reads the weight of its own past the layer's
    ``forward``), and so does a layer with hooks, which would be lost. ``nn.TransformerEncoderLayer`` reads weights past
    ``forward`` too, in evaluation: this fast path of its own is switched off where one of its layers is replaced.

    ``skip``: shell patterns; a layer stays where one fits its dotted name or one part of it: ``fc`` fits ``head.fc``
    and not ``mlp.fc1``. An empty sequence skips nothing.

    Raises: ``ConfigError`` for an unknown kind, or where no layer is left to replace.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"kind = {kind!r} is no low-bit layer. {nearest(kind, get_args(Kind))}")
    made: dict[nn.Linear, nn.Linear] = {}  # a layer that stands in two places stays one layer
    kept = []
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if type(layer) is not nn.Linear or layer is model:
            continue
        if _skipped(name, skip) or _has_hooks(layer):
            kept.append(name)
            continue
        if layer not in made:
            made[layer] = _like(layer, kind)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[layer])
    if not made:
        found = f"its linear layers, all kept: {', '.join(kept)}" if kept else "it has no nn.Linear inside"
        raise ConfigError(f"convert(kind={kind!r}) replaces no layer of {type(model).__name__} ({found}); change skip.")
    _switch_off_fast_paths(model, set(made.values()))
    return len(made)


def _switch_off_fast_paths(model: nn.Module, made: set[nn.Module]) -> None:
    """Makes torch's transformer encoders call the layers of ``made`` in evaluation as they do in training."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder) and made & set(module.modules()):
            # each is what torch itself sets where its fast path does not fit a layer
            name, off = ("use_nested_tensor", False) if hasattr(module, "layers") else ("activation_relu_or_gelu", 0)
            setattr(module, name, off)


def _skipped(name: str, skip: Sequence[str]) -> bool:
    return any(fnmatchcase(part, pattern) for pattern in skip for part in (name, *name.split(".")))


def _has_hooks(layer: nn.Linear) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(layer, name) for name in hooks)


def _like(layer: nn.Linear, kind: Kind) -> nn.Linear:
    """A layer of ``kind`` around the same parameters."""
    sizes = (layer.in_features, layer.out_features, layer.bias is not None, "meta")
    match kind:
        case "switchback":
            made = SwitchBackLinear(*sizes)
        case "switchback_m":
            made = SwitchBackMLinear(*sizes)
        case "switchback_q":
            made = SwitchBackQLinear(*sizes)
        case "int8":
            made = Int8Linear(*sizes)
        case "fp8":
            made = Fp8Linear(*sizes, scaling="tensor")
        case "fp8_switchback":
            made = Fp8Linear(*sizes, scaling="row")
    made.weight, made.bias = layer.weight, layer.bias
    return made.train(layer.training)
