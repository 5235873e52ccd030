# SPDX-License-Identifier: Apache-2.0
"""Transformed ResNets, and what is read from their gates and attention."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recipes_lib.errors import ConfigError, Faults, RunError
from recipes_lib.models import backbones, cifar_resnet, interchange, tcnn
from recipes_lib.models.gated_convolution import GatedConvolution
from recipes_lib.models.recast import check_identity, recast, recast_layers
from recipes_lib.models.tcnn import TCNNConfig
from recipes_lib.optim.groups import decay_groups


def pictures(side: int = 32, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return recast(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)))


# the backbone


LAYERS = {"tcnn_convnet_small": 2, "tcnn_resnet18": 4, "tcnn_resnet50": 3, "tcnn_resnetrs50": 3}


def started_from_a_cnn(arch: str) -> tuple[nn.Module, nn.Module]:
    """A convnet with weights, and its T-CNN with the same ones, both in evaluation mode."""
    stem = "imagenet" if "rs50" in arch else "cifar"
    plain_config = backbones.BackboneConfig(arch=arch.removeprefix("tcnn_"), stem=stem)
    plain = backbones.build(plain_config, image_size=32).eval()
    network = tcnn.build(TCNNConfig(arch=arch, stem=stem)).eval()
    return plain, interchange.fill(network, tcnn.new_parameters(network) | plain.state_dict())


@pytest.mark.parametrize("arch", LAYERS)
def test_a_tcnn_starts_as_its_convnet(arch):
    plain, network = started_from_a_cnn(arch)
    names = [name for name, _ in recast_layers(network)]
    assert len(names) == LAYERS[arch]
    assert all(any(f"{name}.".startswith(f"{part}.") for part in tcnn.RECAST[arch]) for name in names)
    side = 64 if "rs50" in arch else 32
    check_identity(plain, network, pictures(side))
    torch.testing.assert_close(network.norm(network.before_norm(pictures(side))), network(pictures(side)))
    assert network(pictures(side)).shape == (2, network.num_features)


def test_the_options_reach_the_layers():
    config = TCNNConfig(arch="tcnn_resnet18", gate="near", gate_logit=4.0, locality_strength=5.0, head_dim=3)
    network = tcnn.build(config)
    for _, layer in recast_layers(network):
        assert layer.gates().tolist() == pytest.approx([1 / (1 + math.exp(-4))] * 9)
        assert layer.v_pos[:, 2].tolist() == [-5] * 9
        assert layer.query.weight.shape == (27, layer.weight.shape[1])
        assert (layer.gate_kind, layer.head_dim) == ("near", 3)
    assert (network.arch, network.stem) == ("resnet18", "imagenet")


def test_new_parameters_are_what_the_convnet_does_not_have():
    plain, network = started_from_a_cnn("tcnn_convnet_small")
    new = tcnn.new_parameters(network)
    assert set(network.state_dict()) - set(new) == set(plain.state_dict())
    assert len(new) == 2 * len(tcnn.NEW)
    state = dict(plain.state_dict())
    state.pop("layers.0.0.weight")
    with pytest.raises(RunError, match=r"missing 1 \(layers\.0\.0\.weight\)"):
        interchange.fill(network, new | state)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"head_dim": 0}, r"model\.head_dim = 0 is not allowed: use a value of at least 1"),
        ({"gate_logit": 20.0}, r"model\.gate_logit = 20\.0 is not allowed: use a value of at most 16"),
        ({"locality_strength": 10.0}, r"model\.locality_strength = 10\.0 .*of at least 20 with gate linear"),
        ({"locality_strength": 0.0, "gate": "near"}, r"model\.locality_strength = 0\.0 .*above 0"),
    ],
    ids=str,
)
def test_bad_options_are_told_by_their_fields(changes, told):
    with pytest.raises(ConfigError, match=told):
        tcnn.build(TCNNConfig(**changes))


def test_every_option_that_is_allowed_can_be_built():
    for changes in (
        {"gate": "near", "gate_logit": 16.0},
        {"locality_strength": 20.0},
        {"gate": "near", "locality_strength": 1e-3},
    ):
        faults = Faults()
        config = TCNNConfig(arch="tcnn_resnet18", **changes)
        config.check(faults)
        assert faults.lines == []
        tcnn.build(config)


# parameter groups


def test_gates_and_positions_have_groups_of_their_own_and_all_parameters_are_in_one():
    network = two_layers()
    own = tcnn.param_groups(network, gate_lr_scale=100.0)
    layers = [layer for _, layer in recast_layers(network)]
    assert own[0] == {"params": [layer.gate for layer in layers], "decays": False, "lr_scale": 100.0}
    assert own[1] == {"params": [layer.v_pos for layer in layers], "decays": False}
    rest = decay_groups(network, without=[each for group in own for each in group["params"]])
    everything = [each for group in own + rest for each in group["params"]]
    assert len(everything) == len(set(everything)) == len(list(network.parameters()))
    decaying = next(group["params"] for group in rest if group["decays"])
    assert all(layer.query.weight in set(decaying) for layer in layers)


def test_frozen_gates_and_plain_networks_have_no_group():
    network = two_layers()
    for _, layer in recast_layers(network):
        layer.gate.requires_grad_(False)
    assert [list(group) for group in tcnn.param_groups(network, gate_lr_scale=2.0)] == [["params", "decays"]]
    assert tcnn.param_groups(nn.Linear(2, 2), gate_lr_scale=2.0) == []


def test_a_saturated_gate_is_not_trained():
    network = recast(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), gate="saturated")
    with pytest.raises(
        ValueError, match=r"0 has gate saturated: its gradient is exactly 0, .* Recast with gate linear"
    ):
        tcnn.param_groups(network, gate_lr_scale=1.0)
    network[0].gate.requires_grad_(False)
    assert len(tcnn.param_groups(network, gate_lr_scale=1.0)) == 1


# what the gates and the attention say


def test_gates_are_read_by_layer_and_pixel_of_the_kernel():
    network = two_layers()
    network[2].gate.data[1] = 0.25
    found = tcnn.gates(network)
    assert list(found) == ["0", "2"]
    assert found["2"].tolist() == [[1, 0.25, 1], [1, 1, 1], [1, 1, 1]]


def test_content_distance_is_the_mean_distance_to_what_is_attended():
    """Uniform attention on a row of 1x4 pixels: the mean over queries of (0+1+2+3)/4, (1+0+1+2)/4, ... is 1.25."""
    network = two_layers()
    for _, layer in recast_layers(network):
        layer.query.weight.data.zero_()
    images = pictures()[:, :, :2, :8]
    found = tcnn.content_distances(network.eval(), images)
    assert found["2"].tolist() == pytest.approx([1.25] * 9)
    # the first layer asks at every second pixel of 2x8: its first row's are 0, 2, 4 and 6
    wanted = sum(math.hypot(dy, x - query) for dy in (0, 1) for x in range(8) for query in (0, 2, 4, 6)) / 64
    assert found["0"].tolist() == pytest.approx([wanted] * 9)
    assert not network[0]._forward_pre_hooks


def test_attention_to_the_query_itself_has_distance_0():
    network = recast(nn.Sequential(nn.Conv2d(16, 4, 3, padding=1, bias=False)), head_dim=16)
    eye = 100 * torch.eye(16)
    network[0].query.weight.data.copy_(eye.repeat(9, 1))
    network[0].key.weight.data.copy_(eye.repeat(9, 1))
    one_hot = torch.eye(16).view(1, 16, 4, 4)
    assert tcnn.content_distances(network, one_hot)["0"].abs().max() < 1e-6


def test_resetting_the_gates_of_a_layer_makes_it_the_convolution_again():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)).eval()
    for gate in ("linear", "near"):
        network = recast(plain, gate=gate, locality_strength=40.0)
        for _, layer in recast_layers(network):
            layer.gate.data.fill_(0.3)
        opened = copy.deepcopy(network)
        tcnn.reset_gates(network, ["1"])
        assert tcnn.gates(network)["1"].min() == 1
        assert torch.equal(network[0].gate, opened[0].gate)
        assert (network(pictures(8)) - plain(pictures(8))).abs().max() > 1e-2
        tcnn.reset_gates(network, ["0"])
        check_identity(plain, network, pictures(8))
    with pytest.raises(ValueError, match=r"'2' is no recast layer\. There are: 0, 1"):
        tcnn.reset_gates(network, ["2"])


# a published network


def cifar10(recipes_data, count: int = 64) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The published ResNet-20, test images and their labels."""
    import numpy as np

    for part in ("cifar10_resnet20", "cifar10_subset"):
        if not (recipes_data / part).is_dir():
            pytest.skip(f"{part} is not in RECIPES_DATA")
    network = cifar_resnet.load_resnet20(recipes_data / "cifar10_resnet20")
    with np.load(recipes_data / "cifar10_subset" / "cifar10_5k_1k.npz") as held:
        images, labels = (torch.from_numpy(held[name][:count]) for name in ("x_test", "y_test"))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return network, (images.permute(0, 3, 1, 2) / 255 - mean) / std, labels.long()


