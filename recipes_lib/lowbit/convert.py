# SPDX-License-Identifier: Apache-2.0
"""Replaces a model's linear layers by low-bit ones."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import nn

from recipes_lib.errors import ConfigError, nearest
from recipes_lib.lowbit.fp8 import Fp8Linear
from recipes_lib.lowbit.linear import Int8Linear, SwitchBackLinear, SwitchBackMLinear, SwitchBackQLinear

Kind = Literal["switchback", "switchback_m", "switchback_q", "int8", "fp8", "fp8_switchback"]
"""The low-bit layers: ``fp8`` has one scale per matrix in all three products, the baseline that diverges in the paper;
``fp8_switchback`` is SwitchBack in fp8; the others are the classes of :mod:`recipes_lib.lowbit.linear`."""
KEPT = ("*head*", "*embed*", "*projection*", "*projector*", "*predictor*", "*classifier*", "fc", "prototypes")
"""Name patterns of the layers that stay in full precision by default: a network's first and last ones. Norms, embedding
tables and convolutions stay too, because only ``nn.Linear`` is replaced."""


def convert(model: nn.Module, kind: Kind, *, skip: Sequence[str] = KEPT) -> int:
    """Replaces, in place, the ``nn.Linear`` layers inside ``model`` by layers of ``kind``, and returns their number.

    Weights and biases stay the same ``Parameter`` objects, so an optimiser, a state dict or tied weights need no
    change. Subclasses of ``nn.Linear`` are not replaced: ``nn.MultiheadAttention`` reads the weight of its output layer
    without calling the layer's ``forward``. Layers with hooks are not replaced either: the hooks would be lost. In
    evaluation ``nn.TransformerEncoderLayer`` also reads weights without calling ``forward``; this fast path is switched
    off if one of its layers is replaced.

    ``skip``: shell patterns; a layer is not replaced if a pattern matches its dotted name or one part of it: ``fc``
    matches ``head.fc`` but not ``mlp.fc1``. An empty sequence skips no layer.

    Raises: ``ConfigError`` for an unknown kind, or if there is no layer to replace.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"kind = {kind!r} is no low-bit layer. {nearest(kind, get_args(Kind))}")
    made: dict[nn.Linear, nn.Linear] = {}  # a layer that is used in two places stays one layer
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
            # torch itself sets the same attribute if its fast path does not fit a layer
            name, off = ("use_nested_tensor", False) if hasattr(module, "layers") else ("activation_relu_or_gelu", 0)
            setattr(module, name, off)


def _skipped(name: str, skip: Sequence[str]) -> bool:
    return any(fnmatchcase(part, pattern) for pattern in skip for part in (name, *name.split(".")))


def _has_hooks(layer: nn.Linear) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(layer, name) for name in hooks)


def _like(layer: nn.Linear, kind: Kind) -> nn.Linear:
    """A layer of ``kind`` with the parameters of ``layer``, the same objects."""
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
