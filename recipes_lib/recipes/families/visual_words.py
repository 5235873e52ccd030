# SPDX-License-Identifier: Apache-2.0
"""Visual words: the cluster of a patch's pixels, found by k-means, as the target of BEiT at small scale.

They stand in for BEiT's tokenizer, a discrete variational autoencoder with 8,192 codes that was trained on other
images. A word of k-means knows colours and edges of a patch and nothing of its surroundings.
"""

import torch
from torch import Tensor

ROUNDS = 20
"""Rounds of Lloyd's algorithm."""


def k_means(patches: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The centres of ``count`` clusters of patches, from random patches by Lloyd's algorithm.

    A centre that loses all its patches stays where it is.

    Shapes: [n, P] -> [``count``, P].
    Raises: ``ValueError`` if there are fewer patches than clusters.
    """
    if len(patches) < count:
        raise ValueError(f"{len(patches)} patches cannot make {count} visual words: use fewer words or more images.")
    start = torch.randperm(len(patches), generator=generator)[:count]
    centres = patches[start.to(patches.device)].clone()
    for _ in range(ROUNDS):
        words = nearest(patches, centres)
        sums = torch.zeros_like(centres).index_add_(0, words, patches)
        sizes = torch.bincount(words, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    return centres


def nearest(patches: Tensor, centres: Tensor) -> Tensor:
    """The number of the centre with the smallest Euclidean distance.  [..., P], [K, P] -> int64 [...]"""
    # |x|^2 is the same for all centres and left out
    return (centres.square().sum(dim=1) - 2 * patches @ centres.T).argmin(dim=-1)
