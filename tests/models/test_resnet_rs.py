# SPDX-License-Identifier: Apache-2.0
"""ResNet-RS is timm's network, key by key, with batch norm over all ranks."""

import timm
import torch

from recipes_lib.distributed.batch_norm import CrossRankBatchNorm
from recipes_lib.models import interchange
from recipes_lib.models.resnet_rs import ResNetRS


def test_it_is_timms_network_with_batch_norm_over_all_ranks():
    theirs = timm.create_model("resnetrs50", num_classes=0).eval()
    ours = interchange.fill(ResNetRS(), theirs.state_dict()).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
        torch.testing.assert_close(ours.norm(ours.before_norm(images)), ours(images))
    norms = [each for each in ours.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(each, CrossRankBatchNorm) for each in norms)
