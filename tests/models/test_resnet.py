# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torchvision

from recipes_lib.distributed.batch_norm import CrossRankBatchNorm
from recipes_lib.errors import ConfigError
from recipes_lib.models.resnet import ResNet


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_features_are_torchvisions_before_its_classifier(arch):
    torch.manual_seed(0)
    mine = ResNet(arch, stem="imagenet").eval()
    theirs = torchvision.models.get_model(arch).eval()
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(mine.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(mine(images), theirs(images))
    torch.testing.assert_close(mine.norm(mine.before_norm(images)), mine(images))
    assert mine(images).shape == (2, mine.num_features)


def test_small_stem_keeps_the_resolution_of_small_images():
    network = ResNet("resnet18", stem="cifar").eval()
    maps = []
    network.layer1.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0].shape))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 512)
    assert maps == [(2, 64, 32, 32)]
    assert network.conv1.weight.shape == (64, 3, 3, 3)


def test_every_batch_norm_is_cross_rank():
    norms = [
        m for m in ResNet("resnet18", stem="cifar").modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    ]
    assert norms
    assert all(isinstance(norm, CrossRankBatchNorm) for norm in norms)


def test_an_unknown_resnet_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"model\.arch = resnet20 is no ResNet. Did you mean"):
        ResNet("resnet20", stem="cifar")