def test_the_last_stage_of_a_published_resnet20_recast_gives_the_same_scores(recipes_data):
    network, images, labels = cifar10(recipes_data)
    twin = recast(network, "layer3")
    found = check_identity(network, twin, images)
    assert [name for name in found if name != "output"] == [
        f"layer3.{block}.conv{part}" for block in range(3) for part in (1, 2)
    ]
    torch.testing.assert_close(twin(images), network(images), rtol=0, atol=2e-5)
    assert (network(images).argmax(1) == labels).float().mean() > 0.7
    exact = check_identity(network.double(), twin.double(), images[:8].double())
    assert exact["output"].largest < 1e-13


def test_gates_of_a_published_resnet20_have_gradients_unless_they_are_saturated(recipes_data):
    network, images, labels = cifar10(recipes_data, 16)
    norms = {}
    for gate in ("linear", "near", "saturated"):
        twin = recast(network, "layer3", gate=gate)
        F.cross_entropy(twin(images), labels).backward()
        norms[gate] = [layer.gate.grad.norm().item() for _, layer in recast_layers(twin)]
    assert min(norms["linear"]) > 0.03
    assert 1e-7 < min(norms["near"]) < max(norms["near"]) < 1e-3
    assert max(norms["saturated"]) == 0


def test_half_of_the_attention_on_content_ruins_the_published_network(recipes_data):
    """The identity is no accident of a network that does not care."""
    network, images, labels = cifar10(recipes_data)
    twin = recast(network, "layer3")
    for _, layer in recast_layers(twin):
        assert isinstance(layer, GatedConvolution)
        layer.gate.data.fill_(0.5)
    before, after = ((net(images).argmax(1) == labels).float().mean().item() for net in (network, twin))
    assert after < before - 0.2
