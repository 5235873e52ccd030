# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import pytest
import torch
from torch import nn

from recipes_lib.data import digits
from recipes_lib.data.images import ImageSet
from recipes_lib.evaluation import baselines
from recipes_lib.views.multicrop import eval_view


def small_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.ReLU(), nn.Linear(32, 16))


def batches(count: int):
    images = digits.dataset(512, size=8, seed=0, split="train")
    for step in range(count):
        rows = torch.arange(step * 64, step * 64 + 64) % 512
        yield images.images[rows].float() / 255 - 0.5, images.labels[rows]


def train(net: nn.Module, steps: int, **changes) -> nn.Module:
    options = {"width": 16, "classes": 10, "steps": steps, "seed": 0} | changes
    return baselines.supervised(net, batches(steps), **options)


def losses_of(net: nn.Module, data: list, **changes) -> list[float]:
    losses = []
    options = {"width": 16, "classes": 10, "steps": len(data), "seed": 0} | changes
    baselines.supervised(net, data, **options, progress=lambda step, metrics: losses.append(metrics["loss"]))
    return losses


PLAIN = {"image_size": 2, "normalize": "image"}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_pixels_are_those_of_the_view_that_features_are_extracted_from():
    images = ImageSet(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=generator()), None, ())
    for normalize in ("imagenet", "image", "grey"):
        seen = eval_view(images.images, 8, normalize).flatten(1)
        rows = baselines.raw_pixels(images, image_size=8, normalize=normalize).final
        torch.testing.assert_close(rows, seen - seen.mean(dim=1, keepdim=True))


def convnet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))


def test_statistics_are_the_means_over_batches_and_no_weight_changes():
    images = ImageSet(torch.randint(0, 256, (512, 3, 8, 8), dtype=torch.uint8, generator=generator()), None, ())
    net, new = convnet(), convnet()
    baselines.estimate_statistics(net, images, image_size=8, normalize="image")
    assert all(torch.equal(*pair) for pair in zip(net.parameters(), new.parameters(), strict=True))
    assert not net.training
    assert net[1].momentum == new[1].momentum
    views = eval_view(images.images, 8, "image")
    with torch.no_grad():
        maps = [net[0](part).transpose(0, 1).flatten(1) for part in views.split(256)]
    mean = torch.stack([part.mean(dim=1) for part in maps]).mean(dim=0)
    torch.testing.assert_close(net[1].running_mean, mean, atol=1e-6, rtol=1e-5)
    variance = torch.stack([part.var(dim=1) for part in maps]).mean(dim=0)
    torch.testing.assert_close(net[1].running_var, variance, atol=1e-6, rtol=1e-5)


def test_statistics_come_from_images_drawn_from_all_classes_and_cost_nothing_without_batch_norm(monkeypatch):
    monkeypatch.setattr(baselines, "STATISTICS_IMAGES", 64)
    dark, bright = torch.zeros(500, 3, 8, 8, dtype=torch.uint8), torch.full((500, 3, 8, 8), 255, dtype=torch.uint8)
    images = ImageSet(torch.cat([dark, bright]), None, ())  # in order of their classes, as in folders
    net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))
    nn.init.dirac_(net[0].weight)
    baselines.estimate_statistics(net, images, image_size=8, normalize="imagenet")
    black, white = eval_view(images.images[[0, -1]], 8, "imagenet")[:, :, 0, 0]
    assert ((net[1].running_mean - black) / (white - black)).sub(0.5).abs().max() < 0.25
    monkeypatch.setattr(baselines, "read_chunks", lambda *_: (pytest.fail("an image was read") for _ in "1"))
    baselines.estimate_statistics(small_net(), images, image_size=8, normalize="imagenet")


def test_pixels_of_a_network_that_sees_grey_have_no_colour():
    shape = torch.randint(0, 256, (1, 1, 8, 8), generator=generator())
    tinted = torch.cat([shape.expand(1, 3, 8, 8), shape * torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)])
    images = ImageSet(tinted.to(torch.uint8), None, ())
    first, second = baselines.raw_pixels(images, image_size=8, normalize="grey").final
    assert torch.cosine_similarity(first, second, dim=0) > 0.999


def test_pixels_are_centred_per_image():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 2, 2).clone()
    pixels[1] = 200
    rows = baselines.raw_pixels(ImageSet(pixels, None, ()), **PLAIN).final
    # by hand: 0, .2 and 1 less their mean .4, in standard deviations; an even image has nothing left
    expected = torch.tensor([-0.4, -0.2, 0.6]).repeat_interleave(4)
    torch.testing.assert_close(rows[0], expected / expected.square().mean().sqrt(), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(rows[1], torch.zeros(12), atol=1e-4, rtol=0)


def test_an_image_and_its_negative_are_one_row_where_the_sign_is_ignored_and_opposites_where_it_is_not():
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=generator())
    how = {"image_size": 8, "normalize": "grey"}
    positive, negative = (ImageSet(images, None, ()) for images in (pixels, 255 - pixels))
    rows = [baselines.raw_pixels(images, **how).final for images in (positive, negative)]
    torch.testing.assert_close(rows[0], -rows[1])
    unsigned = [baselines.raw_pixels(images, ignore_sign=True, **how).final for images in (positive, negative)]
    torch.testing.assert_close(*unsigned)
    torch.testing.assert_close(unsigned[0].abs(), rows[0].abs())


def test_large_images_are_averaged_down_to_32_pixels():
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    pixels[:, :, ::2] = 255
    rows = baselines.raw_pixels(ImageSet(pixels, None, ()), image_size=64, normalize="image").final
    assert rows.shape == (1, 3 * 32 * 32)
    assert rows.abs().max() < 1e-6  # every 2x2 block averages to the same grey


def test_the_supervised_net_learns_a_batch_by_heart():
    net, batch = small_net(), next(batches(1))
    losses = losses_of(net, [batch] * 150, lr=1e-2)
    assert losses[0] == pytest.approx(2.30, abs=0.15)  # log 10: the head starts near even
    assert losses[-1] < 0.1
    assert net.training


def test_the_supervised_net_is_the_same_every_time_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    first, second = train(small_net(), 5), train(small_net(), 5)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_learning_rate_ends_near_zero():
    net, weights = small_net(), []
    train(net, 40, progress=lambda step, metrics: weights.append(net[1].weight.detach().clone()))
    moves = [(after - before).abs().max() for before, after in pairwise(weights)]
    assert moves[-1] < 0.02 * max(moves)


def test_progress_counts_the_steps():
    steps = []
    train(small_net(), 4, progress=lambda step, metrics: steps.append(step))
    assert steps == [1, 2, 3, 4]


def test_unlabelled_images_do_not_count():
    mixed = torch.cat([torch.arange(4), torch.tensor([-1, -1])])
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    (with_them,) = losses_of(small_net(), [(x, mixed)])
    (without,) = losses_of(small_net(), [(x[:4], mixed[:4])])
    assert with_them == pytest.approx(without, rel=1e-6)


def test_a_batch_without_any_label_teaches_nothing_and_breaks_nothing():
    net = small_net()
    before = [p.clone() for p in net.parameters()]
    batch = (torch.ones(2, 3, 8, 8), torch.full((2,), -1))
    assert losses_of(net, [batch], weight_decay=0.0) == [0.0]
    for parameter, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_batches_that_end_early_are_refused():
    with pytest.raises(ValueError, match="ended after 3 of 5 steps"):
        baselines.supervised(small_net(), batches(3), width=16, classes=10, steps=5, seed=0)
