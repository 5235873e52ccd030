# SPDX-License-Identifier: Apache-2.0
"""Masks: draws the indices of the patches that an anchor view keeps; the backbone drops the others.

A *random* mask keeps patches anywhere in the view. A *focal* mask keeps one block of the image. A small crop is the
same as a focal mask, so focal views need no indices: see ``ViewsConfig.local_size``.

Source: Assran et al., "Masked Siamese Networks for Label-Efficient Learning", ECCV 2022.
"""

import torch
from torch import Tensor

from recipes_lib.randomness import uniform


def keep_count(patches: int, ratio: float) -> int:
    """The number of ``patches`` that are kept if the share ``ratio`` in [0, 1) is dropped; [CLS] is not a patch.

    It is computed in floats and truncated, as in the official code: ``keep_count(100, 0.9)`` is 9.

    >>> keep_count(196, 0.15), keep_count(196, 0.7)
    (166, 58)

    Raises: ``ValueError`` if the ratio is out of range or no patch would be kept.
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
    """Draws the indices of the kept patches without replacement, all with the same probability, in random order.

    With ``keys`` int64 [B] (``randomness.sample_keys``): one mask per image, int64 [B, keep], on the keys' device.
    With ``generator``: one mask for the whole batch, int64 [keep], as in the official code.
    Indices count patches from 0 without [CLS]; a backbone that stores [CLS] first adds one.

    Raises: ``ValueError`` unless exactly one of ``keys`` and ``generator`` is given, and for a ratio that
    :func:`keep_count` refuses.
    """
    if (keys is None) == (generator is None):
        raise ValueError("give either keys (a mask for each image) or generator (one mask for the batch)")
    kept = keep_count(patches, ratio)
    if keys is None:
        return torch.randperm(patches, generator=generator, device=generator.device)[:kept]
    return uniform(keys, "random mask", patches).argsort(dim=1, stable=True)[:, :kept]
