# SPDX-License-Identifier: Apache-2.0
"""Measures how large a network's features are in each block. Large features overflow a format with few bits.

Source: Wortsman et al., "Stable and low-precision training for large-scale vision-language models", NeurIPS 2023,
arXiv 2304.13013, which follows the mean |activation| of each transformer block through training.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn


def named(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """The modules of ``model`` whose dotted names match a shell pattern, in the model's order.

    ``*`` stands for one part of a name: ``blocks.*`` matches the blocks of a ViT but not the layers inside them, and
    ``*.resblocks.*`` the blocks of open_clip's towers.

    Raises: ``ValueError`` if no name matches.
    """
    parts = pattern.split(".")
    found = {}
    for name, module in model.named_modules():
        own = name.split(".")
        if name and len(own) == len(parts) and all(map(fnmatchcase, own, parts)):
            found[name] = module
    if not found:
        children = ", ".join(name for name, _ in model.named_children()) or "none"
        raise ValueError(f"no module's name fits {pattern!r}; {type(model).__name__} has the children: {children}.")
    return found


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Records the mean |output| of each module inside the context, in a dict that fills during each forward pass.

    If a module is called several times, its last call counts. The values are float32 scalars on the output's device,
    without a graph. The CPU does not wait for them, so recording costs one pass over the outputs.

    Raises: ``ValueError`` for a module that returns something other than a tensor.
    """
    seen: dict[str, Tensor] = {}

    def hook_of(name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(f"{name} returns {type(output).__name__}; only a tensor has a magnitude.")
            seen[name] = output.detach().abs().mean(dtype=torch.float32)

        return hook

    hooks = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def magnitudes(modules: Mapping[str, nn.Module], run: Callable[[], object]) -> dict[str, float]:
    """The mean |output| of each module during ``run()``, in the order of ``modules``.

    ``run`` is a forward pass or a whole training step; it also sets training mode and whether a graph is built. Values
    that are not finite are returned too, since this function is meant to find them. Modules that ``run`` does not call
    are left out. One such module is the last block of our ViT, which computes only [CLS] and does not call ``forward``.

    Raises: ``ValueError`` if ``run`` calls none of the modules.
    """
    with recorded(modules) as seen:
        run()
    if not seen:
        raise ValueError(f"none of {', '.join(modules)} was called: give modules that the run passes through.")
    return {name: float(seen[name]) for name in modules if name in seen}
