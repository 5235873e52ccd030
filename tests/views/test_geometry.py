# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as peer

from recipes_lib.randomness import sample_keys, uniform
from recipes_lib.views import geometry

KEYS = sample_keys(0, 0, torch.arange(3000))


def draws(keys: torch.Tensor) -> torch.Tensor:
    return uniform(keys, "crop", geometry.BOX_DRAWS)


BOXES = torch.tensor([[0, 0, 40, 56], [3, 4, 5, 6], [20, 30, 20, 26], [39, 55, 1, 1], [0, 0, 1, 56], [10, 0, 30, 40]])
FLIP = torch.tensor([True, False, True, False, False, True])


def images(dtype=torch.float32):
    values = torch.randint(0, 256, (6, 3, 40, 56), generator=torch.Generator().manual_seed(0))
    return values.to(torch.uint8) if dtype == torch.uint8 else values / 255


def torchvision_crops(batch, size, mode="bilinear"):
    crops = [
        peer.resized_crop(image, *box, [size, size], InterpolationMode(mode), antialias=True)
        for image, box in zip(batch, BOXES.tolist(), strict=True)
    ]
    return torch.stack([peer.horizontal_flip(crop) if flip else crop for crop, flip in zip(crops, FLIP, strict=True)])


@given(
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    low=st.floats(0.02, 1.0),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_boxes_lie_inside_the_image_with_an_area_and_ratio_in_range(height, width, low, share, seed):
    scale = (low, low + share * (1 - low))
    keys = sample_keys(seed, 0, torch.arange(64))
    boxes = geometry.boxes_from(draws(keys), height=height, width=width, scale=scale)
    top, left, h, w = boxes.unbind(dim=1)
    assert (boxes >= torch.tensor([0, 0, 1, 1])).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()

    # where no try fits, the largest central box is taken, of whatever area
    central_h, central_w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    central = torch.tensor([(height - central_h) // 2, (width - central_w) // 2, central_h, central_w])
    h, w = boxes[(boxes != central).any(dim=1), 2:].unbind(dim=1)
    # sides are rounded to whole pixels: the box drawn is up to half a pixel larger or smaller
    assert ((h + 0.5) * (w + 0.5) >= scale[0] * height * width).all()
    assert ((h - 0.5) * (w - 0.5) <= scale[1] * height * width).all()
    assert ((w - 0.5) / (h + 0.5) <= 4 / 3).all()
    assert ((w + 0.5) / (h - 0.5) >= 3 / 4).all()


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(32, 32, (0.3, 1.0)), (60, 200, (0.2, 1.0)), (96, 80, (0.05, 0.3))]
)
def test_boxes_are_distributed_as_torchvision_draws_them(height, width, scale):
    ours = geometry.boxes_from(draws(KEYS), height=height, width=width, scale=scale).double()
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [v1.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in KEYS]
    theirs = torch.tensor(drawn).double()
    error = (ours.var(dim=0) / len(KEYS) + theirs.var(dim=0) / len(KEYS)).sqrt()
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 5 * error).all()
    torch.testing.assert_close(ours.std(dim=0), theirs.std(dim=0), rtol=0.08, atol=0.1)


@pytest.mark.parametrize("size", [17, 32, 64])
def test_resized_crop_is_torchvisions_with_antialiasing(size):
    batch = images()
    torch.testing.assert_close(
        geometry.resized_crop(batch, BOXES, size, FLIP), torchvision_crops(batch, size), atol=5e-6, rtol=0
    )


@pytest.mark.parametrize("size", [17, 64])
def test_bicubic_crops_are_torchvisions_within_0_and_1(size):
    expected = torchvision_crops(images(), size, "bicubic")
    assert expected.max() > 1  # a cubic goes beyond the values it starts from
    found = geometry.resized_crop(images(), BOXES, size, FLIP, "bicubic")
    torch.testing.assert_close(found, expected.clamp(0, 1), atol=5e-6, rtol=0)
    crops = geometry.resized_crop(images(torch.uint8), BOXES, size, FLIP, "bicubic")
    assert torch.equal((crops * 255).round().to(torch.uint8), torchvision_crops(images(torch.uint8), size, "bicubic"))


def test_small_uint8_crops_are_those_of_the_float_image():
    expected = torchvision_crops(images(), 24)
    torch.testing.assert_close(geometry.resized_crop(images(torch.uint8), BOXES, 24, FLIP), expected, atol=5e-6, rtol=0)


def test_large_uint8_crops_are_torchvisions_bit_for_bit():
    batch = images(torch.uint8)
    crops = geometry.resized_crop(batch, BOXES, 64, FLIP)
    assert torch.equal((crops * 255).round().to(torch.uint8), torchvision_crops(batch, 64))


def test_channels_last_images_give_the_same_crops():
    batch = images(torch.uint8)
    last = batch.contiguous(memory_format=torch.channels_last)
    for size in (24, 64):
        expected = geometry.resized_crop(batch, BOXES, size, FLIP)
        torch.testing.assert_close(
            geometry.resized_crop(last, BOXES, size, FLIP), expected, atol=1 / 255 + 1e-6, rtol=0
        )


def test_the_whole_image_at_its_own_size_comes_back_unchanged():
    batch = images()[:, :, :40, :40]
    whole = torch.tensor([0, 0, 40, 40]).expand(6, 4)
    torch.testing.assert_close(geometry.resized_crop(batch, whole, 40), batch, atol=1e-6, rtol=0)


def test_boxes_of_another_batch_are_refused():
    with pytest.raises(ValueError, match=r"boxes of shape \(5, 4\) do not fit 6 images"):
        geometry.resized_crop(images(), BOXES[:5], 8)


def test_rotation_is_torchvisions_where_the_image_reaches():
    degrees = torch.tensor([0.0, 10.0, -20.0, 45.0, 90.0, 180.0])
    batch = images()
    bilinear = peer.InterpolationMode.BILINEAR
    expected = torch.stack(
        [peer.rotate(image, float(turn), interpolation=bilinear) for image, turn in zip(batch, degrees, strict=True)]
    )
    centre = (slice(None), slice(None), slice(14, 26), slice(22, 34))  # 12 x 12 pixels: in view at any angle
    torch.testing.assert_close(geometry.rotate(batch, degrees)[centre], expected[centre], atol=2e-5, rtol=0)


def test_rotation_leaves_no_black_corners():
    assert geometry.rotate(torch.ones(1, 3, 20, 30), torch.tensor([30.0])).min() > 0.999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_crops_on_the_gpu_are_those_of_the_cpu():
    crops = geometry.resized_crop(images().cuda(), BOXES.cuda(), 64, FLIP.cuda())
    torch.testing.assert_close(crops.cpu(), torchvision_crops(images(), 64), atol=1e-5, rtol=0)
    boxes = geometry.boxes_from(draws(KEYS.cuda()), height=97, width=64, scale=(0.05, 1.0))
    assert torch.equal(boxes.cpu(), geometry.boxes_from(draws(KEYS), height=97, width=64, scale=(0.05, 1.0)))
