# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from types import SimpleNamespace

import PIL.Image
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as peer

from recipes_lib.views import colour
from recipes_lib.views.multicrop import MultiCrop, ViewsConfig, eval_box, eval_view

# every operation takes part, each for some of the samples
EVERYTHING = ViewsConfig(
    image_size=24,
    global_views=1,
    local_size=16,
    local_views=2,
    solarize=0.3,
    rotate=20.0,
    invert=0.3,
    shuffle_channels=0.5,
    noise=0.02,
)
GEOMETRY = replace(
    EVERYTHING, jitter=0, grayscale=0, blur=0, solarize=0, rotate=0, invert=0, shuffle_channels=0, noise=0
)


def images(count=12, side=32):
    """Smooth images, as photographs are: neighbouring pixels are alike."""
    noise = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, (side, side), mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8)


def batch(indices, epoch=0, **fields):
    values = {"images": images()[indices], "crops": None, **fields}
    return SimpleNamespace(indices=torch.tensor(indices), epoch=epoch, **values)


def test_views_come_as_target_globals_locals():
    views = MultiCrop(EVERYTHING, seed=0)(batch(range(12)))
    assert [tuple(view.shape) for view in views] == [(12, 3, 24, 24)] * 2 + [(12, 3, 16, 16)] * 2
    assert all(view.dtype == torch.float32 and view.isfinite().all() for view in views)
    assert not torch.equal(views[0], views[1])


# 64 is cut image by image, 24 by matrix products
@pytest.mark.parametrize("size", [24, 64])
def test_a_samples_views_do_not_depend_on_its_batch(size):
    crop = MultiCrop(replace(EVERYTHING, image_size=size), seed=0)
    together, some = crop(batch(list(range(12)))), crop(batch([7, 2, 11]))
    for a, b in zip(together, some, strict=True):
        torch.testing.assert_close(a[[7, 2, 11]], b, atol=2e-5, rtol=0)


def test_the_same_batch_has_the_same_views_bit_for_bit():
    for a, b in zip(MultiCrop(EVERYTHING, 0)(batch([1, 2])), MultiCrop(EVERYTHING, 0)(batch([1, 2])), strict=True):
        assert torch.equal(a, b)


