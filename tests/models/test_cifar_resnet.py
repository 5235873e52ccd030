# SPDX-License-Identifier: Apache-2.0
"""The ResNets for CIFAR-10; the published weights are used in ``test_tcnn.py``."""

import pytest
import torch
from safetensors.torch import save_file

from recipes_lib.errors import DataError, RunError
from recipes_lib.models.cifar_resnet import Block, CifarResNet, load_resnet20


def test_sizes_are_those_of_the_paper():
    network = CifarResNet(20)
    assert sum(parameter.numel() for parameter in network.parameters()) == 269_722  # 0.27 M in the paper's Table 6
    assert sum(parameter.numel() for parameter in CifarResNet(56).parameters()) == 853_018  # 0.85 M
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert network.features(torch.zeros(2, 3, 32, 32)).shape == (2, 64)


def test_the_shortcut_takes_every_second_pixel_and_adds_channels_of_zeros_on_both_sides():
    block = Block(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    maps = torch.rand(1, 2, 4, 4)
    out = block(maps)
    assert torch.equal(out[:, 1:3], maps[:, :, ::2, ::2])
    assert not out[:, [0, 3]].any()


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(ValueError, match=rf"depth = {depth}; a CIFAR ResNet's is 6 n \+ 2: 8, 14, 20"):
        CifarResNet(depth)


def test_weights_come_back_from_a_file_with_or_without_counters(tmp_path):
    network = CifarResNet(20)
    torch.nn.init.normal_(network.bn1.running_mean)
    state = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    save_file(state, tmp_path / "resnet20_cifar10.safetensors")
    loaded, images = load_resnet20(tmp_path), torch.rand(2, 3, 32, 32)
    assert not loaded.training
    assert torch.equal(loaded(images), network.eval()(images))


def test_a_missing_damaged_or_other_file_is_told(tmp_path):
    path = tmp_path / "resnet20_cifar10.safetensors"
    with pytest.raises(DataError, match=r"resnet20_cifar10\.safetensors cannot be read"):
        load_resnet20(tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        load_resnet20(tmp_path)
    save_file(CifarResNet(14).state_dict(), path)
    with pytest.raises(RunError, match="missing"):
        load_resnet20(tmp_path)
