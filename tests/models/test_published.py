# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
from torch import nn

from recipes_lib.errors import RunError
from recipes_lib.models import published


def test_weights_that_cannot_be_fetched_are_told_in_one_line_with_a_way_out():
    def create() -> nn.Module:
        raise OSError("no network.\nsecond line")

    with pytest.raises(RunError, match=r"^model = timm:x: .* \(OSError: no network\)\. Run once .* or choose y\.$"):
        published.fetched("timm:x", create, otherwise="choose y")
    assert logging.getLogger("huggingface_hub").level != logging.ERROR


def test_a_network_comes_back_as_it_was_made():
    made = nn.Identity()
    assert published.fetched("timm:x", lambda: made, otherwise="") is made


def test_the_nearest_names_are_suggested():
    assert (
        published.unknown("timm", "resnet5", ["resnet50", "vgg"])
        == "timm has no network 'resnet5'. Did you mean resnet50?"
    )
