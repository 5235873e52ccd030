# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch import nn

from recipes_lib.optim import LARS

WEIGHT, BIAS = [[3.0, 0.0], [0.0, 4.0]], [1.0, -2.0]  # norm 5
GRADIENTS = [([[0.6, 0.0], [0.8, 0.0]], [0.5, 0.5]), ([[0.0, 2.0], [0.0, 0.0]], [1.0, 0.0])]  # norms 1 and 2


def test_two_steps_are_those_of_the_paper_worked_out_by_hand():
    weight, bias = (nn.Parameter(torch.tensor(values, dtype=torch.float64)) for values in (WEIGHT, BIAS))
    optimizer = LARS([weight, bias], lr=0.5, momentum=0.9, weight_decay=0.1, trust_coefficient=0.01)
    for gradients in GRADIENTS:
        weight.grad, bias.grad = (torch.tensor(values, dtype=torch.float64) for values in gradients)
        optimizer.step()

    w, b = np.array(WEIGHT), np.array(BIAS)
    # step 1: scale = .01 * 5 / (1 + .1 * 5) = 1/30
    v = (np.array(GRADIENTS[0][0]) + 0.1 * w) / 30
    w = w - 0.5 * v
    # step 2: |w| now, |g| = 2
    size = np.sqrt((w**2).sum())
    v = 0.9 * v + 0.01 * size / (2 + 0.1 * size) * (np.array(GRADIENTS[1][0]) + 0.1 * w)
    np.testing.assert_allclose(weight.detach(), w - 0.5 * v, rtol=1e-12)
    assert weight[0, 0].item() == pytest.approx(2.9685218, abs=1e-7)
    # the bias: v = .5, .5 then 1.45, .45; neither scaled nor decayed
    np.testing.assert_allclose(bias.detach(), b - 0.5 * np.array([0.5 + 1.45, 0.5 + 0.45]), rtol=1e-12)


def test_p4_the_first_step_of_paws():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    weight.grad = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    optimizer = LARS([weight], lr=0.5, weight_decay=0.1, lr_in_momentum=True)
    optimizer.step()
    torch.testing.assert_close(weight.tolist(), [[2.9985, 3.998]], rtol=0, atol=1e-12)
    buffer = optimizer.state[weight]["momentum_buffer"]
    torch.testing.assert_close(buffer.tolist(), [[0.5 * 0.003, 0.5 * 0.004]], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("lr_in_momentum", "path"), [(True, [-1.0, -2.0, -2.5]), (False, [-1.0, -1.75, -1.9375])])
def test_a_step_in_the_momentum_keeps_the_learning_rate_it_was_made_with(lr_in_momentum, path):
    """One bias, momentum 1/2, rates 1, 1/2, 1/4, gradients 1, 1, 0, by hand.

    Inside, v = 1, 1, 1/2 and w falls by v; outside, v = 1, 3/2, 3/4 and w falls by v times the rate of the day.
    """
    bias = nn.Parameter(torch.zeros(1))
    optimizer = LARS([bias], lr=1.0, momentum=0.5, lr_in_momentum=lr_in_momentum)
    got = []
    for lr, gradient in ((1.0, 1.0), (0.5, 1.0), (0.25, 0.0)):
        optimizer.param_groups[0]["lr"] = lr
        bias.grad = torch.full((1,), gradient)
        optimizer.step()
        got.append(bias.item())
    assert got == path


def test_both_forms_are_one_at_a_constant_learning_rate():
    def path(lr_in_momentum: bool) -> torch.Tensor:
        weight = nn.Parameter(torch.tensor(WEIGHT, dtype=torch.float64))
        optimizer = LARS([weight], lr=0.5, weight_decay=0.1, lr_in_momentum=lr_in_momentum)
        for gradient, _ in GRADIENTS * 2:
            weight.grad = torch.tensor(gradient, dtype=torch.float64)
            optimizer.step()
        return weight.detach()

    torch.testing.assert_close(path(True), path(False), rtol=1e-12, atol=0)


