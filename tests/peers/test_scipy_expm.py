# SPDX-License-Identifier: Apache-2.0
"""Parity of the Lie operator with scipy, in float64: ``expm`` 1e-10, ``expm_frechet`` 1e-9, ``expm_multiply`` 1e-9."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm, expm_frechet
from scipy.sparse.linalg import expm_multiply

from recipes_lib.models.lie_operator import exponentials, generator_sum, operators, taylor_action


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_operator_is_scipys_exponential(seed):
    t, generators = draw(3, 2, seed=seed), draw(2, 6, 6, seed=seed + 9)
    found = operators(t, generators).numpy()
    for row, algebra in zip(found, generator_sum(t, generators).numpy(), strict=True):
        np.testing.assert_allclose(row, expm(algebra), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_gradient_is_the_adjoint_of_scipys_frechet_derivative(seed):
    algebra, direction = draw(5, 5, seed=seed), draw(5, 5, seed=seed + 9)
    leaf, weight = algebra.clone()[None].requires_grad_(), draw(5, 5, seed=seed + 20)
    (exponentials(leaf)[0] * weight).sum().backward()  # the gradient is the adjoint of the derivative
    _, derivative = expm_frechet(algebra.numpy(), direction.numpy())
    wanted = (weight.numpy() * derivative).sum()
    assert (leaf.grad[0] * direction).sum().item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_action_is_scipys_multiply(seed):
    t, generators, z = draw(2, 3, seed=seed), draw(3, 6, 6, seed=seed + 5) / 4, draw(2, 6, seed=seed + 7)
    found = taylor_action(t, generators, z, substeps=8, terms=14).numpy()
    for row, algebra, start in zip(found, generator_sum(t, generators).numpy(), z.numpy(), strict=True):
        np.testing.assert_allclose(row, expm_multiply(algebra, start), rtol=1e-9, atol=1e-9)
