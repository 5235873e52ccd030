# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from recipes_lib.config import TrainConfig
from recipes_lib.config.views import OneView, StrongView
from recipes_lib.data.loader import Batch
from recipes_lib.errors import ConfigError, Faults
from recipes_lib.models.mlp import MLP
from recipes_lib.pretraining.classify import Classifier, ClassLoss, MixingClassifier


@dataclass(frozen=True)
class Model:
    classes: int = 5


@dataclass(frozen=True)
class Config:
    views: OneView = field(default_factory=lambda: OneView(image_size=8, global_scale=(1.0, 1.0), flip=0.0))
    model: Model = field(default_factory=Model)
    loss: ClassLoss = field(default_factory=ClassLoss)
    train: TrainConfig = field(default_factory=TrainConfig)


PLAIN = Config(loss=ClassLoss(label_smoothing=0.0, mixup=0.0, cutmix=0.0))


def batch() -> Batch:
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(torch.arange(6), 0, images, None, torch.tensor([0, 1, 2, 3, 4, 0]))


def network() -> nn.Module:
    return MLP(image_size=8, width=16)


def of(kind: type[Classifier], config: Config) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config, network())


def test_the_loss_is_the_cross_entropy_of_the_logits():
    model = of(Classifier, PLAIN)
    views = model.views(batch(), 0)
    logits = model.classify(views["images"])
    found = model(views)
    torch.testing.assert_close(found["loss"], F.cross_entropy(logits, batch().labels))
    assert found["accuracy"] == (logits.argmax(dim=1) == batch().labels).float().mean()


def test_without_mixing_and_smoothing_it_is_the_plain_classifier():
    plain, mixing = of(Classifier, PLAIN), of(MixingClassifier, PLAIN)
    assert torch.equal(plain(plain.views(batch(), 0))["loss"], mixing(mixing.views(batch(), 0))["loss"])


def test_smoothing_alone_is_timms():
    model = of(MixingClassifier, replace(PLAIN, loss=replace(PLAIN.loss, label_smoothing=0.1)))
    views = model.views(batch(), 0)
    wanted = LabelSmoothingCrossEntropy(0.1)(model.classify(views["images"]), batch().labels)
    torch.testing.assert_close(model(views)["loss"], wanted)


@pytest.mark.parametrize("loss", [ClassLoss(cutmix=0.0), ClassLoss(mixup=0.0), ClassLoss()])
def test_mixed_images_and_targets_have_the_same_weight(loss):
    model = of(MixingClassifier, replace(PLAIN, loss=loss))
    plain = of(Classifier, PLAIN).views(batch(), 0)["images"]
    views = model.views(batch(), 3)
    images, targets = views["images"], views["targets"]
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
    # of its own class an image has the share w (1 - 0.1) + 0.1 / 5; the first image's partner is of the same class
    share = (targets[1, 1] - 0.02) / 0.9
    if loss.cutmix == 0:
        torch.testing.assert_close(images, share * plain + (1 - share) * plain.flip(0))
    elif loss.mixup == 0:
        own = (images == plain).all(dim=1).flatten(1).float().mean(dim=1)  # share of pixels
        assert own[1] == pytest.approx(float(share), abs=1e-5)
    torch.testing.assert_close(
        model(views)["loss"], SoftTargetCrossEntropy()(model.classify(images), targets), rtol=1e-5, atol=1e-6
    )


def test_mixing_depends_on_seed_and_step_alone():
    model = of(MixingClassifier, replace(PLAIN, loss=ClassLoss()))
    first = model.views(batch(), 3)["images"]
    model.views(batch(), 4)
    assert torch.equal(model.views(batch(), 3)["images"], first)
    assert not torch.equal(model.views(batch(), 4)["images"], first)


def test_the_strong_view_is_used_if_the_config_has_it():
    strong = replace(
        PLAIN, views=StrongView(image_size=8, erase=1.0, rand_augment=None, global_scale=(1.0, 1.0), flip=0.0)
    )
    assert not torch.equal(
        of(Classifier, strong).views(batch(), 0)["images"], of(Classifier, PLAIN).views(batch(), 0)["images"]
    )


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (ClassLoss(label_smoothing=1.0), "loss.label_smoothing = 1.0 is not allowed: use a value in [0, 1)"),
        (ClassLoss(mixup=-1.0), "loss.mixup = -1.0 is not allowed"),
        (ClassLoss(cutmix=-1.0), "loss.cutmix = -1.0 is not allowed"),
        (ClassLoss(switch=2.0), "loss.switch = 2.0 is not allowed"),
    ],
)
def test_faults_of_the_loss_are_named(loss, said):
    faults = Faults()
    loss.check(faults)
    with pytest.raises(ConfigError) as caught:
        faults.raise_any()
    assert said in str(caught.value)


def test_the_last_image_of_an_odd_number_stays_as_it_is():
    model = of(MixingClassifier, replace(PLAIN, loss=ClassLoss()))
    odd = replace(batch(), indices=torch.arange(5), images=batch().images[:5], labels=batch().labels[:5])
    plain = of(Classifier, PLAIN).views(odd, 0)["images"]
    views = model.views(odd, 3)
    assert torch.equal(views["images"][4], plain[4])
    assert not torch.equal(views["images"][0], plain[0])
    torch.testing.assert_close(views["targets"][4], torch.full((5,), 0.02).index_fill(0, odd.labels[4:], 0.92))
    torch.testing.assert_close(views["targets"].sum(dim=1), torch.ones(5))
