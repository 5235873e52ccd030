# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.objectives.precision import at_least_float32


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_is_raised_and_more_stays(given, found):
    assert at_least_float32(torch.ones(2, dtype=given)).dtype == found