def test_more_views_leave_the_first_ones_as_they_were():
    few = MultiCrop(EVERYTHING, seed=0)(batch([3, 4]))
    many = MultiCrop(replace(EVERYTHING, global_views=3, local_views=5), seed=0)(batch([3, 4]))
    for a, b in zip(few, [*many[:2], *many[4:6]], strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_some_views_are_equalised_and_the_others_left_as_they_were():
    plain = replace(GEOMETRY, normalize="image", flip=0.0, global_scale=(1.0, 1.0))
    before = MultiCrop(plain, seed=0)(batch(range(12)))[0]
    after = MultiCrop(replace(plain, equalize=0.5), seed=0)(batch(range(12)))[0]
    same = (before == after).flatten(1).all(dim=1)
    assert 2 <= same.sum() <= 10


def test_the_second_view_and_the_small_ones_may_have_their_own_colours_and_keep_their_places():
    plain = MultiCrop(replace(GEOMETRY, global_views=2), seed=0)(batch(range(12)))
    looks = {"second": replace(GEOMETRY, solarize=1.0), "local": replace(GEOMETRY, grayscale=1.0)}
    views = MultiCrop(replace(GEOMETRY, global_views=2), seed=0, **looks)(batch(range(12)))
    for number in (0, 2):  # the other large views are as they were
        torch.testing.assert_close(views[number], plain[number], atol=2e-5, rtol=0)
    values = plain[1] * std() + mean()
    want = torch.where(values < 0.5, values, 1 - values)
    torch.testing.assert_close(views[1] * std() + mean(), want, atol=1e-4, rtol=0)
    for number in (3, 4):
        values = views[number] * std() + mean()
        torch.testing.assert_close(values[:, 0], values[:, 2], atol=1e-4, rtol=0)
        torch.testing.assert_close(values[:, 0], grey(plain[number] * std() + mean()), atol=3e-4, rtol=0)


def test_geometry_noise_and_normalisation_are_those_of_the_main_config_alone():
    other = replace(GEOMETRY, global_scale=(0.1, 0.2), flip=1.0, noise=0.5, normalize="image", image_size=64)
    changed = MultiCrop(GEOMETRY, seed=0, second=other, local=other)(batch(range(12)))
    for a, b in zip(changed, MultiCrop(GEOMETRY, seed=0)(batch(range(12))), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def mean() -> torch.Tensor:
    return torch.tensor(colour.CHANNELS["imagenet"][0]).view(3, 1, 1)


def std() -> torch.Tensor:
    return torch.tensor(colour.CHANNELS["imagenet"][1]).view(3, 1, 1)


def grey(values: torch.Tensor) -> torch.Tensor:
    return (values * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1)


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
def test_another_epoch_or_seed_has_other_views(change):
    first = MultiCrop(EVERYTHING, seed=0)(batch([3, 4]))
    other = MultiCrop(EVERYTHING, seed=change.get("seed", 0))(batch([3, 4], epoch=change.get("epoch", 0)))
    assert all((a - b).abs().mean() > 0.05 for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("size", "tolerance"), [(24, 1.01), (64, 0.01)])
def test_a_worker_cuts_the_same_crops_as_the_batch(size, tolerance):
    """In levels of 255: the worker rounds rows and columns to levels, the batch at small sizes does neither."""
    crop = MultiCrop(replace(GEOMETRY, image_size=size), seed=0)
    whole = crop(batch(list(range(12))))
    stacked = [torch.stack(view) for view in zip(*[crop.crop_one(images()[i], i, 0) for i in range(12)], strict=True)]
    assert all(view.dtype == torch.uint8 for view in stacked)
    cut = crop(batch(list(range(12)), images=None, crops=stacked))
    std = torch.tensor(colour.IMAGENET_STD).view(3, 1, 1)
    for a, b in zip(whole[:2], cut[:2], strict=True):
        assert ((a - b) * std * 255).abs().max() < tolerance


def test_a_workers_crops_get_the_batchs_colours():
    crop = MultiCrop(EVERYTHING, seed=0)
    stacked = [torch.stack(view) for view in zip(*[crop.crop_one(images()[i], i, 0) for i in range(12)], strict=True)]
    whole, cut = crop(batch(list(range(12)))), crop(batch(list(range(12)), images=None, crops=stacked))
    for a, b in zip(whole, cut, strict=True):
        assert (a - b).abs().mean() < 0.01


def test_a_pil_image_is_cut_as_its_tensor_is():
    image = images()[0][:, :, :20]
    crop = MultiCrop(EVERYTHING, seed=0)
    for a, b in zip(crop.crop_one(image, 3, 1), crop.crop_one(peer.to_pil_image(image), 3, 1), strict=True):
        assert (a.int() - b.int()).abs().max() <= 1  # the two storage orders round differently


def test_a_grey_pil_image_is_cut_as_colours():
    crops = MultiCrop(EVERYTHING, seed=0).crop_one(PIL.Image.new("L", (50, 40), 99), 0, 0)
    assert [tuple(crop.shape) for crop in crops] == [(3, 24, 24)] * 2 + [(3, 16, 16)] * 2
    assert all((crop == 99).all() for crop in crops)


@pytest.mark.parametrize(
    ("operation", "probability", "expected"),
    [("invert", 1.0, peer.invert), ("grayscale", 1.0, lambda image: peer.rgb_to_grayscale(image, 3))],
)
def test_a_certain_operation_meets_every_sample(operation, probability, expected):
    plain = MultiCrop(GEOMETRY, seed=0)(batch(list(range(12))))[0]
    changed = MultiCrop(replace(GEOMETRY, **{operation: probability}), seed=0)(batch(list(range(12))))[0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (colour.IMAGENET_MEAN, colour.IMAGENET_STD))
    torch.testing.assert_close(changed * std + mean, expected(plain * std + mean), atol=1e-5, rtol=0)


def test_views_are_solarised_from_thresholds_of_their_own_within_the_range():
    count = 400
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(count, 3, -1, -1)  # every level once
    config = replace(GEOMETRY, image_size=16, global_views=0, local_views=0, solarize=1.0)
    config = replace(config, solarize_threshold=(0.25, 1.0), normalize="cifar10")
    source = SimpleNamespace(indices=torch.arange(count), epoch=0, images=None, crops=[grey])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in colour.CHANNELS["cifar10"])
    view = MultiCrop(config, seed=0)(source)[0] * std + mean
    kept = (view - grey / 255).abs().amax(dim=1).flatten(1) < 1e-5  # [count, 256], by level
    thresholds = kept.float().cumprod(dim=1).sum(dim=1) / 256  # the lowest level that changed
    assert thresholds.min() >= 0.24
    assert thresholds.std() == pytest.approx(0.75 / 12**0.5, abs=0.04)
    assert thresholds.mean() == pytest.approx(0.625, abs=0.05)


@pytest.mark.parametrize("operation", ["jitter", "grayscale", "blur", "solarize", "invert", "shuffle_channels"])
def test_an_operation_meets_its_share_of_the_samples(operation):
    count = 1000
    config = replace(GEOMETRY, image_size=8, global_views=0, local_views=0, **{operation: 0.3})
    plain = MultiCrop(replace(config, **{operation: 0}), seed=0)
    changed = MultiCrop(config, seed=0)
    source = SimpleNamespace(indices=torch.arange(count), epoch=0, images=None, crops=[images(count, side=8)])
    share = ((plain(source)[0] - changed(source)[0]).abs().amax(dim=(1, 2, 3)) > 1e-4).float().mean()
    expected = 0.3 * (5 / 6 if operation == "shuffle_channels" else 1)  # one order in six is the old one
    assert abs(float(share) - expected) < 5 * (0.3 * 0.7 / count) ** 0.5


def test_jitter_without_strength_changes_nothing():
    still = replace(GEOMETRY, jitter=1.0, brightness=0, contrast=0, saturation=0, hue=0)
    for a, b in zip(MultiCrop(still, 0)(batch([1, 2])), MultiCrop(GEOMETRY, 0)(batch([1, 2])), strict=True):
        assert torch.equal(a, b)


def test_image_normalisation_gives_each_view_mean_0_and_deviation_1():
    for view in MultiCrop(replace(EVERYTHING, normalize="image"), seed=0)(batch([0, 1, 2])):
        torch.testing.assert_close(view.mean(dim=(1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(view.std(dim=(1, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_grey_normalisation_drops_the_colours_of_each_view_and_at_evaluation():
    for view in [
        *MultiCrop(replace(EVERYTHING, normalize="grey"), seed=0)(batch([0, 1])),
        eval_view(images(), 32, "grey"),
    ]:
        assert torch.equal(view[:, 0], view[:, 2])
        torch.testing.assert_close(view.mean(dim=(1, 2, 3)), torch.zeros(len(view)), atol=1e-5, rtol=0)


def test_eval_view_leaves_its_input_alone():
    picture = images() / 255
    before = picture.clone()
    eval_view(picture, 32)
    assert torch.equal(picture, before)


def test_a_batch_needs_images_or_a_crop_for_each_view():
    crop = MultiCrop(EVERYTHING, seed=0)
    with pytest.raises(ValueError, match="either images or crops"):
        crop(batch([0], images=None))
    with pytest.raises(ValueError, match="1 crops cannot make 4 views"):
        crop(batch([0], images=None, crops=[images()[:1]]))


def test_eval_view_leaves_images_of_that_size_as_they_are():
    expected = colour.normalize_(images() / 255)
    torch.testing.assert_close(eval_view(images(), 32), expected, atol=1e-6, rtol=0)


def test_eval_view_is_torchvisions_resize_and_centre_crop():
    picture = images(2, side=80)[:, :, :64]
    resized = peer.resize(picture / 255, [64], antialias=True)
    expected = colour.normalize_(peer.center_crop(resized, [56, 56]))
    torch.testing.assert_close(eval_view(picture, 56), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(20))
def test_eval_box_is_torchvisions_resize_and_centre_crop_on_odd_sizes_too(seed):
    draw = torch.Generator().manual_seed(seed)
    height, width = (int(side) for side in torch.randint(64, 300, (2,), generator=draw))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    resized = peer.resize(torch.stack([rows, columns]).float(), [64], antialias=True)
    tall, wide, top, left = eval_box(height, width, 56)
    assert (tall, wide) == resized.shape[1:]
    assert torch.equal(peer.center_crop(resized, [56, 56]), resized[:, top : top + 56, left : left + 56])


def test_eval_view_without_a_margin_is_torchvisions_bicubic_resize_and_centre_crop():
    picture = images(2, side=80)[:, :, :64]
    resized = peer.resize(picture / 255, [56], InterpolationMode.BICUBIC, antialias=True)
    expected = colour.normalize_(peer.center_crop(resized, [56, 56]).clamp(0, 1), *colour.CHANNELS["openai"])
    torch.testing.assert_close(eval_view(picture, 56, "openai", "bicubic"), expected, atol=1e-5, rtol=0)


def test_eval_view_of_deit_is_torchvisions_bicubic_resize_with_a_margin():
    picture = images(2, side=80)
    resized = peer.resize(picture / 255, [64], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    expected = colour.normalize_(peer.center_crop(resized, [56, 56]))
    torch.testing.assert_close(eval_view(picture, 56, "imagenet", "bicubic_margin"), expected, atol=1e-5, rtol=0)


def test_eval_view_enlarges_small_images_to_their_shorter_side():
    assert eval_view(images(2, side=20)[:, :, :16], 32).shape == (2, 3, 32, 32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_on_the_gpu_are_those_of_the_cpu():
    crop = MultiCrop(EVERYTHING, seed=0)
    there = crop(batch(list(range(12)), images=images().cuda()))
    for a, b in zip(crop(batch(list(range(12)))), there, strict=True):
        assert b.is_cuda
        torch.testing.assert_close(a, b.cpu(), atol=1e-4, rtol=0)
