# SPDX-License-Identifier: Apache-2.0
"""The three models that :mod:`recipes_lib.recipes.sieve.recipe` scores with: a captioner, a sentence encoder, a CLIP."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from recipes_lib.config import OptimConfig, TrainConfig
from recipes_lib.data import tokenizer
from recipes_lib.data.pantry import alt_text
from recipes_lib.distributed.world import World
from recipes_lib.errors import ConfigError, DataError, Faults
from recipes_lib.models.blip import HFBlipCaptioner
from recipes_lib.models.captioner import Captioner
from recipes_lib.models.sampling import Sampling
from recipes_lib.pretraining import engine, image_text_data
from recipes_lib.recipes.clip import recipe as clip
from recipes_lib.recipes.sieve import captioning
from recipes_lib.recipes.sieve.pair_scores import Clip
from recipes_lib.recipes.sieve.pool import seed_of
from recipes_lib.training import stages
from recipes_lib.training.folder import RunFolder
from recipes_lib.views.multicrop import eval_view

CONTEXT = 32
"""Tokens of a toy caption, start and end included."""


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    """What describes the images. Defaults: the paper's sampling, whose lengths do not count the prompt here."""

    name: Literal["blip", "toy"] = "blip"
    """blip: BLIP from ``weights``; toy: a small captioner trained for this run, on captioned pictures of the Pantry."""
    weights: str | None = None
    """Folder, or name on the hub, of BLIP's weights as transformers saves them."""
    count: int = 8
    """r, captions an image."""
    top_p: float = 0.9
    """Share of probability that the nucleus holds."""
    min_length: int = 1
    max_length: int = 16
    """Tokens of a caption."""
    repetition_penalty: float = 1.1
    images: int = 3000
    """``toy`` only. Captioned pictures to train on; none of them is in the pool."""
    steps: int = 300
    """``toy`` only. Optimiser steps of the training."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        if (self.name == "blip") != (self.weights is not None):
            fix = "add --captioner.weights FOLDER" if self.name == "blip" else "leave it out"
            faults.add(f"captioner.weights = {self.weights} does not fit captioner.name = {self.name}: {fix}.")
        faults.need(self.count >= 1, "captioner.count", self.count, "of at least 1", "The paper uses 8.")
        faults.need(0 < self.top_p <= 1, "captioner.top_p", self.top_p, "in (0, 1]", "The paper uses 0.9.")
        fits = 0 <= self.min_length <= self.max_length and self.max_length >= 1
        lengths = (self.min_length, self.max_length)
        faults.need(fits, "captioner.min_length, max_length", lengths, "with 0 <= min_length <= max_length")
        if self.name == "toy":
            longest = self.max_length
            faults.need(longest < CONTEXT, "captioner.max_length", longest, f"below {CONTEXT} with captioner.name toy")
        faults.need(
            self.repetition_penalty >= 1, "captioner.repetition_penalty", self.repetition_penalty, "of at least 1"
        )
        faults.need(self.images >= 2, "captioner.images", self.images, "of at least 2")
        faults.need(self.steps >= 1, "captioner.steps", self.steps, "of at least 1")

    @property
    def sampling(self) -> Sampling:
        """How captions are drawn."""
        lengths = {"min_length": self.min_length, "max_length": self.max_length}
        return Sampling(top_p=self.top_p, repetition_penalty=self.repetition_penalty, **lengths)


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """What compares image and text directly, for CLIPScore and for fusing."""

    name: Literal["none", "open_clip", "run", "toy"] = "none"
    """open_clip: a network of that library; run: a run folder of ``recipes run clip``; toy: one trained for this run,
    on a web's pairs of the Pantry."""
    arch: str = "ViT-B-32"
    """``open_clip`` only: name of the architecture."""
    weights: str | None = None
    """``open_clip`` only: file of weights, or their tag in that library."""
    run: Path | None = None
    """``run`` only: the run folder."""
    images: int = 6000
    """``toy`` only. Noisy pairs to train on; none of them is in the pool."""
    steps: int = 300
    """``toy`` only. Optimiser steps of the training."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        for field, needed in (("weights", self.name == "open_clip"), ("run", self.name == "run")):
            if (getattr(self, field) is not None) != needed:
                fix = f"add --clip.{field}" if needed else "leave it out"
                faults.add(f"clip.{field} = {getattr(self, field)} does not fit clip.name = {self.name}: {fix}.")
        batch = clip.PRESETS["toy"].train.batch_size
        faults.need(self.images >= batch, "clip.images", self.images, f"of at least {batch}, one batch")
        faults.need(self.steps >= 1, "clip.steps", self.steps, "of at least 1")


def captioner_of(config: Any, run: RunFolder, place: World) -> Captioner:
    """The captioner; ``toy`` trains in the run's folder ``captioner``, or is read from there. All ranks call it."""
    chosen = config.captioner
    if chosen.name == "blip":
        try:
            return HFBlipCaptioner(chosen.weights, sampling=chosen.sampling, device=place.device)
        except ValueError as error:  # the network says how long a caption may be
            raise ConfigError(f"captioner.max_length is not allowed: {error} Use a smaller one.") from None
    side, draw = config.data.image_size, captioners_draw(config)
    images = alt_text.pool(chosen.images, size=side, seed=draw, mix=alt_text.CLEAN)
    training = captioning.CaptioningConfig(
        images=chosen.images,
        draw=draw,
        image_size=side,
        sampling=chosen.sampling,
        optim=OptimConfig(
            lr=3e-3, lr_start=0.0, lr_final=0.0, warmup_steps=20, weight_decay=0.02, weight_decay_final=0.02,
            stretch=1.0, clip=1.0,
        ),
        train=TrainConfig(
            epochs=None, steps=chosen.steps, batch_size=min(64, chosen.images), seed=config.score.seed,
            threads=config.score.threads, device=config.score.device, checkpoint_every=chosen.steps,
        ),
    )  # fmt: skip
    folder = run.path / "captioner"
    stages.keep(run)
    return captioning.captioner_of(images, training, _words(), folder=folder, place=place, go_on=_go_on(run))


