# SPDX-License-Identifier: Apache-2.0
"""How large a network's features are, block by block: what a format with few bits runs out of first.

Source: Wortsman et al., "Stable and low-precision training for large-scale vision-language models", NeurIPS 2023,
arXiv 2304.13013, which follows the mean |activation| of each transformer block through training.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn


def named(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """The modules of ``model`` whose dotted names fit a shell pattern, in the model's order.

    ``*`` stands for one part of a name: ``blocks.*`` are a ViT's blocks without what is inside them, ``*.resblocks.*``
    an open_clip tower's.

    Raises: ``ValueError`` where none fits.
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
    """Records mean |output| of each module while the context lasts: the dict that it gives fills at each forward pass.

    Of a module that is called more often, the last call counts. The values are float32 scalars on the output's device,
    without a graph and not waited for, so recording a training step costs a pass over the outputs.

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
    """Mean |output| of each module in what ``run()`` calls, in the order of ``modules``.

    ``run`` is a forward pass, or a whole training step; whether the network trains, and whether a graph is built, is
    its own affair. Values that are not finite are given as they are: they are what one looks for. Modules that the run
    does not call are left out, such as the last block of our ViT, of which [CLS] alone is computed, past its forward.

    Raises: ``ValueError`` where ``run`` calls none of them.
    """
    with recorded(modules) as seen:
        run()
    if not seen:
        raise ValueError(f"none of {', '.join(modules)} was called: give modules that the run passes through.")
    return {name: float(seen[name]) for name in modules if name in seen}
