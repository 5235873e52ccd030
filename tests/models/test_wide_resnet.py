# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.distributed.batch_norm import CrossRankBatchNorm
from recipes_lib.models.wide_resnet import WideResNet


def by_hand(network: WideResNet, images: Tensor) -> Tensor:
    """The forward pass of WRN-10-w, from its weights alone, in eval mode."""
    weights = network.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        scale, shift, mean, var = (weights[f"{name}.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
        along = (1, -1, 1, 1)
        y = (x - mean.view(along)) / (var.view(along) + 1e-5).sqrt() * scale.view(along) + shift.view(along)
        return y.clamp_min(0)

    def convolve(x: Tensor, name: str, **options: int) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    x = convolve(images, "conv1", padding=1)
    for layer, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer3.0", 2)):
        inner = convolve(norm(x, f"{layer}.bn1"), f"{layer}.conv1", padding=1)
        inner = convolve(norm(inner, f"{layer}.bn2"), f"{layer}.conv2", padding=1, stride=stride)
        x = inner + convolve(x, f"{layer}.shortcut", stride=stride)
    return norm(x, "bn1").flatten(2).mean(dim=2)


def test_a_block_is_norm_relu_convolution_twice_plus_the_input():
    torch.manual_seed(0)
    network, images = WideResNet(depth=10, width=2).double(), torch.randn(2, 3, 16, 16).double()
    network(images)  # running statistics other than 0 and 1
    for norm in (m for m in network.modules() if isinstance(m, CrossRankBatchNorm)):
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
    network.eval()
    torch.testing.assert_close(network(images), by_hand(network, images))
    torch.testing.assert_close(network.norm(network.before_norm(images)), network(images))


def test_wrn_28_2_has_28_layers_and_the_papers_number_of_weights():
    network = WideResNet(depth=28, width=2)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) == 25  # 1 + 6 * 4, and 3 shortcuts: 28
    assert sum(m.kernel_size == (1, 1) for m in convolutions) == 3
    assert all(m.bias is not None for m in convolutions)
    assert network.num_features == 128
    # the paper's 1.5 million worked out
    kernels = 3 * 9 * 16 + 16 * 9 * 32 + 7 * 32 * 9 * 32 + 16 * 32
    kernels += 32 * 9 * 64 + 7 * 64 * 9 * 64 + 32 * 64 + 64 * 9 * 128 + 7 * 128 * 9 * 128 + 64 * 128
    biases = 16 + 8 * (32 + 64 + 128) + 32 + 64 + 128
    norms = 2 * (16 + 7 * 32 + 32 + 7 * 64 + 64 + 7 * 128 + 128)
    assert sum(m.weight.numel() for m in convolutions) == kernels
    assert sum(p.numel() for p in network.parameters()) == kernels + biases + norms == 1_468_352


@pytest.mark.parametrize("side", [32, 18])
def test_features_are_of_one_size_whatever_the_side_of_the_images(side):
    network = WideResNet(depth=10, width=1).eval()
    maps = []
    network.layer3.register_forward_hook(lambda _, inputs, output: maps.append((inputs[0].shape, output.shape)))
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 64)
    half, quarter = -(-side // 2), -(-side // 4)
    assert maps == [((2, 32, half, half), (2, 64, quarter, quarter))]


def test_every_batch_norm_is_cross_rank_and_the_last_one_follows_the_last_batch():
    network = WideResNet(depth=16, width=1)
    norms = {name: m for name, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert all(isinstance(norm, CrossRankBatchNorm) for norm in norms.values())
    assert {name for name, norm in norms.items() if norm.momentum == 0.99} == {"bn1"}
    assert {norm.momentum for name, norm in norms.items() if name != "bn1"} == {0.1}
    maps = []
    network.layer3.register_forward_hook(lambda _, __, output: maps.append(output))
    network(torch.randn(4, 3, 16, 16))
    torch.testing.assert_close(network.bn1.running_mean, 0.99 * maps[0].mean(dim=(0, 2, 3)))


@pytest.mark.parametrize("depth", [4, 20, 26])
def test_an_impossible_depth_is_named_with_those_that_are_not(depth):
    with pytest.raises(ValueError, match=rf"depth = {depth}; .*10, 16, 22, 28"):
        WideResNet(depth=depth, width=2)
    with pytest.raises(ValueError, match="width = 0; it must be at least 1"):
        WideResNet(depth=10, width=0)
