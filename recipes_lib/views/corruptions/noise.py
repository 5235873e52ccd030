# SPDX-License-Identifier: Apache-2.0
"""Noise: Gaussian, shot and impulse noise, with random numbers of each image's own key."""

import math

import torch
from torch import Tensor

from recipes_lib.randomness import normal, uniform


def gaussian_noise(images: Tensor, keys: Tensor, purpose: str, std: float) -> Tensor:
    """Adds normal noise of standard deviation ``std`` to each value.

    Shapes: ``images`` float [B, 3, H, W] in [0, 1], ``keys`` int64 [B] -> float [B, 3, H, W], not clipped.
    """
    return images + std * normal(keys, purpose, images[0].numel()).view_as(images)


def shot_noise(images: Tensor, keys: Tensor, purpose: str, photons: float) -> Tensor:
    """Counts of a Poisson distribution whose mean is ``photons`` times the value, over ``photons``.

    The values are of 8 bits, so there are only 256 distributions: a uniform number is looked up in the table of their
    cumulative probabilities, laid end to end.

    Shapes: ``images`` float [B, 3, H, W], multiples of 1/255 in [0, 1] -> float [B, 3, H, W], not clipped.
    """
    table = _poisson_table(photons, images.device)  # [256, counts]
    rows = (images * 255).round().long()
    draws = uniform(keys, purpose, images[0].numel()).view_as(images)
    found = torch.searchsorted(table.flatten(), rows + draws.double(), right=True)
    counts = (found - rows * table.shape[1]).clamp_max(table.shape[1] - 1)
    return counts.to(images.dtype) / photons


def _poisson_table(photons: float, device: torch.device) -> Tensor:
    """Row v has v + the cumulative probabilities of the counts at the value v / 255: float64 [256, counts]."""
    # 24-bit uniform numbers never ask for a probability above 1 - 2^-24, which lies 5.3 deviations above the mean
    counts = torch.arange(math.ceil(photons + 8 * math.sqrt(photons) + 12), device=device, dtype=torch.float64)
    values = torch.arange(256, device=device, dtype=torch.float64)[:, None]
    means = photons * values / 255
    logs = torch.xlogy(counts, means) - means - torch.lgamma(counts + 1)  # [256, counts]
    return values + logs.exp().cumsum(dim=1).clamp_max(1)


def impulse_noise(images: Tensor, keys: Tensor, purpose: str, share: float) -> Tensor:
    """Sets a random ``share`` of the values, in each channel by itself, to 0 or 1 with equal chance.

    Shapes: ``images`` float [B, 3, H, W] -> float [B, 3, H, W].
    """
    draws = uniform(keys, purpose, images[0].numel()).view_as(images)
    return torch.where(draws < share, (draws < share / 2).to(images.dtype), images)
