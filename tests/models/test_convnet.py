# SPDX-License-Identifier: Apache-2.0
"""The small convolutional network."""

import pytest
import torch

from recipes_lib.models.convnet import ConvNet, small


@pytest.mark.parametrize("side", [8, 16, 32, 33])
def test_images_of_any_side_from_8_on_become_128_features(side):
    net = ConvNet()
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert net(images).shape == (2, net.num_features) == (2, 128)


def test_features_are_the_mean_over_positions_of_the_last_layer():
    net = ConvNet().eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net(images), net.layers(images).flatten(2).mean(dim=2))
        assert torch.equal(net.before_norm(images), net(images))


def test_the_small_network_keeps_a_quarter_of_the_images_side():
    net = small()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert net.layers(images).shape == (2, 32, 8, 8)
    assert net(images).shape == (2, net.num_features)
    with pytest.raises(ValueError, match="shorter"):
        ConvNet((4, 8), (1,))
