# SPDX-License-Identifier: Apache-2.0
"""Training MSN, views included, against the same training assembled from lightly's parts around the same timm ViT.

``python benchmarks/msn_training.py --rounds 5``; one thread, float32. Ratios of images/s: end to end (from images to
updated weights), the views alone, the step alone (forward, backward, clipping, AdamW, moving average; views ready).

Lightly's parts: ``MSNTransform`` on PIL images already in memory, behind torch's ``DataLoader`` in this process;
``MaskedVisionTransformerTIMM``, ``MSNProjectionHead``, ``random_token_mask``, ``update_momentum``, ``MSNLoss``. Both
sides have the same weights, batch, crops, probabilities, strengths, fused AdamW and parameter groups, masks drawn for
each image, and must agree in loss and gradients before the clock starts. What still differs: PIL resizes bytes and
blurs by three boxes; lightly's head has no biases ahead of a batch norm, where they cancel. Where lightly's own example
departs from the paper (``EXAMPLE``, printed too), both sides follow the paper. Pixels are noise: no time depends on them.
"""

import argparse
import copy
import itertools
import time
from collections.abc import Iterator
from functools import partial

import torch
from lightly.loss import MSNLoss
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.models.modules.heads import MSNProjectionHead
from lightly.models.utils import random_token_mask, update_momentum
from lightly.transforms import MSNTransform
from PIL import Image
from rich.console import Console
from rich.table import Table
from side_by_side import Timing, side_by_side
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from recipes_lib.config import DataConfig, TrainConfig
from recipes_lib.data.images import ImageSet
from recipes_lib.data.loader import StepBatches
from recipes_lib.models.vit import ARCHS
from recipes_lib.optim import build as optim
from recipes_lib.optim import groups
from recipes_lib.recipes.msn.recipe import MSN, Config, ModelConfig, MSNViews

GOALS = {"end to end": 2.0, "views alone": None, "step alone": 1.1}
EXAMPLE = {
    "prototypes": ("passed as .data: no gradient, they never train", "trained"),
    "random mask": ("class token not counted: the last patch is never kept", "any patch may be kept"),
    "focal views": ("masked as well", "whole"),
    "colour jitter": ("strength 1: 0.8, 0.8, 0.8, 0.2", "strength 0.5: 0.4, 0.4, 0.4, 0.1"),
    "moving average": ("before the step", "after it"),
    "optimiser": ("AdamW not fused, all parameters decay, no clipping", "fused, no decay of biases and norms, clip 3"),
    "positions": ("fixed sines and cosines, resized with antialiasing", "learnt, without"),
}
_MODEL = {"arch": "vit_nano", "stem": "patch", "hidden": 256, "dim": 64, "prototypes": 128}  # the head of preset laptop
SETTINGS = {  # data.image_size: side of the images that views are cut from
    "32 px, no focal views": Config(
        data=DataConfig(image_size=32),
        views=MSNViews(image_size=32, local_views=0),
        model=ModelConfig(patch_size=4, **_MODEL),
        train=TrainConfig(batch_size=128),
    ),
    "64 px, 2 focal views of 32": Config(
        data=DataConfig(image_size=96),
        views=MSNViews(image_size=64, local_size=32, local_views=2),
        model=ModelConfig(patch_size=8, **_MODEL),
        train=TrainConfig(batch_size=64),
    ),
}
Views = dict[str, Tensor | None]


class LightlyMSN(nn.Module):
    """MSN of lightly's parts with the weights of ``twin``; takes the views, and has the methods, of ``MSN``."""

    def __init__(self, config: Config, twin: MSN) -> None:
        super().__init__()
        width, depth, heads = ARCHS[config.model.arch]
        shape = {"num_classes": 0, "embed_dim": width, "depth": depth, "num_heads": heads}
        rest = {"norm_layer": partial(nn.LayerNorm, eps=1e-6), "dynamic_img_size": config.views.local_views > 0}
        vit = VisionTransformer(config.views.image_size, config.model.patch_size, **shape, **rest)
        vit.load_state_dict(twin.anchor.backbone.state_dict())
        backbone = MaskedVisionTransformerTIMM(vit, None, "skip", antialias=False, pos_embed_initialization="skip")
        head = MSNProjectionHead(width, config.model.hidden, config.model.dim)
        for mine, number in zip(twin.anchor.head.children(), (0, 1, 3, 4, 6), strict=True):
            head.layers[number].load_state_dict(mine.state_dict(), strict=False)  # no bias ahead of a batch norm
        self.anchor = nn.ModuleDict({"backbone": backbone, "head": head})
        self.target = copy.deepcopy(self.anchor).requires_grad_(False)
        self.prototypes = nn.Parameter(twin.prototypes.weight.detach().clone())
        self.loss = MSNLoss()

    def forward(self, views: Views) -> dict[str, Tensor]:
        """The loss."""
        backbone, head = self.anchor["backbone"], self.anchor["head"]
        anchors = [head(backbone(views["global"], idx_keep=views["keep"]))]
        if views["local"] is not None:
            anchors.append(head(backbone(views["local"])))
        with torch.no_grad():
            targets = self.target["head"](self.target["backbone"](views["target"]))
        return {"loss": self.loss(torch.cat(anchors), targets, self.prototypes)}

    def param_groups(self) -> list[dict]:
        return [*groups.decay_groups(self.anchor), {"params": [self.prototypes], "decays": False}]

    def clipped_parameters(self) -> list[nn.Parameter]:
        return list(self.anchor.parameters())

    def after_step(self, _: int) -> None:
        update_momentum(self.anchor, self.target, 0.996)


