# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.data import pantry
from recipes_lib.errors import ConfigError
from recipes_lib.models import packaged
from recipes_lib.recipes.natural_variation import catalogue

CPU = torch.device("cpu")
IMAGES = pantry.render(pantry.sample_factors(5, seed=0), 32)


def _load(name: str) -> catalogue.Network:
    return catalogue.load(name, class_names=pantry.CLASSES, side=32, device=CPU, seed=0)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("pixels", 3072), ("convnet", 128), ("cooked/msn", 64), ("untrained:timm:test_vit", 64),
        ("untrained:torchvision:shufflenet_v2_x0_5", 1024),
    ],
)  # fmt: skip
def test_every_kind_of_model_has_features(name, width):
    found = _load(name).features(IMAGES)
    assert found.shape == (5, width)
    assert found.isfinite().all()
    assert (found.std(0) > 0).any()


@pytest.mark.skipif(packaged.missing() is not None, reason=str(packaged.missing()))
def test_the_packaged_networks_features_are_those_before_its_classifier():
    network = packaged.efficientnet_lite0()
    with torch.no_grad():
        views = catalogue.scaled(IMAGES, side=32, normalize=((0.5,) * 3, (0.5,) * 3))
        wanted = network.forward_head(network.forward_features(views), pre_logits=True)
    torch.testing.assert_close(_load("lite0").features(IMAGES), wanted)


def test_random_weights_are_the_same_at_every_call():
    one, two = (_load("convnet").features(IMAGES) for _ in range(2))
    assert torch.equal(one, two)


def test_a_clip_classifies_by_the_classes_names():
    found = _load("clip:cooked/clip").answers(pantry.dataset(60, size=32, seed=7, split="test").images)
    labels = pantry.sample_factors(60, seed=7, split="test").label
    assert found.dtype == torch.int64
    assert (found == labels).float().mean() > 0.25  # chance: 0.083


def test_nothing_is_cut_off_when_images_are_scaled():
    images = torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    images[:, :, 0] = 255
    found = catalogue.scaled(images, side=32, normalize=((0.0,) * 3, (1.0,) * 3))
    assert found[0, 0, 0].min() > 0.5


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet50", "models has resnet50, which is no run folder and no known name: use timm:NAME"),
        ("untrained:cooked/msn", "untrained: goes before timm:NAME"),
        ("clip:nowhere", "models has clip:nowhere, which is no run folder"),
        ("timm:", "models has timm:, which is no run folder"),
    ],
)
def test_a_name_that_is_no_model_is_told(name, said):
    assert said in catalogue.check(name)


@pytest.mark.parametrize(
    "name", ["pixels", "lite0", "untrained:lite0", "untrained:timm:resnet18", "cooked/msn", "clip:cooked/clip"]
)
def test_a_known_name_has_no_fault(name):
    assert catalogue.check(name) is None


def test_unknown_networks_and_wrong_recipes_are_named():
    with pytest.raises(
        ConfigError, match=r"models has untrained:timm:vit_tinny.* timm has no network 'vit_tinny'\. Did you"
    ):
        _load("untrained:timm:vit_tinny")
    with pytest.raises(ConfigError, match=r"clip:cooked/msn, whose recipe has no texts: leave clip: out"):
        _load("clip:cooked/msn")
    with pytest.raises(ConfigError, match="pixels has nothing to fine-tune"):
        _load("pixels").trainable()