def test_the_step_ignores_the_scale_of_the_gradient():
    def first_step(factor: float) -> torch.Tensor:
        weight = nn.Parameter(torch.tensor(WEIGHT))
        weight.grad = factor * torch.tensor(GRADIENTS[0][0])
        LARS([weight], lr=0.5).step()
        return weight.detach()

    torch.testing.assert_close(first_step(1e4), first_step(1e-4))


def test_weights_that_are_zero_move_as_in_plain_sgd():
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight], lr=0.5).step()
    assert weight.tolist() == [[-0.5] * 2] * 2


def test_zero_gradient_without_decay_changes_nothing():
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2)
    LARS([weight], lr=0.5).step()
    assert weight.tolist() == [[1.0] * 2] * 2


def test_parameters_without_gradient_are_left_alone():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], lr=0.5)
    assert optimizer.step(lambda: 7.0) == 7.0
    assert weight.tolist() == [[1.0] * 2] * 2
    assert optimizer.state == {}


@pytest.mark.parametrize(
    ("name", "value"), [("lr", -1.0), ("momentum", 1.0), ("weight_decay", -0.1), ("trust_coefficient", 0.0)]
)
def test_impossible_values_are_refused(name, value):
    with pytest.raises(ValueError, match=f"LARS {name} = {value} is not allowed"):
        LARS([nn.Parameter(torch.ones(1))], **{"lr": 0.1, name: value})

    optimizer = LARS([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match=f"LARS {name} = {value} is not allowed"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], name: value})
    assert len(optimizer.param_groups) == 1


def test_complex_parameters_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2,\) and torch.complex64; it takes floating-point numbers"):
        LARS([nn.Parameter(torch.ones(2, dtype=torch.complex64))], lr=0.1)


@pytest.mark.parametrize("lr_in_momentum", [True, False])
def test_nesterov_is_that_of_torchs_sgd_where_nothing_is_scaled(lr_in_momentum):
    ours, theirs = (nn.Parameter(torch.tensor(BIAS, dtype=torch.float64)) for _ in range(2))
    a = LARS([ours], lr=0.1, nesterov=True, lr_in_momentum=lr_in_momentum)
    b = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=True)
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        ours.grad = torch.randn(2, generator=g).double()
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_vectors_are_scaled_as_matrices_are_where_a_group_asks_for_it():
    """The shortcut's norms of PAWS's code: a vector is moved as the matrix of one row is."""
    vector, matrix = (nn.Parameter(torch.tensor(values).double()) for values in ([3.0, 4.0], [[3.0, 4.0]]))
    optimizer = LARS([{"params": [vector], "scale_vectors": True}, {"params": [matrix]}], lr=0.5, weight_decay=0.1)
    for gradient in ([0.6, 0.8], [0.0, 2.0]):
        vector.grad, matrix.grad = torch.tensor(gradient).double(), torch.tensor([gradient]).double()
        optimizer.step()
    assert torch.equal(vector, matrix[0])


def test_a_state_of_an_older_version_has_the_defaults_of_newer_options():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], lr=0.5)
    saved = optimizer.state_dict()
    for key in ("nesterov", "scale_vectors"):
        del saved["param_groups"][0][key]
    optimizer.load_state_dict(saved)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert weight.isfinite().all()


def test_parity_with_lightly():
    """lightly.utils.lars.LARS(momentum=.9, weight_decay=.1, eps=0), float64, rtol 1e-12: weights, constant lr.

    Where they differ: lightly scales and decays biases too unless their group has no decay, and scales nothing in a
    group without decay.
    """
    lars = pytest.importorskip("lightly.utils.lars")
    g = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(3, 4).double()) for _ in range(2))
    a = LARS([ours], lr=0.3, weight_decay=0.1)
    b = lars.LARS([theirs], lr=0.3, momentum=0.9, weight_decay=0.1, eps=0.0)
    for _ in range(5):
        ours.grad = torch.randn(3, 4, generator=g).double()
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
