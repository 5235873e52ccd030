# SPDX-License-Identifier: Apache-2.0
"""Builds a method and its views from torch's fake tensors, with the shapes and dtypes of the real run but no values.

An operation on fake tensors gives the shape and dtype of its result and computes nothing, so a ViT-H takes no memory.
Only floating-point tensors are fake. Integers (tokens, patches kept, labels) are real, because shapes may depend on
them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from recipes_lib.data.loader import Batch
from recipes_lib.distributed import collectives
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.recipe import Method, Recipe

_SAMPLE = 2  # number of real images that views are cut from; the smallest batch for a batch norm
_PIXELS = 8  # side of these images, which does not matter: views have their own sides
_TEXT = "mug " * 500  # longer than any context, so it is cut to the longest text that a run can have


def build(recipe: Recipe, config: Any, steps: int) -> Method:
    """Builds the method with its parameters on device ``meta``, that is without storage; all else is real."""

    def without_storage(module: nn.Module, name: str, weight: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(weight.detach().to("meta"), weight.requires_grad)

    # not torch.device("meta"): a tokenizer that the method makes has to hold real numbers
    handle = register_module_parameter_registration_hook(without_storage)
    try:
        return engine.build(recipe, config, steps)
    finally:
        handle.remove()


def views(recipe: Recipe, method: Method, config: Any, images: int, rows: int, classes: int) -> dict[str, Any]:
    """The input of the method's ``forward`` for a micro-batch of ``images`` images, and ``rows`` rows of a support.

    The method's own ``views`` cuts views of two and of three images, and of two and of three support rows. Each
    dimension of each tensor is linear in both numbers, so its size for ``images`` and ``rows`` follows. ``classes``:
    number of classes of the labels.
    """

    def cut(images: int, rows: int) -> dict[str, Any]:
        batch = _batch(method, images, classes)
        support = _batch(method, rows, classes) if recipe.support is not None else None
        return method.views(Batch(**vars(batch) | {"support": support}), 0)

    base, more_images, more_rows = cut(_SAMPLE, _SAMPLE), cut(_SAMPLE + 1, _SAMPLE), cut(_SAMPLE, _SAMPLE + 1)

    def grown(name: str) -> Any:
        parts = [found[name] for found in (base, more_images, more_rows)]
        if not isinstance(parts[0], Tensor):
            return parts[0]
        shapes = [part.shape for part in parts]
        sides = [
            side + (images - _SAMPLE) * (wider - side) + (rows - _SAMPLE) * (longer - side)
            for side, wider, longer in zip(*shapes, strict=True)
        ]
        return _of_shape(parts[0], sides)

    return {name: grown(name) for name in base}


def _batch(method: Method, images: int, classes: int) -> Batch:
    encode = method.encode_texts
    labels = torch.full((images,), classes - 1)  # the largest label, from which a method may count the classes
    pixels = torch.zeros(images, 3, _PIXELS, _PIXELS, dtype=torch.uint8)
    return Batch(torch.arange(images), 0, pixels, None, labels, tokens=encode([_TEXT] * images) if encode else None)


def _of_shape(tensor: Tensor, sides: list[int]) -> Tensor:
    """``tensor`` with the given shape: without storage if it is floating-point, else real with repeated entries."""
    if tensor.is_floating_point():
        return torch.empty(sides, dtype=tensor.dtype, device="meta")
    for dim, side in enumerate(sides):
        if side != tensor.shape[dim]:
            tensor = tensor.index_select(dim, torch.arange(side) % tensor.shape[dim])
    return tensor


@contextmanager
def of(method: nn.Module, views: dict[str, Any], world: int = 1) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """The method's parameters and buffers by name, and the views, as fake tensors on the CPU.

    Inside the context, operations on them give fake tensors, as on rank 0 of ``world`` ranks.
    """
    # Torch starts autograd's threads in a process's first backward pass, one per GPU that it sees. Fake tensors make it
    # see a GPU that does not exist, and a process with such a thread cannot fork a process that trains. So the first
    # backward pass is made here, without fake tensors.
    torch.ones(1, requires_grad=True).sum().backward()
    with collectives.pretend(world), FakeTensorMode(allow_non_fake_inputs=True), _QuietChecks():
        weights = {name: nn.Parameter(_fake(w), w.requires_grad) for name, w in method.named_parameters()}
        buffers = {name: _fake(buffer) for name, buffer in method.named_buffers()}
        yield weights | buffers, tree_map_only(Tensor, _fake, views)


def _fake(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu") if tensor.is_floating_point() else tensor


class _QuietChecks(TorchDispatchMode):
    """Answers a loss's checks of its input (is it finite? is its norm 1?), so that fake tensors pass them.

    Comparisons with fake tensors answer: equal; below an upper bound; above 0, but not above or at any other bound. If
    a value itself is needed, fake tensors raise; if an answer does not fit a check, the loss raises. Operations on real
    integers only are computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._answers = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fakes = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        if tensors and not fakes and not any(tensor.is_floating_point() for tensor in tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" and fakes[0] in self._answers:
            return self._answers[fakes[0]]
        found = func(*args, **kwargs)
        if isinstance(found, FakeTensor) and found.dtype == torch.bool:
            self._answers[found] = self._answer(name, args)
        return found

    def _answer(self, name: str, args: tuple) -> bool:
        if name in ("gt", "ge", "le"):
            return name == "gt" and not isinstance(args[1], Tensor) and args[1] == 0
        known = [self._answers[arg] for arg in args if isinstance(arg, Tensor) and arg in self._answers]
        if name in ("bitwise_not", "logical_not"):
            return not known[0]
        return all(known)  # True for a comparison of fake tensors, which has no known parts yet
