# SPDX-License-Identifier: Apache-2.0
"""Batched views against torchvision's pipeline image by image and kornia's on the batch: ``python benchmarks/views.py``.

One core, the same operations and probabilities: resized crop of area 0.3 to 1, mirror, jitter (p = 0.8), greyscale
(0.2), blur of sigma 0.1 to 2 (0.5), solarisation (0.2), normalisation; from uint8 images to normalised floats. Torchvision
is measured both ways that its documentation knows, in uint8 and in floats; the goals are for the faster of the two.
"""

import argparse
import time
from types import SimpleNamespace

import torch
from side_by_side import Timing, show, side_by_side
from torch import Tensor, nn
from torchvision.transforms import v2

from recipes_lib.views import colour
from recipes_lib.views.multicrop import MultiCrop, ViewsConfig

BATCHES = {32: 256, 96: 64, 224: 32}  # side in pixels: images a call
GOALS = {32: 15.0, 96: 4.0, 224: 3.0}  # times torchvision, image by image
KERNEL = 13  # reaches 3 sigma of the widest blur to each side, as ours does


def torchvision_pipeline(side: int, floats_first: bool) -> v2.Transform:
    """The same views by torchvision, for one uint8 image at a time."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    views = [
        v2.RandomResizedCrop(side, scale=(0.3, 1.0), antialias=True),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(KERNEL, (0.1, 2.0))], 0.5),
        v2.RandomSolarize(0.5 if floats_first else 128, 0.2),
    ]
    ends = v2.Normalize(colour.IMAGENET_MEAN, colour.IMAGENET_STD)
    return v2.Compose([to_float, *views, ends] if floats_first else [*views, to_float, ends])


def kornia_pipeline(side: int) -> nn.Module:
    """The same views by kornia, for a float batch."""
    import kornia.augmentation as augmentation

    return augmentation.AugmentationSequential(
        augmentation.RandomResizedCrop((side, side), scale=(0.3, 1.0), p=1.0),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
        augmentation.RandomGaussianBlur((KERNEL, KERNEL), (0.1, 2.0), p=0.5),
        augmentation.RandomSolarize(0.0, 0.0, p=0.2),
        augmentation.Normalize(torch.tensor(colour.IMAGENET_MEAN), torch.tensor(colour.IMAGENET_STD)),
        same_on_batch=False,
    )


def measure(side: int, count: int, rounds: int) -> dict[str, Timing]:
    """One view of ``count`` images of ``side`` x ``side`` pixels by each rival."""
    images = torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    ours = MultiCrop(ViewsConfig(image_size=side, global_views=0, local_views=0, solarize=0.2), seed=0)
    batch = SimpleNamespace(indices=torch.arange(count), epoch=0, images=images, crops=None)
    in_uint8, in_floats, kornia = (
        torchvision_pipeline(side, False),
        torchvision_pipeline(side, True),
        kornia_pipeline(side),
    )

    def per_image(pipeline: v2.Transform) -> Tensor:
        return torch.stack([pipeline(image) for image in images])

    def next_batch() -> list[Tensor]:
        batch.epoch += 1  # other draws in each round, as the rivals have
        return ours(batch)

    return side_by_side(
        {
            "ours": next_batch,
            "torchvision, uint8": lambda: per_image(in_uint8),
            "torchvision, floats": lambda: per_image(in_floats),
            "kornia": lambda: kornia(images.to(torch.float32) / 255),
        },
        rounds=rounds,
        reference="ours",
        clock=time.process_time,  # one thread: the processor's time is the wall's on a quiet machine
    )


def main() -> None:
    """Prints the table, and whether each goal is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sides", type=int, nargs="+", default=list(BATCHES), choices=list(BATCHES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = {f"{side} px": measure(side, BATCHES[side], arguments.rounds) for side in arguments.sides}
    show("One view of a batch, one core", cases, per_call={f"{side} px": BATCHES[side] for side in arguments.sides})
    for side in arguments.sides:
        ratio = min(timing.ratio for name, timing in cases[f"{side} px"].items() if "torchvision" in name)
        verdict = "reached" if ratio >= GOALS[side] else "missed"
        print(f"{side} px: {ratio:.1f} times torchvision; the goal of {GOALS[side]:g} is {verdict}.")


if __name__ == "__main__":
    main()
