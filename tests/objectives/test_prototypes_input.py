# SPDX-License-Identifier: Apache-2.0
"""What MSN's loss says of bad input, and what it does in low precision."""

import math

import pytest
import torch
from torch import Tensor

from recipes_lib.objectives.prototypes import msn_loss

Z = torch.tensor([[1, 2], [2, -1], [0.5, 1.5], [3, 1]], dtype=torch.float64)
Z_TARGET = torch.tensor([[1, 1], [1, -2]], dtype=torch.float64)
Q = torch.tensor([[1, 0], [0, 1], [-1, -1]], dtype=torch.float64)


def draw(seed: int, views: int = 3, images: int = 5, count: int = 7, dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = [(views * images, dim), (images, dim), (count, dim)]
    anchors, targets, prototypes = (torch.randn(size, generator=g, dtype=torch.float64) for size in sizes)
    return anchors.requires_grad_(), targets, prototypes.requires_grad_()


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature = 0.0; it must be above 0"),
        ({"sharpen_temperature": 0.0}, r"sharpen_temperature = 0.0; it must be in \(0, 1\]"),
        ({"sharpen_temperature": 1.5}, r"sharpen_temperature = 1.5; it must be in \(0, 1\]"),
        ({"sinkhorn_iterations": -1}, "sinkhorn_iterations = -1"),
    ],
)
def test_a_setting_out_of_range_is_named_with_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        msn_loss(Z, Z_TARGET, Q, **options)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"3 anchors do not fit 2 targets.*view-major.*V\*B"):
        msn_loss(Z[:3], Z_TARGET, Q)
    with pytest.raises(ValueError, match=r"anchors \[4, 2\], targets \[2, 2\], prototypes \[3, 1\]"):
        msn_loss(Z, Z_TARGET, Q[:, :1])
    with pytest.raises(ValueError, match="0 targets"):
        msn_loss(Z, Z_TARGET[:0], Q)


def test_prototypes_cut_off_from_the_graph_are_refused():
    anchors, targets, prototypes = draw(5)
    with pytest.raises(ValueError, match=r"prototypes receive no gradient; pass the Parameter, not \.data"):
        msn_loss(anchors, targets, prototypes.data)


@pytest.mark.parametrize("which", ["anchors", "targets", "prototypes"])
@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, "NaN or Inf"), (math.inf, "NaN or Inf"), (0.0, "norm 0"), (1e200, "overflows")]
)
def test_a_row_without_direction_is_named(which, value, message):
    inputs = {"anchors": Z.clone(), "targets": Z_TARGET.clone(), "prototypes": Q.clone()}
    inputs[which][1] = value
    with pytest.raises(FloatingPointError, match=rf"{which}\[1\].*{message}"):
        msn_loss(**inputs)


# precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_loss_is_computed_in_float32_at_least(dtype):
    anchors, targets, prototypes = (x.detach().to(dtype) for x in draw(6))
    parts = msn_loss(anchors, targets, prototypes)
    assert {value.dtype for value in parts.values()} == {torch.float32}
    exact = msn_loss(anchors.double(), targets.double(), prototypes.double())
    torch.testing.assert_close(parts["loss"].double(), exact["loss"], rtol=1e-5, atol=1e-5)


def test_autocast_does_not_lower_the_precision():
    anchors, targets, prototypes = (x.detach().float() for x in draw(7))
    want = msn_loss(anchors, targets, prototypes)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = msn_loss(anchors, targets, prototypes)["loss"]
    assert got == want


def test_assignments_of_a_very_small_temperature_stay_finite():
    anchors, targets, prototypes = (x.detach().float().requires_grad_(x.requires_grad) for x in draw(8))
    parts = msn_loss(anchors, targets, prototypes, temperature=1e-3, entropy_weight=1.0)
    parts["loss"].backward()
    assert parts["loss"].isfinite()
    assert anchors.grad.isfinite().all()
    assert prototypes.grad.isfinite().all()
