# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.models import AlexNet_Weights

from recipes_lib.config import CORRUPTIONS, SEVERITIES, EvalConfig, override
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.errors import ConfigError, DataError, Faults
from recipes_lib.evaluation import corruptions
from recipes_lib.evaluation.corruptions import ALEXNET, ALEXNET_CLEAN, Asked, CorruptionErrors, measure
from recipes_lib.evaluation.features import extract
from recipes_lib.evaluation.linear import linear_probe
from recipes_lib.models.convnet import ConvNet
from recipes_lib.views.corruptions import corrupt
from recipes_lib.views.multicrop import eval_view

DRAW = torch.Generator().manual_seed(0)
PIXELS = torch.randint(0, 256, (300, 3, 16, 16), generator=DRAW, dtype=torch.uint8)
IMAGES = ImageSet(PIXELS, torch.arange(300) % 3, ("a", "b", "c"))
ASKED = Asked(
    corruptions=("contrast", "gaussian_noise"),
    severities=(1, 5),
    images=1000,
    root=None,
    seed=0,
    image_size=16,
    normalize="imagenet",
)


def errors_of(each, clean=0.2):
    return CorruptionErrors(clean, {name: dict.fromkeys(SEVERITIES, each(name)) for name in CORRUPTIONS})


def test_alexnet_in_its_own_units_has_an_mce_and_a_relative_mce_of_one():
    found = errors_of(ALEXNET.get, clean=ALEXNET_CLEAN)
    assert found.mce == pytest.approx(1)
    assert found.relative_mce == pytest.approx(1)
    assert found.mean == pytest.approx(0.788993, abs=1e-6)


def test_a_classifier_with_the_same_error_everywhere_is_measured_in_units_of_alexnets():
    found = errors_of(lambda name: 0.5, clean=0.3)
    assert found.mean == pytest.approx(0.5)
    assert found.normalised["fog"] == pytest.approx(0.5 / 0.819324)
    assert found.mce == pytest.approx(sum(0.5 / error for error in ALEXNET.values()) / 15)
    assert found.relative_mce == pytest.approx(sum(0.2 / (error - 0.43478) for error in ALEXNET.values()) / 15)


def test_alexnets_error_on_clean_images_is_that_of_torchvisions_weights():
    assert (
        pytest.approx(1 - AlexNet_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100) == ALEXNET_CLEAN
    )
    assert tuple(ALEXNET) == CORRUPTIONS


@pytest.mark.parametrize("lost", ["fog", 4])
def test_some_of_the_errors_have_no_mce(lost):
    whole = errors_of(lambda name: 0.5)
    errors = {name: {s: e for s, e in row.items() if s != lost} for name, row in whole.errors.items() if name != lost}
    for figure in ("mce", "relative_mce"):
        with pytest.raises(ValueError, match="measure all of them"):
            vars(CorruptionErrors)[figure].fget(CorruptionErrors(0.2, errors))


def test_the_errors_are_the_shares_of_corrupted_images_that_a_classifier_gets_wrong():
    threshold = 0.0

    def predict(views):
        return (views.mean(dim=(1, 2, 3)) > threshold).long()

    found = measure({"bright": predict, "never": lambda views: torch.full((len(views),), 9)}, IMAGES, ASKED)
    assert found["never"].clean == found["never"].mean == 1
    assert found["bright"].clean == (predict(eval_view(PIXELS, 16)) != IMAGES.labels).double().mean()
    for name in ASKED.corruptions:
        for severity in ASKED.severities:
            views = eval_view(corrupt(PIXELS, name, severity, torch.arange(300)), 16)
            wrong = (predict(views) != IMAGES.labels).double().mean().item()
            assert found["bright"].errors[name][severity] == pytest.approx(wrong)
    assert list(found["bright"].errors) == ["contrast", "gaussian_noise"]


def test_a_look_that_is_asked_for_twice_is_counted_once():
    found = measure({"zero": lambda views: torch.zeros(len(views))}, IMAGES, replace(ASKED, severities=(1, 1)))["zero"]
    assert found.errors["contrast"] == {1: pytest.approx(2 / 3)}


