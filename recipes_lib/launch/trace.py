# SPDX-License-Identifier: Apache-2.0
"""What one rank does in one micro-batch, counted and not computed: operations, bytes kept for the backward pass, inputs."""

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
    # torch counts a GPU's fused attention, and not yet a CPU's, which takes and gives the same tensors
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@dataclass
class Uses:
    """How often a module was called."""

    graded: int = 0
    """So that a backward pass comes through it."""
    plain: int = 0
    """Under ``no_grad``."""


@dataclass
class Trace:
    """One micro-batch of one rank, forward and backward."""

    flops: int = 0
    """Operations of products and convolutions, a multiplication and an addition counted as two."""
    forward_flops: int = 0
    """Those of the forward pass."""
    converted_flops: int = 0
    """Those in the layers that were to be looked at."""
    activations: int = 0
    """Bytes kept for the backward pass, parameters, buffers and inputs left out; autocast's copies of weights are among them."""
    inputs: int = 0
    """Bytes of the views."""
    blocks: dict[str, Uses] = field(default_factory=dict)
    """How often each block that FSDP would gather by itself was called."""


def measure(
    method: nn.Module, views: dict[str, Any], *, precision: str, world: int = 1, converted: frozenset[str] = frozenset()
) -> Trace:
    """Counts on fake tensors what rank 0 of ``world`` does with ``views``; ``converted``: names of linear layers to look at."""
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
    """The same of any method and views, real ones too, with ``tensors`` in place of its own parameters and buffers."""
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
    """The storages of what autograd keeps; each counts once, however many views of it are kept."""

    def __init__(self, known: list[Tensor]) -> None:
        self._seen = {_storage(tensor) for tensor in known}
        self._alive: list[Tensor] = []  # so that no other storage takes the place of one that was counted
        self.bytes = 0

    def add(self, tensor: Tensor) -> Tensor:
        """What autograd calls for each tensor that it keeps."""
        storage = _storage(tensor)
        if storage not in self._seen:
            self._seen.add(storage)
            self._alive.append(tensor.detach())
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _watch(method: nn.Module, found: Trace, converted: frozenset[str]) -> list[Any]:
    """Hooks that note the calls of FSDP's blocks, and the operations of the ``converted`` layers."""
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
