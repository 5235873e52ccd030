# SPDX-License-Identifier: Apache-2.0
"""Which options belong to which architecture, and that every architecture can be built and used in the same way."""

from typing import Any, get_args

import pytest
import torch

from recipes_lib.errors import ConfigError, Faults
from recipes_lib.models import backbones, convit, vit
from recipes_lib.models.backbones import Arch, BackboneConfig
from recipes_lib.models.nac import network as nac

SMALL = ("convnet", "resnet18", "wide_resnet28_2", "vit_pico", "convit_pico", "nac_pico")
STEMS = {"convnet": "cifar", "resnet18": "cifar", "wide_resnet28_2": "cifar"}


def config(arch: str, **changes: Any) -> BackboneConfig:
    return BackboneConfig(arch=arch, stem=STEMS.get(arch, "patch"), patch_size=4, **changes)


def said(found: BackboneConfig) -> str:
    faults = Faults()
    found.check(faults)
    try:
        faults.raise_any()
    except ConfigError as error:
        return str(error)
    return ""


def test_every_architecture_of_the_transformers_can_be_chosen():
    assert {*vit.ARCHS, *convit.ARCHS, *nac.ARCHS} <= set(get_args(Arch))


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


@pytest.mark.parametrize(
    ("arch", "option", "value"),
    [
        ("vit_pico", "gpsa_layers", 1),
        ("vit_pico", "locality_strength", 2.0),
        ("convit_pico", "registers", 2),
        ("nac_pico", "pool", "mean"),
        ("convnet", "drop_path", 0.1),
        ("resnet18", "pool", "mean"),
    ],
)
def test_an_option_that_the_architecture_does_not_have_is_refused(arch, option, value):
    assert f"model.{option} = {value} is not allowed" in said(config(arch, **{option: value}))


def test_faults_of_a_transformers_own_options_are_told():
    assert "model.locality_strength = 0.0" in said(config("convit_pico", locality_strength=0.0))
    assert "model.gpsa_layers = 9" in said(config("convit_pico", gpsa_layers=9))
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