def captioners_draw(config: Any) -> int:
    """What draws the clean pairs that the toy captioner learns from."""
    return seed_of(config.data) + 1


@lru_cache(maxsize=1)
def _words() -> tokenizer.Tokenizer:
    """What toy captions are made of; learned anew within a second, and the same each time."""
    return tokenizer.train(image_text_data.vocabulary_texts(), 1024, CONTEXT)


def clip_of(config: Any, run: RunFolder, place: World) -> Clip | None:
    """The CLIP, or None; ``toy`` trains in the run's folder ``clip``, or is read from there. All ranks call it."""
    match config.clip.name:
        case "none":
            return None
        case "open_clip":
            return OpenClip(config.clip.arch, config.clip.weights, place.device)
        case "run":
            return Towers.reopen(config.clip.run)
    folder, wanted = run.path / "clip", toy_clip(config)
    if not stages.finished(folder, clip.RECIPE.name, wanted):
        stages.keep(run)
        with stages.tell_how_to_go_on("Training CLIP was interrupted; its steps are kept.", _go_on(run)):
            clip.RECIPE.run(wanted, folder)
    return Towers.reopen(folder)


def toy_clip(config: Any) -> clip.Config:
    """The CLIP that scores a toy pool: the chapter's own, on a web's pairs, none of which is in the pool."""
    base = clip.PRESETS["toy"]
    data = {"texts": "web", "train_size": config.clip.images, "draw": seed_of(config.data) + 2}
    train = {"steps": config.clip.steps, "checkpoint_every": config.clip.steps, "seed": config.score.seed}
    return replace(
        base,
        data=replace(base.data, image_size=config.data.image_size, **data),
        train=replace(base.train, device=config.score.device, threads=config.score.threads, **train),
        eval=replace(base.eval, baselines="none"),
    )


def _go_on(run: RunFolder) -> str:
    return f"recipes resume {run.path}"


class Towers:
    """CLIPScore by a CLIP of ours."""

    def __init__(self, config: Any, method: nn.Module) -> None:
        self.config, self.method = config, method.eval()

    @classmethod
    def reopen(cls, path: Path) -> "Towers":
        """The CLIP of a run folder. Raises: ``DataError`` where it is a run of another recipe."""
        recipe = RunFolder.open(path).read_config()["recipe"]
        if recipe != "clip":
            raise DataError(f"{path} is a run of {recipe}, and no CLIP. Give one of recipe clip.")
        return cls(*engine.reopen(clip.RECIPE, path))

    @torch.no_grad()
    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Cosine of each image with its own text: float [n], on the CPU."""
        side, device = self.config.data.image_size, next(self.method.parameters()).device
        how = (side, self.config.views.normalize, self.config.views.resize)
        seen = torch.cat([eval_view(_tensor(image).to(device), *how) for image in images])
        pictures = self.method.embed(self.method.backbone(seen))
        words = self.method.embed_tokens(self.method.encode_texts(list(texts)).to(device))
        return (pictures * words).sum(dim=1).cpu()


class OpenClip:
    """CLIPScore by a network of open_clip, such as OpenAI's own: what the paper compares with.

    Raises: ``DataError`` where the package or the weights are absent.
    """

    def __init__(self, arch: str, weights: str, device: torch.device) -> None:
        try:
            import open_clip

            made = open_clip.create_model_and_transforms(arch, pretrained=weights, device=device)
        except (ImportError, RuntimeError, OSError, ValueError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"clip.arch = {arch}, clip.weights = {weights} cannot be loaded: {line}") from None
        self.model, _, self.view = made
        self.model.eval()
        self.tokens, self.device = open_clip.get_tokenizer(arch), device

    @torch.no_grad()
    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Cosine of each image with its own text: float [n], on the CPU."""
        seen = torch.stack([self.view(image) for image in images]).to(self.device)
        pictures = self.model.encode_image(seen, normalize=True)
        words = self.model.encode_text(self.tokens(list(texts)).to(self.device), normalize=True)
        return (pictures * words).sum(dim=1).float().cpu()


def _tensor(image: Image.Image) -> Tensor:
    """uint8 [1, 3, H, W]"""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
