# SPDX-License-Identifier: Apache-2.0
"""Whole networks: recasting, identity, folding back, and what is told when something does not fit."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from recipes_lib.models import cifar_resnet
from recipes_lib.models.convnet import ConvNet
from recipes_lib.models.gated_convolution import GatedConvolution
from recipes_lib.models.recast import check_identity, fold, recast, recast_layers, survey
from recipes_lib.models.resnet import ResNet


def drawn(network: nn.Module) -> nn.Module:
    """In evaluation mode, with batch norms as of a trained network, and layer scales that let every block count."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):  # ConvNeXt's layer scale starts at 1e-6
            nn.init.constant_(parameter, 0.5)
    return network.eval()


def pictures(side: int, count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(dtype)


def small() -> nn.Sequential:
    """Two 3x3 convolutions, the second with stride 2, and what stays."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 6, 1)
    )
    return drawn(nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)))


NETWORKS = {
    "resnet18": (lambda: ResNet("resnet18", stem="imagenet"), "layer4", 96, 4),
    "resnet50": (lambda: ResNet("resnet50", stem="cifar"), ("layer3", "layer4"), 32, 9),
    "convnet": (ConvNet, "", 32, 4),
    "cifar_resnet": (cifar_resnet.CifarResNet, "layer3", 32, 6),
    "resnetrs50": (
        lambda: timm.create_model("resnetrs50", num_classes=10, drop_path_rate=0.0, drop_block_rate=0.0),
        "layer4",
        160,
        3,
    ),
    "convnext": (lambda: timm.create_model("convnext_atto", num_classes=10), ("stages.2", "stages.3"), 64, 8),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_a_recast_network_computes_what_the_network_does(name, mode):
    """By attention in all heads; in training also the batch statistics agree."""
    build, where, side, count = NETWORKS[name]
    drawn_network = drawn(build())
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        network = copy.deepcopy(drawn_network).to(dtype)
        network.train(mode == "training")
        twin = recast(network, where)
        assert len(list(recast_layers(twin))) == count
        wanted = [network(pictures(side, dtype=dtype)), *network.buffers()]
        got = [twin(pictures(side, dtype=dtype)), *twin.buffers()]
        for ours, theirs in zip(got, wanted, strict=True):
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1)


def test_the_networks_own_convolutions_stay_as_they_are_and_weights_are_copied():
    network = small()
    before = copy.deepcopy(network.state_dict())
    twin = recast(network)
    assert not list(recast_layers(network))
    assert [name for name, _ in recast_layers(twin)] == ["0.0", "0.3"]
    twin[0][0].weight.data.zero_()
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


def test_weights_of_the_cnn_load_into_the_twin_under_the_same_names():
    network, other = small(), small()
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.2)
    twin = recast(network)
    missing, unexpected = twin.load_state_dict(other.state_dict(), strict=False)
    assert unexpected == []
    parts = ("v_pos", "gate", "query.weight", "key.weight")
    assert sorted(missing) == sorted(f"{name}.{part}" for name in ("0.0", "0.3") for part in parts)
    check_identity(other, twin, pictures(12))


@pytest.mark.parametrize("side", [4, 9, 16, 21])
def test_the_twin_is_the_cnn_at_every_resolution(side):
    network = small().double()
    twin = recast(network)
    check_identity(network, twin, pictures(16, dtype=torch.float64))
    check_identity(network, twin, pictures(side, dtype=torch.float64))


def test_a_layer_in_two_places_stays_one_layer():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    twin = recast(nn.Sequential(shared, nn.ReLU(), shared))
    assert twin[0] is twin[2]
    assert isinstance(twin[0], GatedConvolution)


def test_a_single_convolution_can_be_recast_and_folded():
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    twin = recast(convolution)
    assert isinstance(twin, GatedConvolution)
    assert torch.equal(fold(twin).weight, convolution.weight)


# which convolutions


def test_the_survey_says_of_every_convolution_whether_it_can_be_recast():
    network = drawn(timm.create_model("convnext_atto", num_classes=10))
    found = {each.name: each for each in survey(network)}
    convolutions = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    assert set(found) == convolutions
    assert str(found["stages.1.downsample.1"]) == (
        "stages.1.downsample.1 (2x2, stride 2x2, groups 1): its kernel is 2x2, and only odd sides have a pixel in the centre"
    )
    assert str(found["stages.3.blocks.0.conv_dw"]).endswith("(7x7, stride 1x1, groups 320): can be recast")


def test_parts_are_named_by_their_whole_names():
    network = ResNet("resnet18", stem="cifar")
    names = [each.name for each in survey(network, ["layer4.1", "layer1.0.conv1"])]
    assert names == ["layer1.0.conv1", "layer4.1.conv1", "layer4.1.conv2"]
    assert survey(nn.ModuleDict({"a": nn.Conv2d(1, 1, 3), "ab": nn.Conv2d(1, 1, 3)}), "a")[0].name == "a"
    assert len(survey(nn.ModuleDict({"a": nn.Conv2d(1, 1, 3), "ab": nn.Conv2d(1, 1, 3)}), "a")) == 1


def test_an_unknown_part_is_named_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"ResNet has no part 'layer5'\. Did you mean 'layer.'\? Its parts: conv1, bn1"
    ):
        recast(ResNet("resnet18", stem="cifar"), "layer5")


def test_a_part_without_a_convolution_to_recast_lists_those_it_has():
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 1))
    told = (
        r"no convolution in the network can be recast as attention: 0 \(4x4, stride 4x4, groups 1\): its kernel is 4x4, .*; "
        r"1 \(1x1, stride 1x1, groups 1\): its kernel is 1x1"
    )
    with pytest.raises(ValueError, match=told):
        recast(network)
    with pytest.raises(ValueError, match="in 0 can be recast as attention: it has no convolution"):
        recast(nn.Sequential(nn.Linear(2, 2)), "0")


# folding back


def test_folding_a_new_twin_gives_the_network_with_its_weights_exactly():
    network = small()
    back = fold(recast(network))
    assert [type(module) for module in back.modules()] == [type(module) for module in network.modules()]
    for key, value in back.state_dict().items():
        assert torch.equal(value, network.state_dict()[key])
    assert torch.equal(back(pictures(8)), network(pictures(8)))
    assert not back.training


def test_only_layers_that_hardly_left_their_kernel_are_folded():
    twin = recast(small(), gate="near")
    twin[0][0].gate.data[4] = 3.0  # a gate of 0.95
    assert [name for name, _ in recast_layers(fold(twin))] == ["0.0"]
    assert not list(recast_layers(fold(twin, threshold=0.9)))
    twin[0][3].v_pos.data[0] /= 3  # 13 % of its attention is elsewhere
    assert [name for name, _ in recast_layers(fold(twin, threshold=0.9))] == ["0.3"]
    assert len(list(recast_layers(twin))) == 2


def test_a_head_that_attends_to_another_pixel_is_not_folded():
    twin = recast(small())
    twin[0][0].v_pos.data[0, 0] *= -1  # the upper left head looks to the upper right
    assert [name for name, _ in recast_layers(fold(twin))] == ["0.0"]


# the check of the identity


def test_the_check_gives_each_layers_difference_and_the_outputs():
    network = small().double()
    found = check_identity(network, recast(network), pictures(9, dtype=torch.float64))
    assert list(found) == ["0.0", "0.3", "output"]
    assert all(0 <= each.largest < 1e-14 for each in found.values())


def test_the_check_is_of_the_attention_and_not_of_its_short_cut():
    network = small()
    twin = recast(network)
    twin[0][3].query.weight.data.fill_(torch.nan)  # the short cut would not see it
    with torch.no_grad():
        assert twin(pictures(8)).isfinite().all()
    with pytest.raises(ValueError, match=r"0\.3 differs from its convolution by nan"):
        check_identity(network, twin, pictures(8))


@pytest.mark.parametrize("which", ["network", "twin"])
def test_the_check_is_refused_in_training_mode(which):
    network = small()
    pair = {"network": network, "twin": recast(network)}
    pair[which].train()
    with pytest.raises(ValueError, match=rf"the {which} is in training mode, .*: call eval\(\) on both networks"):
        check_identity(**pair, images=pictures(8))


def test_a_nearly_closed_gate_passes_only_its_own_tolerance():
    network = small()
    twin = recast(network, gate="near")
    told = (
        r"0\.0 differs from its convolution by \d\.\de-04 of the largest output inside .* gate or locality_strength are"
    )
    with pytest.raises(ValueError, match=told):
        check_identity(network, twin, pictures(12))
    assert check_identity(network, twin, pictures(12), tolerance=3e-3)["output"].largest > 1e-5


def test_heads_in_another_order_are_found_in_the_interior():
    network = small()
    twin = recast(network)
    twin[0][3].v_pos.data[:, :2] = twin[0][3].v_pos.data[:, :2].flip(1)  # x and y swapped
    with pytest.raises(ValueError, match=r"0\.3 differs .*The heads may be in another order than the kernel's pixels"):
        check_identity(network, twin, pictures(12))


def test_a_missing_border_of_zeros_is_found_at_the_border(monkeypatch):
    network = small()
    twin = recast(network)
    plain = GatedConvolution.position_maps

    def renormalised(layer: GatedConvolution, height: int, width: int) -> Tensor:
        inside = plain(layer, height, width) + 1e-30
        return inside / inside.sum(-1, keepdim=True)

    monkeypatch.setattr(GatedConvolution, "position_maps", renormalised)
    with pytest.raises(ValueError, match=r"0\.0 differs .*Only the border differs: position attention must have"):
        check_identity(network, twin, pictures(12))


def test_another_weight_outside_the_recast_layers_is_told():
    network = small()
    twin = recast(network)
    twin[3].bias.data += 1
    with pytest.raises(ValueError, match=r"outputs differ by .* although every recast layer agrees .*: another weight"):
        check_identity(network, twin, pictures(12))
