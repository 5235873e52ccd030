# SPDX-License-Identifier: Apache-2.0
"""A training step of each method of the families, against the same step assembled from lightly's parts.

``python benchmarks/families.py --rounds 9``; one thread, float32, settings of the toys (32 pixels, 128 images). Ratios:
how many times as long lightly's step takes. "Step": forward, backward, AdamW and the moving average, views ready. "End to
end": from images to updated weights, with ours cut by the recipe and lightly's by its transform, of the same strengths,
on PIL images in memory behind torch's ``DataLoader`` in this process.

Lightly's side follows its published examples: its heads with our widths, its losses, ``update_momentum``, one call of the
network per view. Both sides have a copy of the same backbone, the same optimiser and the same number of views. The
operations of both are counted, and a method whose sides differ by more than 5 % is refused. Pixels are noise: no time
depends on them. MoCo v3, rotation, BEiT, I-JEPA and iBOT are not here: lightly has no loss for the first three, and the
other two are built differently in its examples.
"""

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from lightly import loss as losses
from lightly.models import utils
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM, NNMemoryBankModule
from lightly.models.modules.heads import DINOProjectionHead, ProjectionHead, SwaVPrototypes
from lightly.transforms import MAETransform, SimCLRTransform
from PIL import Image
from rich.console import Console
from rich.table import Table
from side_by_side import Timing, side_by_side
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from recipes_lib.config import override
from recipes_lib.data.images import ImageSet
from recipes_lib.data.loader import StepBatches
from recipes_lib.models.vit import ARCHS
from recipes_lib.optim import build as optim
from recipes_lib.optim import groups
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.recipe import Method
from recipes_lib.recipes.families import recipe
from recipes_lib.recipes.families.settings import Config

IMAGES = 1024
SAME_WORK = 0.05
"""Largest relative difference of the two sides' operations."""
GOAL = 1.2
"""Of the median over methods; no method may be below 1."""


def head(*widths: int, last_norm: bool = False) -> ProjectionHead:
    """lightly's head with ours widths: batch norm and ReLU behind each hidden layer."""
    blocks = [(a, b, nn.BatchNorm1d(b), nn.ReLU(), False) for a, b in itertools.pairwise(widths[:-1])]
    norm = nn.BatchNorm1d(widths[-1], affine=False) if last_norm else None
    return ProjectionHead([*blocks, (*widths[-2:], norm, None, not last_norm)])


class Peer(nn.Module):
    """A method of lightly's parts. ``forward`` takes the views, a list of [batch, 3, side, side]."""

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        self.config, self.backbone = config, copy.deepcopy(backbone).requires_grad_(True)
        model = config.model
        widths = [backbone.num_features, *[model.hidden] * (model.projector_layers - 1), model.dim]
        self.projector = head(*widths, last_norm=model.last_norm)

    def embed(self, views: list[Tensor]) -> list[Tensor]:
        """The embeddings of each view, one call of the network per view."""
        return [self.projector(self.backbone(view)) for view in views]

    def after_step(self, step: int) -> None:
        """Does nothing: there is no teacher."""


class Two(Peer):
    """A loss of the two views' embeddings."""

    def __init__(self, config: Config, backbone: nn.Module, loss: nn.Module) -> None:
        super().__init__(config, backbone)
        self.loss = loss

    def forward(self, views: list[Tensor]) -> Tensor:
        return self.loss(*self.embed(views))


class NNCLR(Peer):
    """lightly's example; its loss has more terms than the paper's."""

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        dim = config.model.dim
        self.predictor = head(dim, config.model.predictor_hidden, dim)
        self.bank = NNMemoryBankModule(size=(config.loss.queue, dim))
        self.loss = losses.NTXentLoss(config.loss.temperature)

    def forward(self, views: list[Tensor]) -> Tensor:
        z = self.embed(views)
        p = [self.predictor(each) for each in z]
        near = [self.bank(z[0].detach(), update=False), self.bank(z[1].detach(), update=True)]
        return 0.5 * (self.loss(near[0], p[1]) + self.loss(near[1], p[0]))


