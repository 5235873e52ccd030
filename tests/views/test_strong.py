# SPDX-License-Identifier: Apache-2.0
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from recipes_lib.config.views import StrongView
from recipes_lib.data import pantry
from recipes_lib.errors import ConfigError, Faults
from recipes_lib.randomness import sample_keys
from recipes_lib.views.multicrop import MultiCrop
from recipes_lib.views.strong import ERASED_AREA, StrongCrop, erase

SIDE = 32
VIEW = StrongView(image_size=SIDE)
WEAK = replace(VIEW, rand_augment=None, erase=0.0)


@dataclass(frozen=True)
class Few:
    indices: Tensor
    epoch: int
    images: Tensor | None
    crops: list[Tensor] | None = None


@pytest.fixture(scope="module")
def batch() -> Few:
    images = pantry.dataset(8, size=SIDE, seed=0, split="train").images
    return Few(torch.arange(8), 3, images)


def test_without_augmentation_it_is_the_plain_crop(batch):
    assert torch.equal(StrongCrop(WEAK, 5)(batch)[0], MultiCrop(WEAK, 5)(batch)[0])


def test_a_view_depends_on_seed_epoch_and_index_alone(batch):
    whole = StrongCrop(VIEW, 5)(batch)[0]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - it must not matter
    rows = torch.tensor([6, 2])
    assert torch.equal(StrongCrop(VIEW, 5)(Few(rows, 3, batch.images[rows]))[0], whole[rows])
    for other in (StrongCrop(VIEW, 6)(batch)[0], StrongCrop(VIEW, 5)(replace(batch, epoch=4))[0]):
        assert not torch.equal(other, whole)


def test_images_in_memory_and_crops_from_workers_give_the_same_view(batch):
    crop = StrongCrop(VIEW, 5)
    pictures = [to_pil_image(image) for image in batch.images]
    crops = torch.stack([crop.crop_one(picture, index, 3)[0] for index, picture in enumerate(pictures)])
    assert torch.equal(crop(replace(batch, images=None, crops=[crops]))[0], crop(batch)[0])


def test_the_global_generators_of_python_and_numpy_stay_where_they_were(batch):
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    wanted = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    StrongCrop(VIEW, 5)(batch)
    assert (random.random(), np.random.rand()) == wanted  # noqa: NPY002


def test_rand_augment_is_timms_own_with_its_fill_and_interpolation(monkeypatch, batch):
    told = []

    def note(name, how):
        told.append((name, how))
        return lambda image: image

    monkeypatch.setattr("recipes_lib.views.strong.rand_augment_transform", note)
    StrongCrop(replace(VIEW, image_size=224), 0)
    how = {"translate_const": 100, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    assert told == [("rand-m9-mstd0.5-inc1", how)]


def test_a_rectangle_of_noise_is_erased_from_about_a_quarter_of_images():
    images, keys = torch.full((4000, 3, 16, 16), 9.0), sample_keys(0, 0, torch.arange(4000))
    erased = erase(images, keys, 0.25)
    changed = (erased != 9).all(dim=1)  # all channels of a pixel
    hit = changed.flatten(1).any(dim=1)
    assert hit.float().mean() == pytest.approx(0.25, abs=0.025)
    assert torch.equal((erased != 9).any(dim=1), changed)
    noise = erased[(erased != 9)]
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    for mask in changed[hit][:50]:
        rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
        area = len(rows) * len(columns)
        assert mask.sum() == area  # a full rectangle
        assert ERASED_AREA[0] * 0.5 <= area / 256 <= ERASED_AREA[1] * 1.15  # sides are whole pixels
    assert torch.equal(images, torch.full_like(images, 9.0))  # the input stays as it was


def test_no_image_is_erased_with_probability_0_and_all_with_1():
    images, keys = torch.full((64, 3, 16, 16), 9.0), sample_keys(0, 0, torch.arange(64))
    assert erase(images, keys, 0.0) is images
    assert (erase(images, keys, 1.0) != 9).flatten(1).any(dim=1).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"erase": 1.5}, "views.erase = 1.5 is not allowed: use a value in [0, 1]"),
        ({"rand_augment": "augmix"}, "views.rand_augment = augmix is no RandAugment of timm."),
        ({"global_views": 1}, "views.global_views = 1"),
    ],
)
def test_faults_are_named(changes, said):
    faults = Faults()
    replace(VIEW, **changes).check(faults)
    with pytest.raises(ConfigError) as caught:
        faults.raise_any()
    assert said in str(caught.value)
