# SPDX-License-Identifier: Apache-2.0
"""Which patches an anchor keeps: index tensors for a backbone that drops the others.

A *random* mask keeps patches anywhere in the view. A *focal* mask keeps one block of the image; that is what a small
crop already is, so focal views need no indices: see ``ViewsConfig.local_size``.

Source: Assran et al., "Masked Siamese Networks for Label-Efficient Learning", ECCV 2022.
"""

import torch
from torch import Tensor

from recipes_lib.randomness import uniform


def keep_count(patches: int, ratio: float) -> int:
    """How many of ``patches`` stay when the share ``ratio`` in [0, 1) is dropped; [CLS] is no patch.

    Evaluated in floats and truncated, as the official code does: ``keep_count(100, 0.9)`` is 9.

    >>> keep_count(196, 0.15), keep_count(196, 0.7)
    (166, 58)

    Raises: ``ValueError`` where the ratio is out of range or no patch would stay.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"mask ratio {ratio} is not allowed: use a value in [0, 1)")
    kept = int(patches * (1 - ratio))
    if kept == 0:
        raise ValueError(f"mask ratio {ratio} keeps 0 of {patches} patches: use a smaller ratio")
    return kept


def random_keep(
    patches: int, ratio: float, *, keys: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Indices of the patches kept, drawn without replacement, each with the same probability, in random order.

    With ``keys`` int64 [B] (``randomness.sample_keys``): a mask for each image, int64 [B, keep], on the keys' device.
    With ``generator``: one mask that the whole batch shares, int64 [keep], as the official code draws it.
    Indices count patches from 0 without [CLS]; a backbone that stores [CLS] first adds one.

    Raises: ``ValueError`` unless exactly one of ``keys`` and ``generator`` is given, and as :func:`keep_count`.
    """
    if (keys is None) == (generator is None):
        raise ValueError("give either keys (a mask for each image) or generator (one mask for the batch)")
    kept = keep_count(patches, ratio)
    if keys is None:
        return torch.randperm(patches, generator=generator, device=generator.device)[:kept]
    return uniform(keys, "random mask", patches).argsort(dim=1, stable=True)[:, :kept]