class Taught(Peer):
    """A peer with a teacher, which moves before the step, as in lightly's examples."""

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        self.teacher = nn.ModuleList([copy.deepcopy(self.backbone), copy.deepcopy(self.projector)])
        self.teacher.requires_grad_(False)

    def after_step(self, step: int) -> None:
        for mine, other in zip((self.backbone, self.projector), self.teacher, strict=True):
            utils.update_momentum(mine, other, m=self.config.model.ema)

    @torch.no_grad()
    def taught(self, views: list[Tensor]) -> list[Tensor]:
        """The teacher's embeddings."""
        return [self.teacher[1](self.teacher[0](view)) for view in views]


class MoCoV2(Taught):
    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        bank = (config.loss.queue, config.model.dim)
        self.loss = losses.NTXentLoss(config.loss.temperature, memory_bank_size=bank)

    def forward(self, views: list[Tensor]) -> Tensor:
        return self.loss(self.embed(views[:1])[0], self.taught(views[1:])[0])


class BYOL(Taught):
    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        self.predictor = head(config.model.dim, config.model.predictor_hidden, config.model.dim)
        self.loss = losses.NegativeCosineSimilarity()

    def forward(self, views: list[Tensor]) -> Tensor:
        p, z = [self.predictor(each) for each in self.embed(views)], self.taught(views)
        return 0.5 * (self.loss(p[0], z[1]) + self.loss(p[1], z[0]))


class SimSiam(Peer):
    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        self.predictor = head(config.model.dim, config.model.predictor_hidden, config.model.dim)
        self.loss = losses.NegativeCosineSimilarity()

    def forward(self, views: list[Tensor]) -> Tensor:
        z = self.embed(views)
        p = [self.predictor(each) for each in z]
        return 0.5 * (self.loss(p[0], z[1].detach()) + self.loss(p[1], z[0].detach()))


class DINO(Taught):
    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        model = config.model
        self.projector = DINOProjectionHead(backbone.num_features, model.hidden, model.dim, model.prototypes)
        # not a deep copy, which lightly's weight norm refuses
        self.teacher[1] = DINOProjectionHead(backbone.num_features, model.hidden, model.dim, model.prototypes)
        self.teacher.requires_grad_(False)
        self.loss = losses.DINOLoss(output_dim=model.prototypes)

    def forward(self, views: list[Tensor]) -> Tensor:
        teacher = self.taught(views)
        return self.loss(teacher, self.embed(views), epoch=0)


class SwAV(Peer):
    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        self.prototypes = SwaVPrototypes(config.model.dim, config.model.prototypes)
        self.loss = losses.SwaVLoss(config.loss.temperature, sinkhorn_epsilon=config.loss.epsilon)

    def forward(self, views: list[Tensor]) -> Tensor:
        self.prototypes.normalize()
        logits = [self.prototypes(F.normalize(z, dim=1)) for z in self.embed(views)]
        return self.loss(logits, []).squeeze()


class WMSE(Peer):
    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        size = config.loss.whitening_size
        self.loss = losses.WMSELoss(config.model.dim, w_size=size, track_running_stats=False)

    def forward(self, views: list[Tensor]) -> Tensor:
        return self.loss(torch.cat(self.embed(views)))


class LeJEPA(Peer):
    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        self.loss = losses.LeJEPALoss(
            config.loss.sigreg_weight, sigreg_knots=config.loss.knots, sigreg_num_vectors=config.loss.slices
        )

    def forward(self, views: list[Tensor]) -> Tensor:
        z = torch.stack(self.embed(views))
        return self.loss(global_proj=z[:1], local_proj=z[1:])  # it wants a view of each kind