def lightly_views(config: Config, images: Tensor) -> Iterator[Views]:
    """Views and masks without end, the images in another order each epoch."""
    ways, batch = config.views, config.train.batch_size
    # half of 0.8, 0.8, 0.8, 0.2, the only ratios that focal views can have
    transform = MSNTransform(ways.image_size, ways.local_size, 2, ways.local_views, cj_strength=0.5)
    pictures = [Image.fromarray(image.numpy()) for image in images.permute(0, 2, 3, 1)]

    def collate(some: list[Image.Image]) -> list[Tensor]:
        return [torch.stack(view) for view in zip(*map(transform, some), strict=True)]

    loader = DataLoader(pictures, batch, shuffle=True, drop_last=True, collate_fn=collate)
    tokens = 1 + (ways.image_size // config.model.patch_size) ** 2
    for target, whole, *crops in itertools.chain.from_iterable(itertools.repeat(loader)):
        keep, _ = random_token_mask((batch, tokens), ways.mask_ratio)
        yield {"target": target, "global": whole, "local": torch.cat(crops) if crops else None, "keep": keep}


def our_views(config: Config, images: Tensor, method: MSN) -> Iterator[Views]:
    """The same by the recipe's own loader and views."""
    batches = StepBatches(ImageSet(images, None, ()), seed=0, batch_size=config.train.batch_size)
    for step, batch in enumerate(batches.stream(0, 1_000_000, workers=0, device=torch.device("cpu"))):
        yield method.views(batch, step)


def train_step(method: nn.Module, optimizer: torch.optim.Optimizer, views: Views) -> None:
    """One update, the same lines for both sides."""
    method(views)["loss"].backward()
    nn.utils.clip_grad_norm_(method.clipped_parameters(), 3.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.after_step(0)


def hold_equal(ours: MSN, theirs: LightlyMSN, views: Views) -> None:
    """Raises ``AssertionError`` unless both give the same loss and gradients for ``views``, made by lightly."""
    mine = ours({**views, "keep": views["keep"][:, 1:] - 1})[
        "loss"
    ]  # lightly counts the class token and keeps it first
    other = theirs(views)["loss"]
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=0)
    mine_of = ours.anchor.backbone.patch_embed.proj.weight, ours.prototypes.weight
    other_of = theirs.anchor["backbone"].vit.patch_embed.proj.weight, theirs.prototypes
    for one, two in zip(torch.autograd.grad(mine, mine_of), torch.autograd.grad(other, other_of), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-3 * two.abs().max().item())


def measure(config: Config, rounds: int) -> dict[str, Timing]:
    """Times six rivals alternately: each part of ``GOALS`` by both sides."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (512, 3, config.data.image_size, config.data.image_size), dtype=torch.uint8)
    ours = MSN(config, steps=1000)
    theirs = LightlyMSN(config, ours)
    sides = {"lightly": (theirs, lightly_views(config, images)), "ours": (ours, our_views(config, images, ours))}
    hold_equal(ours, theirs, next(sides["lightly"][1]))
    rivals = {}
    for name, (method, stream) in sides.items():
        optimizer = optim.build(config.optim, method.param_groups())
        optim.Schedule(config=config.optim, steps=1000, steps_per_epoch=10).apply(optimizer, 0)
        update = partial(train_step, method, optimizer)
        rivals[f"end to end, {name}"] = lambda stream=stream, update=update: update(next(stream))
        rivals[f"views alone, {name}"] = partial(next, stream)
        rivals[f"step alone, {name}"] = partial(update, next(stream))
    # one thread: the process's own seconds are those of a quiet machine
    return side_by_side(rivals, rounds=rounds, reference="end to end, lightly", clock=time.process_time)


def main() -> None:
    """Prints the ratios, whether each goal is reached, and where lightly's example departs from the paper."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    table = Table("setting", "part", "images/s, times lightly's", "goal", "slowest/fastest: lightly, ours")
    for name, config in SETTINGS.items():
        timings = measure(config, rounds)
        for part, goal in GOALS.items():
            theirs, ours = timings[f"{part}, lightly"], timings[f"{part}, ours"]
            ratio = theirs.seconds / ours.seconds  # of images/s: both have the same images
            verdict = "-" if goal is None else f"{goal:g}: {'reached' if ratio >= goal else 'missed'}"
            table.add_row(name, part, f"{ratio:.2f}", verdict, f"{theirs.spread:.2f}, {ours.spread:.2f}")
        table.add_section()
    departs = Table("part", "lightly's example", "the paper, and both sides here")
    for what, words in EXAMPLE.items():
        departs.add_row(what, *words)
    Console(width=120).print(table, departs)


if __name__ == "__main__":
    main()
