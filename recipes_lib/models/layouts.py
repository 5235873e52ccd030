# SPDX-License-Identifier: Apache-2.0
"""The names that other libraries give to a Vision Transformer's weights. Ours are timm's.

Hugging Face's ViTMSN has two layouts: its files, and transformers up to 4, say
``encoder.layer.0.attention.attention.query``; in memory, transformers 5 says ``layers.0.attention.q_proj``. Which one
is at hand is told by the keys, never by a version. A key that is missing or left over is an error that names it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recipes_lib.errors import RunError

State = dict[str, Tensor]

_STEM = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_FILE_LAYERS = {  # ours, below "blocks.i." -> theirs, below "encoder.layer.i."
    "norm1": ["layernorm_before"],
    "attn.qkv": [f"attention.attention.{part}" for part in ("query", "key", "value")],
    "attn.proj": ["attention.output.dense"],
    "norm2": ["layernorm_after"],
    "mlp.fc1": ["intermediate.dense"],
    "mlp.fc2": ["output.dense"],
}
_MEMORY_LAYERS = {  # ours, below "blocks.i." -> theirs, below "layers.i."
    "norm1": ["layernorm_before"],
    "attn.qkv": [f"attention.{part}_proj" for part in "qkv"],
    "attn.proj": ["attention.o_proj"],
    "norm2": ["layernorm_after"],
    "mlp.fc1": ["mlp.fc1"],
    "mlp.fc2": ["mlp.fc2"],
}
HF_FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_channels": 3, "qkv_bias": True}
"""Fields of a ViTMSN's config that have one value in our Vision Transformer."""


class Official(NamedTuple):
    """What an official MSN checkpoint holds of the method."""

    backbone: State
    """The target encoder, under our keys."""
    head: State
    """Its projection head, under the keys of ``heads.ProjectionHead``; empty where the file has none."""
    prototypes: Tensor | None
    """[count, dim], unnormalised."""


def to_timm(state: Mapping[str, Tensor], pool: str) -> State:
    """Our weights under timm's keys, which are ours but for a mean of patches: its last norm is ``fc_norm`` in timm."""
    return {("fc_" + key if pool == "mean" and key.startswith("norm.") else key): x for key, x in state.items()}


def from_timm(state: Mapping[str, Tensor]) -> State:
    """The inverse of :func:`to_timm`."""
    return {key.removeprefix("fc_") if key.startswith("fc_norm.") else key: x for key, x in state.items()}


def to_hf(state: Mapping[str, Tensor]) -> State:
    """Our ViT's weights under the keys of a ViTMSN file, which transformers 4 and 5 both read.

    Raises: ``RunError`` listing keys that are missing or left over, as those of a convolutional stem are.
    """
    names = _names(depth(state, "blocks."), "encoder.layer.", _FILE_LAYERS)
    check_keys("this state dict", state, names)
    converted = {}
    for ours, theirs in names.items():
        converted |= dict(zip(theirs, state[ours].chunk(len(theirs)), strict=True))  # rows of qkv: query, key, value
    return {name: tensor.contiguous() for name, tensor in converted.items()}


def from_hf(state: Mapping[str, Tensor]) -> State:
    """ViTMSN's weights, of either layout, under our keys. A classifier on top of them is left behind.

    Raises: ``RunError`` listing keys that are missing or left over.
    """
    state = {key.removeprefix("vit."): tensor for key, tensor in state.items() if not key.startswith("classifier.")}
    if any(key.startswith("encoder.layer.") for key in state):
        prefix, layers = "encoder.layer.", _FILE_LAYERS
    else:
        prefix, layers = "layers.", _MEMORY_LAYERS
    names = _names(depth(state, prefix), prefix, layers)
    check_keys("the ViTMSN weights", state, [theirs for group in names.values() for theirs in group])
    return {ours: torch.cat([state[name] for name in theirs]) for ours, theirs in names.items()}


def from_official(checkpoint: Mapping[str, Any]) -> Official:
    """The target encoder, its head and the prototypes of an official MSN checkpoint.

    Training files hold more; the released ones hold ``target_encoder`` and ``prototypes`` only, so training cannot go
    on from them. Keys lose the ``module.`` that several GPUs put before them.
    Raises: ``RunError`` where there is no ``target_encoder``, or listing keys that are missing or left over.
    """
    if "target_encoder" not in checkpoint:
        raise RunError(f"The checkpoint has no target_encoder, so is none of MSN's. It has: {listed(checkpoint)}.")
    encoder = checkpoint["target_encoder"]
    named = isinstance(encoder, Mapping) and all(isinstance(key, str) for key in encoder)
    if not named or not all(isinstance(tensor, Tensor) for tensor in encoder.values()):
        raise RunError("The checkpoint's target_encoder is no table of named tensors, so none of MSN's.")
    state = {key.removeprefix("module."): tensor for key, tensor in encoder.items()}
    head = {key.removeprefix("fc."): state.pop(key) for key in list(state) if key.startswith("fc.")}
    check_keys("target_encoder", state, _names(depth(state, "blocks."), "encoder.layer.", _FILE_LAYERS))
    return Official(state, head, checkpoint.get("prototypes"))


def depth(state: Iterable[str], prefix: str = "blocks.") -> int:
    """Number of layers whose keys begin with ``prefix`` and a number."""
    numbers = (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in state)
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def check_keys(what: str, have: Iterable[str], want: Iterable[str]) -> None:
    """Raises ``RunError`` with the keys that are missing and those left over, or returns where there are none."""
    have, want = list(have), list(want)
    faults = [
        f"{kind} {len(keys)} ({listed(keys)})"
        for kind, keys in (
            ("missing", [k for k in want if k not in have]),
            ("left over", [k for k in have if k not in want]),
        )
        if keys
    ]
    if faults:
        raise RunError(f"The keys of {what} do not fit: {'; '.join(faults)}.")


def listed(names: Iterable[str], limit: int = 8) -> str:
    """The names with commas between; past ``limit`` only how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _names(layers: int, prefix: str, table: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Our key -> theirs, in the order in which their tensors stand in ours."""
    names = {ours: [theirs] for ours, theirs in _STEM.items()}
    for layer in range(layers):
        for ours, theirs in table.items():
            for kind in ("weight", "bias"):
                names[f"blocks.{layer}.{ours}.{kind}"] = [f"{prefix}{layer}.{name}.{kind}" for name in theirs]
    return names