class Masked(nn.Module):
    """The start of a masked method: lightly's wrapper around timm's transformer, in our size."""

    def __init__(self, config: Config, _: nn.Module) -> None:
        super().__init__()
        self.config, side = config, config.views.image_size
        width, depth, heads = ARCHS[config.model.arch]
        vit = VisionTransformer(
            side, config.model.patch_size, num_classes=0, embed_dim=width, depth=depth, num_heads=heads
        )
        self.backbone = MaskedVisionTransformerTIMM(vit)
        self.tokens = 1 + (side // config.model.patch_size) ** 2

    def drawn(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Kept and hidden tokens."""
        return utils.random_token_mask((len(images), self.tokens), self.config.views.mask_ratio)

    def target(self, images: Tensor, hidden: Tensor) -> Tensor:
        """The pixels of the hidden patches."""
        return utils.get_at_index(utils.patchify(images, self.config.model.patch_size), hidden - 1)

    def after_step(self, step: int) -> None:
        """Does nothing: there is no teacher."""


class MAE(Masked):
    def __init__(self, config: Config, _: nn.Module) -> None:
        super().__init__(config, _)
        model = config.model
        self.decoder = MAEDecoderTIMM(
            num_patches=self.tokens - 1,
            patch_size=model.patch_size,
            embed_dim=self.backbone.vit.embed_dim,
            decoder_embed_dim=model.decoder_width,
            decoder_depth=model.decoder_depth,
            decoder_num_heads=model.decoder_heads,
        )

    def forward(self, views: list[Tensor]) -> Tensor:
        images = views[0]
        keep, hidden = self.drawn(images)
        encoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
        full = utils.repeat_token(self.decoder.mask_token, (len(images), self.tokens))
        decoded = self.decoder.decode(utils.set_at_index(full, keep, encoded.type_as(full)))
        predicted = self.decoder.predict(utils.get_at_index(decoded, hidden))
        return F.mse_loss(predicted, utils.normalize_mean_var(self.target(images, hidden), dim=-1))


class SimMIM(Masked):
    def __init__(self, config: Config, _: nn.Module) -> None:
        super().__init__(config, _)
        self.decoder = nn.Linear(self.backbone.vit.embed_dim, 3 * config.model.patch_size**2)

    def forward(self, views: list[Tensor]) -> Tensor:
        images = views[0]
        hidden = self.drawn(images)[1]
        encoded = self.backbone.encode(images=images, idx_mask=hidden)
        return F.l1_loss(self.decoder(utils.get_at_index(encoded, hidden)), self.target(images, hidden))


def _two(make: Callable[[Config], nn.Module]) -> Callable[[Config, nn.Module], Peer]:
    return lambda config, backbone: Two(config, backbone, make(config))


PEERS: dict[str, Callable[[Config, nn.Module], nn.Module]] = {
    "simclr": _two(lambda config: losses.NTXentLoss(config.loss.temperature)),
    "dcl": _two(lambda config: losses.DCLLoss(config.loss.temperature)),
    "nnclr": NNCLR,
    "moco_v2": MoCoV2,
    "byol": BYOL,
    "simsiam": SimSiam,
    "dino": DINO,
    "barlow_twins": _two(lambda config: losses.BarlowTwinsLoss()),
    "vicreg": _two(lambda config: losses.VICRegLoss()),
    "swav": SwAV,
    "w_mse": WMSE,
    "lejepa": LeJEPA,
    "mae": MAE,
    "simmim": SimMIM,
}


def lightly_views(config: Config, images: Tensor) -> Iterator[list[Tensor]]:
    """Lightly's views without end, the images in another order each epoch."""
    ways = config.views
    pictures = [Image.fromarray(image.numpy()) for image in images.permute(0, 2, 3, 1)]
    if ways.global_views:
        strength = {"cj_bright": ways.brightness, "cj_contrast": ways.contrast, "cj_sat": ways.saturation}
        transform = SimCLRTransform(
            ways.image_size, min_scale=ways.global_scale[0], cj_hue=ways.hue, gaussian_blur=ways.blur, **strength
        )
    else:
        transform = MAETransform(ways.image_size, ways.global_scale[0])

    def collate(some: list[Image.Image]) -> list[Tensor]:
        return [torch.stack(view) for view in zip(*map(transform, some), strict=True)]

    loader = DataLoader(pictures, config.train.batch_size, shuffle=True, drop_last=True, collate_fn=collate)
    yield from itertools.chain.from_iterable(itertools.repeat(loader))


def our_views(config: Config, images: Tensor, method: Method) -> Iterator[dict]:
    """The same by the recipe's own loader and views."""
    batches = StepBatches(ImageSet(images, None, ()), seed=0, batch_size=config.train.batch_size)
    for step, batch in enumerate(batches.stream(0, 1_000_000, workers=0, device=torch.device("cpu"))):
        yield method.views(batch, step)


def train_step(loss: Callable[[object], Tensor], method: nn.Module, optimizer: torch.optim.Optimizer, views: object):
    """One update, the same lines for both sides."""
    loss(views).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.after_step(0)


def operations(update: Callable[[], None]) -> int:
    """Operations of the matrix products and convolutions of a step."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        update()
    return counter.get_total_flops()


def measure(name: str, rounds: int) -> dict[str, Timing]:
    """Times both sides of a method alternately, step and end to end.

    Raises: ``RuntimeError`` if the sides do not do the same work.
    """
    torch.manual_seed(0)
    config = override(recipe.PRESETS[f"{name}_toy"], {"optim.clip": None})
    side = config.data.image_size
    images = torch.randint(0, 256, (IMAGES, 3, side, side), dtype=torch.uint8)
    ours = engine.build(recipe.RECIPE, config, steps=1000).train()
    theirs = PEERS[name](config, ours.backbone).train()
    sides = {
        "ours": (ours, lambda views: ours(views)["loss"], our_views(config, images, ours)),
        "lightly": (theirs, theirs, lightly_views(config, images)),
    }
    rivals, work = {}, {}
    for who, (method, loss, stream) in sides.items():
        optimizer = optim.build(config.optim, groups.decay_groups(method))
        optim.Schedule(config=config.optim, steps=1000, steps_per_epoch=10).apply(optimizer, 10)
        update = partial(train_step, loss, method, optimizer)
        rivals[f"step, {who}"] = partial(update, next(stream))
        rivals[f"end to end, {who}"] = lambda stream=stream, update=update: update(next(stream))
        work[who] = operations(rivals[f"step, {who}"])
    if abs(work["lightly"] / work["ours"] - 1) > SAME_WORK:
        raise RuntimeError(f"{name}: lightly's step has {work['lightly'] / work['ours']:.3f} times our operations.")
    # one thread: the process's own seconds are those of a quiet machine
    return side_by_side(rivals, rounds=rounds, reference="step, ours", clock=time.process_time)


def main() -> None:
    """Prints the ratios, and whether the goal is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--methods", nargs="+", default=list(PEERS), choices=list(PEERS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("method", "step", "end to end", "slowest/fastest step: ours, lightly")
    found: dict[str, list[float]] = {"step": [], "end to end": []}
    for name in arguments.methods:
        timings = measure(name, arguments.rounds)
        for part, ratios in found.items():
            ratios.append(timings[f"{part}, lightly"].seconds / timings[f"{part}, ours"].seconds)
        spreads = ", ".join(f"{timings[f'step, {who}'].spread:.2f}" for who in ("ours", "lightly"))
        table.add_row(name, *(f"{ratios[-1]:.2f}" for ratios in found.values()), spreads)
    Console(width=100).print(table)
    for part, ratios in found.items():
        middle, least = statistics.median(ratios), min(ratios)
        verdict = "reached" if middle >= GOAL and least >= 1 else "missed"
        print(f"{part}: median {middle:.2f}, least {least:.2f}; the goal of {GOAL} and 1 is {verdict}.")


if __name__ == "__main__":
    main()