def test_fewer_images_are_the_same_at_every_call_and_corrupted_as_in_the_whole_set():
    seen = []
    measure({"look": lambda views: seen.append(views) or torch.zeros(len(views))}, IMAGES, replace(ASKED, images=7))
    assert [len(views) for views in seen] == [7] * 5
    chosen = torch.tensor([int(n) for n in IMAGES.select(corruptions.sample(300, 7)).names])
    expected = eval_view(corrupt(PIXELS[chosen], "gaussian_noise", 5, chosen), 16)
    assert torch.equal(seen[-1], expected)


def test_files_are_corrupted_after_the_central_crop_as_imagenet_c_was(tmp_path):
    for number in range(3):
        large = PIXELS[number].permute(1, 2, 0).numpy().repeat(3, axis=0).repeat(2, axis=1)  # 48 x 32
        PIL.Image.fromarray(large).save(tmp_path / f"{number}.png")
    files = ImageFiles(tmp_path, np.array(["0.png", "1.png", "2.png"]), torch.zeros(3).long(), ("a",))
    seen = []
    measure({"look": lambda views: seen.append(views) or torch.zeros(len(views))}, files, ASKED)
    assert {tuple(views.shape) for views in seen} == {(3, 3, 16, 16)}
    assert len(seen) == 5


def test_the_frozen_classifier_is_the_linear_probe_and_leaves_the_backbone_in_its_mode():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = ConvNet().train()
    how = {"image_size": 16, "normalize": "imagenet"}
    train = extract(backbone, IMAGES, **how)
    labels = torch.where(torch.arange(300) < 250, IMAGES.labels, UNLABELLED)
    predict = corruptions.frozen_classifier(backbone, train, labels, IMAGES.labels, seed=0)
    found = measure({"probe": predict}, IMAGES, ASKED)["probe"]
    score = linear_probe(train.before_norm[:250], labels[:250], train.before_norm, IMAGES.labels, seed=0)
    assert found.clean == pytest.approx(1 - score, abs=1 / 300)  # batches of another size may round one image's way
    assert found.errors["gaussian_noise"][5] > found.clean
    assert backbone.training


def test_alexnets_unit_is_for_all_looks_of_imagenets_classes_at_224_pixels():
    synsets = tuple(f"n{number:08d}" for number in range(1000))
    imagenet = replace(IMAGES, class_names=synsets)
    whole = replace(ASKED, corruptions=CORRUPTIONS, severities=SEVERITIES, image_size=224)
    assert corruptions.comparable_with_alexnet(imagenet, whole)
    for images, asked in (
        (IMAGES, whole),
        (replace(IMAGES, class_names=synsets[:100]), whole),
        (imagenet, replace(whole, image_size=160)),
        (imagenet, replace(whole, corruptions=CORRUPTIONS[1:])),
        (imagenet, replace(whole, severities=(1, 2, 3))),
    ):
        assert not corruptions.comparable_with_alexnet(images, asked)


def test_published_images_take_the_place_of_ours(tmp_path):
    black, labels = np.zeros((1500, 16, 16, 3), np.uint8), np.tile(IMAGES.labels.numpy(), 5)
    black[1200:] = 255  # severity 5
    np.save(tmp_path / "contrast.npy", black)
    np.save(tmp_path / "labels.npy", labels)
    asked = replace(ASKED, corruptions=("contrast",), root=tmp_path, images=50)
    means = []
    measure({"mean": lambda views: means.append(views.mean().item()) or torch.zeros(len(views))}, IMAGES, asked)
    assert means[1] < means[0] < means[2]
    config = EvalConfig(corruptions=("contrast",), corruption_root=tmp_path)
    corruptions.require(config, IMAGES)
    with pytest.raises(DataError, match=r"has no fog\.npy"):
        corruptions.require(replace(config, corruptions=("fog",)), IMAGES)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("corruptions", [], r"eval\.corruptions = \(\) is not allowed: .* Leave it out for all 15\."),
        (
            "corruption_severities",
            [0, 3],
            r"eval\.corruption_severities = \(0, 3\) is not allowed: use a value of 1 to 5",
        ),
        ("corruption_severities", [], r"eval\.corruption_severities = \(\)"),
        ("corruption_images", 0, r"eval\.corruption_images = 0"),
    ],
)
def test_a_wrong_field_is_a_line(field, value, line):
    faults = Faults()
    override(EvalConfig(), {field: value}).check(faults)
    with pytest.raises(ConfigError, match=line):
        faults.raise_any()
    assert len(faults.lines) == 1
