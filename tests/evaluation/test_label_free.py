# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from recipes_lib.config import LABEL_FREE_PROBES, ViewsConfig
from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.evaluation import hypersphere, label_free, spectrum
from recipes_lib.evaluation.label_free import Looks, RawPixels, measure
from recipes_lib.models.convnet import ConvNet
from recipes_lib.views.multicrop import eval_view

VIEWS = ViewsConfig(image_size=16, global_scale=(0.5, 1.0), blur=0.0, normalize="imagenet")
LOOKS = Looks(image_size=16, normalize="imagenet", resize="bilinear", views=VIEWS, seed=0)
PIXELS = torch.randint(0, 256, (300, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGES = ImageSet(PIXELS, None, ())


def network() -> ConvNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvNet()


def test_every_probe_that_needs_no_labels_is_measured_and_each_by_its_name():
    found = measure(network(), IMAGES, LABEL_FREE_PROBES, LOOKS)
    assert tuple(found) == LABEL_FREE_PROBES
    with torch.no_grad():
        features = network().eval()(eval_view(PIXELS, 16, "imagenet"))
    assert found["rankme"] == pytest.approx(spectrum.rankme(features), rel=1e-4)
    assert found["alpha_req"] == pytest.approx(spectrum.alpha_req(features), rel=1e-2)
    assert found["uniformity"] == pytest.approx(hypersphere.uniformity(features), rel=1e-4)
    assert found["std"] == pytest.approx(hypersphere.normalized_std(features), rel=1e-4)


def test_the_mode_and_the_statistics_of_the_network_stay_as_they_were():
    backbone = network().train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    measure(backbone, IMAGES, LABEL_FREE_PROBES, LOOKS)
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_views_differ_from_each_other_and_are_the_same_at_every_call():
    first, second = (label_free._of_view(RawPixels(), IMAGES, LOOKS, number) for number in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(label_free._of_view(RawPixels(), IMAGES, LOOKS, 0), first)
    still = replace(VIEWS, global_scale=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0)
    assert measure(RawPixels(), IMAGES, ["alignment"], replace(LOOKS, views=still))["alignment"] == pytest.approx(0)


def test_image_files_are_seen_as_images_in_memory_are(tmp_path):
    for number in range(40):
        PIL.Image.fromarray(PIXELS[number].permute(1, 2, 0).numpy()).save(tmp_path / f"{number:02d}.png")
    files = ImageFiles(tmp_path, np.array([f"{number:02d}.png" for number in range(40)]), None, ())
    some = IMAGES.select(torch.arange(40))
    names = ["uniformity", "alignment", "std", "rotation"]
    in_memory, on_disk = (measure(RawPixels(), images, names, LOOKS) for images in (some, files))
    assert on_disk == pytest.approx(in_memory, rel=1e-3)  # crops of files are rounded to whole values


def test_at_most_so_many_images_are_taken_the_same_ones_each_time_and_from_all_places(monkeypatch):
    monkeypatch.setattr(label_free, "MOST_IMAGES", 100)
    labelled = replace(IMAGES, labels=torch.arange(300) % 3)  # every third image is of one class
    chosen = label_free.some(labelled, 100)
    assert chosen.labels.bincount().min() > 20
    assert measure(RawPixels(), IMAGES, ["std"], LOOKS) == measure(RawPixels(), chosen, ["std"], LOOKS)
    assert label_free.some(IMAGES, 300) is IMAGES


def test_raw_pixels_are_reduced_to_32_and_centred():
    pixels = RawPixels()(torch.rand(2, 3, 64, 64))
    assert pixels.shape == (2, 3 * 32 * 32)
    assert pixels.mean(dim=1) == pytest.approx([0, 0], abs=1e-6)
    assert isinstance(RawPixels(), nn.Module)


def test_what_is_not_defined_of_a_constant_network_is_left_out():
    backbone = network()
    for parameter in backbone.parameters():
        parameter.data.zero_()
    found = measure(backbone, IMAGES, LABEL_FREE_PROBES, LOOKS)
    assert found == {"uniformity": 0, "alignment": 0, "std": 0, "rotation": 0.25}
