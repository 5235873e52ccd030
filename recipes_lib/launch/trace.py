# SPDX-License-Identifier: Apache-2.0
"""Counts what one rank does in one micro-batch: operations, bytes kept for the backward pass, bytes of the inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from recipes_lib.distributed import fsdp
from recipes_lib.launch import fake_tensors

Shape = torch.Size


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


_CPU_ATTENTION = {
    # torch counts the GPU's fused attention but not yet the CPU's, which has the same inputs and outputs
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@dataclass
class Uses:
    """The number of calls of a module."""

    graded: int = 0
    """Number of calls with gradients enabled, which are followed by a backward pass."""
    plain: int = 0
    """Number of calls under ``no_grad``."""


@dataclass
class Trace:
    """The costs of one micro-batch on one rank, forward and backward."""

    flops: int = 0
    """Operations of matrix products and convolutions; a multiplication and an addition count as two."""
    forward_flops: int = 0
    """Operations of the forward pass only."""
    converted_flops: int = 0
    """Operations in the ``converted`` layers."""
    activations: int = 0
    """Bytes kept for the backward pass, with autocast's copies of weights, without parameters, buffers and inputs."""
    inputs: int = 0
    """Bytes of the views."""
    blocks: dict[str, Uses] = field(default_factory=dict)
    """Number of calls of each block that FSDP would shard and gather as a unit."""


def measure(
    method: nn.Module, views: dict[str, Any], *, precision: str, world: int = 1, converted: frozenset[str] = frozenset()
) -> Trace:
    """Counts on fake tensors what rank 0 of ``world`` ranks does with ``views``.

    ``converted``: names of linear layers whose operations are also counted separately.
    """
    with fake_tensors.of(method, views, world) as (tensors, fake):
        return count(method, fake, precision=precision, tensors=tensors, converted=converted)


def count(
    method: nn.Module,
    views: dict[str, Any],
    *,
    precision: str,
    tensors: dict[str, Tensor] | None = None,
    converted: frozenset[str] = frozenset(),
) -> Trace:
    """Counts for any method and views, real or fake. ``tensors``, if given, replaces its parameters and buffers."""
    found = Trace()
    tensors = tensors or dict(method.named_parameters()) | dict(method.named_buffers())
    leaves = [leaf for leaf in tree_leaves(views) if isinstance(leaf, Tensor)]
    method.train()
    kept = _Kept([*tensors.values(), *leaves])
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    keeping = torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor)
    handles = _watch(method, found, converted)
    try:
        with counter:
            with keeping, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                out = functional_call(method, tensors, (views,))
            found.forward_flops = counter.get_total_flops()
            out["loss"].backward()
    finally:
        for handle in handles:
            handle.remove()
    found.flops = counter.get_total_flops()
    found.activations = kept.bytes
    found.inputs = sum(leaf.nbytes for leaf in leaves)
    return found


class _Kept:
    """The storages that autograd keeps; each counts once, even if several views of it are kept."""

    def __init__(self, known: list[Tensor]) -> None:
        self._seen = {_storage(tensor) for tensor in known}
        self._alive: list[Tensor] = []  # keeps counted storages alive, so that no new one gets the same address
        self.bytes = 0

    def add(self, tensor: Tensor) -> Tensor:
        """Counts ``tensor``, and returns it; autograd calls this for each tensor that it keeps."""
        storage = _storage(tensor)
        if storage not in self._seen:
            self._seen.add(storage)
            self._alive.append(tensor.detach())
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _watch(method: nn.Module, found: Trace, converted: frozenset[str]) -> list[Any]:
    """Registers hooks that count the calls of FSDP's blocks and the operations of the ``converted`` layers."""
    names = {module: name for name, module in method.named_modules()}
    handles = []
    for block in fsdp.blocks(method):
        found.blocks[names[block]] = uses = Uses()
        handles.append(block.register_forward_pre_hook(_noting(uses)))

    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        products = 1 + (torch.is_grad_enabled() and layer.weight.requires_grad) * (1 + x.requires_grad)
        found.converted_flops += products * 2 * x.numel() * layer.out_features

    return handles + [method.get_submodule(name).register_forward_pre_hook(add) for name in sorted(converted)]


def _noting(uses: Uses) -> Callable[..., None]:
    def note(module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled():
            uses.graded += 1
        else:
            uses.plain += 1

    return note
