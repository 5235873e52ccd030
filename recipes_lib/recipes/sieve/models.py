# SPDX-License-Identifier: Apache-2.0
"""Builds or trains the captioner and the CLIP that :mod:`recipes_lib.recipes.sieve.recipe` scores with."""

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
"""Largest number of tokens of a toy caption, start and end included."""


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    """The captioner. Defaults: the paper's sampling, but lengths here do not include the prompt."""

    name: Literal["blip", "toy"] = "blip"
    """blip: BLIP from ``weights``; toy: a small captioner that the run trains on captioned images of the Pantry."""
    weights: str | None = None
    """``blip`` only. Folder, or name on the Hugging Face hub, of BLIP's weights in transformers' format."""
    count: int = 8
    """Number of captions per image (the paper's r), at least 1."""
    top_p: float = 0.9
    """Probability mass of nucleus sampling, in (0, 1]: only the most likely tokens with this total are sampled."""
    min_length: int = 1
    """Smallest number of tokens per caption."""
    max_length: int = 16
    """Largest number of tokens per caption."""
    repetition_penalty: float = 1.1
    """Factor, at least 1, by which tokens that the caption already has become less likely; 1: no penalty."""
    images: int = 3000
    """``toy`` only. Number of captioned images to train on; none of them is in the pool."""
    steps: int = 300
    """``toy`` only. Number of optimiser steps."""

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
        """The settings with which captions are sampled."""
        lengths = {"min_length": self.min_length, "max_length": self.max_length}
        return Sampling(top_p=self.top_p, repetition_penalty=self.repetition_penalty, **lengths)


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The CLIP that gives CLIPScores, which can be averaged with Sieve's."""

    name: Literal["none", "open_clip", "run", "toy"] = "none"
    """none: no CLIPScores; open_clip: a network of that library; run: a run folder of ``recipes run clip``;
    toy: a CLIP that the run trains on noisy pairs of the Pantry."""
    arch: str = "ViT-B-32"
    """``open_clip`` only. Name of the architecture."""
    weights: str | None = None
    """``open_clip`` only. File of weights, or their tag in that library."""
    run: Path | None = None
    """``run`` only. The run folder."""
    images: int = 6000
    """``toy`` only. Number of noisy pairs to train on; none of them is in the pool."""
    steps: int = 300
    """``toy`` only. Number of optimiser steps."""

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
    """Loads the captioner; ``toy`` is trained in the run's folder ``captioner``, once. All ranks call it."""
    chosen = config.captioner
    if chosen.name == "blip":
        try:
            return HFBlipCaptioner(chosen.weights, sampling=chosen.sampling, device=place.device)
        except ValueError as error:  # max_length exceeds what the network allows
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
    """The seed of the clean pairs that the toy captioner learns from."""
    return seed_of(config.data) + 1


@lru_cache(maxsize=1)
def _words() -> tokenizer.Tokenizer:
    """The tokenizer of toy captions. It is learned anew within a second, and is the same each time."""
    return tokenizer.train(image_text_data.vocabulary_texts(), 1024, CONTEXT)


def clip_of(config: Any, run: RunFolder, place: World) -> Clip | None:
    """Loads the CLIP, or returns ``None``; ``toy`` is trained in the run's folder ``clip``, once. All ranks call it."""
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
    """The config of the CLIP that scores a toy pool: the CLIP chapter's toy on noisy pairs that are not in the pool."""
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
    """Computes CLIPScores with a CLIP that this library trained."""

    def __init__(self, config: Any, method: nn.Module) -> None:
        self.config, self.method = config, method.eval()

    @classmethod
    def reopen(cls, path: Path) -> "Towers":
        """Loads the CLIP of a run folder. Raises: ``DataError`` if it is a run of another recipe."""
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
    """Computes CLIPScores with a network of open_clip, such as OpenAI's, which the paper compares with.

    Raises: ``DataError`` if the package or the weights are missing.
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
    """An image in RGB as a tensor, uint8 [1, 3, H, W]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
