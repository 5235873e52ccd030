# SPDX-License-Identifier: Apache-2.0
"""Which options belong to which architecture, and that every architecture can be built and used in the same way."""

from typing import Any, get_args

import pytest
import torch

from recipes_lib.errors import ConfigError, Faults
from recipes_lib.models import backbones, convit, tcnn, vit
from recipes_lib.models.backbones import Arch, BackboneConfig
from recipes_lib.models.nac import network as nac

SMALL = (
    "convnet",
    "convnet_small",
    "resnet18",
    "wide_resnet28_2",
    "vit_pico",
    "convit_pico",
    "tcnn_convnet_small",
    "nac_pico",
)


def config(arch: str, **changes: Any) -> BackboneConfig:
    stem = "patch" if "vit" in arch or "nac" in arch else "imagenet" if "rs50" in arch else "cifar"
    return BackboneConfig(arch=arch, stem=stem, patch_size=4, **changes)


def said(found: BackboneConfig) -> str:
    faults = Faults()
    found.check(faults)
    try:
        faults.raise_any()
    except ConfigError as error:
        return str(error)
    return ""


def test_every_architecture_can_be_chosen():
    assert {*vit.ARCHS, *convit.ARCHS, *tcnn.RECAST, *nac.ARCHS} <= set(get_args(Arch))


@pytest.mark.parametrize("arch", SMALL)
def test_a_backbone_maps_images_to_features_with_a_norm_at_the_end(arch):
    images = torch.rand(2, 3, 16, 16)
    network = backbones.build(config(arch), image_size=16).eval()
    assert said(config(arch)) == ""
    with torch.no_grad():
        features = network(images)
        torch.testing.assert_close(network.norm(network.before_norm(images)), features)
    assert features.shape == (2, network.num_features)


def test_the_options_of_a_convit_reach_its_network():
    network = backbones.build(
        config("convit_pico", gpsa_layers=1, locality_strength=2.0, pool="mean", drop_path=0.2), image_size=16
    )
    assert (network.gpsa_layers, network.pooling) == (1, "mean")
    assert network.blocks[0].attn.pos_proj.weight[0, 2] == -2.0
    assert network.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)


def test_the_options_of_a_tcnn_reach_its_network():
    found = config("tcnn_resnet18", gate="near", gate_logit=2.0, head_dim=4, locality_strength=3.0)
    assert said(found) == ""
    layer = backbones.build(found, image_size=32).layer4[1].conv2
    assert (layer.gate_kind, layer.head_dim, layer.gate[0], layer.v_pos[0, 2]) == ("near", 4, 2.0, -3.0)


def test_a_locality_strength_that_earlier_runs_stored_is_read():
    assert said(config("resnet18", locality_strength=1.0)) == ""


@pytest.mark.parametrize("arch", ["resnetrs50", "tcnn_resnetrs50"])
def test_a_resnet_rs_has_one_stem(arch):
    assert said(config(arch)) == ""
    assert "model.stem = cifar is not allowed" in said(BackboneConfig(arch=arch, stem="cifar"))


@pytest.mark.parametrize(
    ("arch", "option", "value"),
    [
        ("vit_pico", "gpsa_layers", 1),
        ("vit_pico", "locality_strength", 2.0),
        ("convit_pico", "registers", 2),
        ("nac_pico", "pool", "mean"),
        ("convnet", "drop_path", 0.1),
        ("resnet18", "pool", "mean"),
        ("resnet18", "gate", "near"),
        ("tcnn_resnet18", "drop_path", 0.1),
    ],
)
def test_an_option_that_the_architecture_does_not_have_is_refused(arch, option, value):
    assert f"model.{option} = {value} is not allowed" in said(config(arch, **{option: value}))


def test_faults_of_a_transformers_own_options_are_told():
    assert "model.locality_strength = 0.0" in said(config("convit_pico", locality_strength=0.0))
    assert "model.gpsa_layers = 9" in said(config("convit_pico", gpsa_layers=9))
    assert "model.head_dim = 0" in said(config("tcnn_resnet18", head_dim=0))
    assert "model.locality_strength = 10.0" in said(config("tcnn_resnet18", locality_strength=10.0))
    assert "model.drop_path = 1.0" in said(config("vit_pico", drop_path=1.0))


def test_a_circuit_takes_part_in_no_masking():
    assert config("nac_pico").has_blocks
    assert not config("nac_pico").drops_patches
    assert "model.patch_size = 6" in said(BackboneConfig(arch="nac_pico", stem="conv", patch_size=6))


def test_patches_must_tile_the_views_of_a_convit_too():
    faults = Faults()
    config("convit_pico").check_sides(faults, {"views.image_size": 18})
    with pytest.raises(ConfigError, match=r"model\.patch_size = 4 does not divide views\.image_size = 18"):
        faults.raise_any()
