# SPDX-License-Identifier: Apache-2.0
"""A method and its views made of torch's fake tensors: shapes and dtypes are those of the real run, floating values are none.

A fake tensor says what shape and dtype each operation would give and computes nothing, so a ViT-H takes no memory.
Integers (tokens, patches kept, labels of images) are real: a network's shapes may follow from them.
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

_SAMPLE = 2  # images that views are really cut of; a batch norm's smallest batch
_PIXELS = 8  # side of these images: views have their own sides
_TEXT = "mug " * 500  # cut where the context ends: no text of a run is longer


def build(recipe: Recipe, config: Any, steps: int) -> Method:
    """The method whose parameters, and nothing else of it, have no storage (device ``meta``)."""

    def without_storage(module: nn.Module, name: str, weight: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(weight.detach().to("meta"), weight.requires_grad)

    # not torch.device("meta"): a tokenizer that the method makes has to hold real numbers
    handle = register_module_parameter_registration_hook(without_storage)
    try:
        return engine.build(recipe, config, steps)
    finally:
        handle.remove()


def views(recipe: Recipe, method: Method, config: Any, images: int, rows: int, classes: int) -> dict[str, Any]:
    """What the method's ``forward`` takes for a micro-batch of ``images`` and, where it has supports, ``rows`` of them.

    The method's own ``views`` are cut of two and of three images (and supports): every side of every tensor is a multiple of
    both numbers plus a constant, which follow from that. ``classes``: of the images' labels.
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
    labels = torch.full((images,), classes - 1)  # the largest: what counts classes by it finds all
    pixels = torch.zeros(images, 3, _PIXELS, _PIXELS, dtype=torch.uint8)
    return Batch(torch.arange(images), 0, pixels, None, labels, tokens=encode([_TEXT] * images) if encode else None)


def _of_shape(tensor: Tensor, sides: list[int]) -> Tensor:
    """Fake where it is floating; else real, its rows repeated."""
    if tensor.is_floating_point():
        return torch.empty(sides, dtype=tensor.dtype, device="meta")
    for dim, side in enumerate(sides):
        if side != tensor.shape[dim]:
            tensor = tensor.index_select(dim, torch.arange(side) % tensor.shape[dim])
    return tensor


@contextmanager
def of(method: nn.Module, views: dict[str, Any], world: int = 1) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """The method's parameters and buffers by name, and the views, as fake tensors on the CPU.

    Inside, operations on them give fake ones, as rank 0 of ``world`` gets them.
    """
    # torch starts autograd's threads at a process's first backward pass, one for each GPU that it knows of, and fake tensors
    # make it know of one that is not there; a process with such threads cannot fork one that trains
    torch.ones(1, requires_grad=True).sum().backward()
    with collectives.pretend(world), FakeTensorMode(allow_non_fake_inputs=True), _QuietChecks():
        weights = {name: nn.Parameter(_fake(w), w.requires_grad) for name, w in method.named_parameters()}
        buffers = {name: _fake(buffer) for name, buffer in method.named_buffers()}
        yield weights | buffers, tree_map_only(Tensor, _fake, views)


def _fake(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu") if tensor.is_floating_point() else tensor


class _QuietChecks(TorchDispatchMode):
    """Lets a loss ask its questions (are all finite? of norm 1?) of tensors without numbers: the answer is that all is well.

    "Well" is: equal; below a bound; above 0, and above no other bound nor at it. Where a number itself is asked for, fake
    tensors raise; where the answer does not suit, the loss does.
    Operations on real integers alone stay real.
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
        return all(known)  # of a comparison: nothing is known yet, and all is well
