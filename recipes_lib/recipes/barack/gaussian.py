# SPDX-License-Identifier: Apache-2.0
"""The Gaussian toy: a weak direction that tells the class, and a strong one that mostly agrees with it."""

import torch

from recipes_lib import randomness
from recipes_lib.recipes.barack.vectors import VectorSet

CORE, SPURIOUS, NOISE = 1.6, 2.0, 10
"""Distance of each class's mean from 0 in dimension 0, of each attribute's in dimension 1, and number of noise dimensions."""


def draw(count: int, seed: int, purpose: str, *, agree: float) -> VectorSet:
    """``count`` points: y and a in {0, 1}, x_0 ~ N(1.6 (2y - 1), 1), x_1 ~ N(2.0 (2a - 1), 1), ten dimensions N(0, 1).

    ``agree``: the probability that a = y. ``purpose`` names the set: two sets of one seed are independent. The first
    points of a larger set are those of a smaller one.

    Raises: ``ValueError`` if ``agree`` is not in (0, 1).
    """
    if not 0 < agree < 1:
        raise ValueError(f"agree = {agree}; use a probability in (0, 1), such as 0.97 in training and 0.5 in a test.")
    keys = randomness.sample_keys(seed, 0, torch.arange(count))
    unit = randomness.uniform(keys, f"gaussian {purpose} groups", 2)
    labels = (unit[:, 0] < 0.5).long()
    attributes = torch.where(unit[:, 1] < agree, labels, 1 - labels)
    inputs = randomness.normal(keys, f"gaussian {purpose} noise", 2 + NOISE)
    inputs[:, 0] += CORE * (2 * labels - 1)
    inputs[:, 1] += SPURIOUS * (2 * attributes - 1)
    return VectorSet(inputs, labels, attributes)
