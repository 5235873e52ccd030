# SPDX-License-Identifier: Apache-2.0
"""What PAWS's loss says of bad input, and what it does in low precision."""

import math

import pytest
import torch
from torch import Tensor

from recipes_lib.objectives.snn import paws_loss, support_labels

SUPPORTS = torch.tensor([[1, 0], [0, 1], [1, 0.5], [-0.5, 1]], dtype=torch.float64)
LABELS = torch.tensor([[0.95, 0.05], [0.05, 0.95]] * 2, dtype=torch.float64)
LARGE = torch.tensor([[1, 0.2], [0.1, 1], [0.9, -0.1], [-0.2, 1]], dtype=torch.float64)
VIEWS = torch.cat([LARGE, torch.tensor([[0.7, 0.4], [0.3, 0.9]], dtype=torch.float64)])


def draw(seed: int) -> list[Tensor]:
    """Anchors, targets, anchor supports, target supports, labels."""
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randn(count, 4, generator=g, dtype=torch.float64) for count in (12, 6, 6, 6)]
    return [*rows, support_labels(torch.arange(3).repeat(2), 3, 0.1)]


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature = 0.0; it must be above 0"),
        ({"temperature": math.inf}, "temperature = inf; it must be above 0 and finite"),
        ({"sharpen_temperature": 0.0}, r"sharpen_temperature = 0.0; it must be in \(0, 1\]"),
        ({"sharpen_temperature": 1.5}, r"sharpen_temperature = 1.5; it must be in \(0, 1\]"),
    ],
)
def test_a_setting_out_of_range_is_named_with_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        paws_loss(VIEWS, LARGE, SUPPORTS, SUPPORTS, LABELS, **options)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"5 anchors do not fit 4 targets.*2 \+ M views.*multiple of 2, at least 4"):
        paws_loss(VIEWS[:5], LARGE, SUPPORTS, SUPPORTS, LABELS)
    with pytest.raises(ValueError, match="2 anchors do not fit 4 targets"):
        paws_loss(VIEWS[:2], LARGE, SUPPORTS, SUPPORTS, LABELS)
    with pytest.raises(ValueError, match="3 targets are not two large views"):
        paws_loss(VIEWS, LARGE[:3], SUPPORTS, SUPPORTS, LABELS)
    with pytest.raises(ValueError, match=r"4 anchor supports, 4 target supports, and labels of shape \[3, 2\]"):
        paws_loss(VIEWS, LARGE, SUPPORTS, SUPPORTS, LABELS[:3])
    with pytest.raises(ValueError, match=r"anchors \[6, 2\], targets \[4, 2\], anchor_supports \[4, 1\]"):
        paws_loss(VIEWS, LARGE, SUPPORTS[:, :1], SUPPORTS, LABELS)


def test_labels_that_are_no_distribution_are_named():
    labels = LABELS.clone()
    labels[2] *= 1.5
    with pytest.raises(ValueError, match=r"must sum to 1; row 2 sums to 1\.5"):
        paws_loss(VIEWS, LARGE, SUPPORTS, SUPPORTS, labels)


def test_a_class_without_support_is_named_unless_labels_are_smoothed():
    absent = torch.tensor([0, 2, 0, 2])
    with pytest.raises(ValueError, match=r"log 0: class 1 has no support \(1 of 3 .*use smoothing .*or add"):
        paws_loss(VIEWS, LARGE, SUPPORTS, SUPPORTS, support_labels(absent, 3, 0.0))
    assert paws_loss(VIEWS, LARGE, SUPPORTS, SUPPORTS, support_labels(absent, 3, 0.1))["loss"].isfinite()


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_smoothing_out_of_range_is_named(smoothing):
    with pytest.raises(ValueError, match=rf"smoothing = {smoothing}; it must be in \[0, 1\)"):
        support_labels(torch.tensor([0]), 2, smoothing)


@pytest.mark.parametrize("classes", [[0, 2], [-1, 0]])
def test_classes_without_a_column_are_named(classes):
    with pytest.raises(ValueError, match=rf"from {min(classes)} to {max(classes)}; they must be in \[0, 2\)"):
        support_labels(torch.tensor(classes), 2, 0.1)


# precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_loss_is_computed_in_float32_at_least(dtype):
    *embeddings, labels = draw(6)
    inputs = [*(x.to(dtype) for x in embeddings), labels]
    parts = paws_loss(*inputs)
    assert {value.dtype for value in parts.values()} == {torch.float32}
    exact = paws_loss(*(x.double() for x in inputs))
    torch.testing.assert_close(parts["loss"].double(), exact["loss"], rtol=1e-5, atol=1e-5)


def test_autocast_does_not_lower_the_precision():
    inputs = [x.float() for x in draw(7)]
    want = paws_loss(*inputs)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = paws_loss(*inputs)["loss"]
    assert got == want
