# SPDX-License-Identifier: Apache-2.0
"""The perceptron: two hidden layers on brightness."""

import torch

from recipes_lib.models.mlp import MLP


def test_it_is_two_hidden_layers_on_the_mean_of_the_colours():
    net = MLP(image_size=8, width=5)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    (w1, b1), (w2, b2) = ((net.layers[i].weight, net.layers[i].bias) for i in (0, 2))
    expected = ((images.mean(1).flatten(1) @ w1.T + b1).relu() @ w2.T + b2).relu()
    torch.testing.assert_close(net(images), expected)
    assert net(images).shape == (3, net.num_features)
    assert torch.equal(net.norm(net.before_norm(images)), net(images))
    assert sum(p.numel() for p in net.parameters()) == 64 * 5 + 5 + 5 * 5 + 5
