# SPDX-License-Identifier: Apache-2.0
"""CLIP: an image must find its own text among those of the batch, and a text its own image.

Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever, "Learning Transferable
Visual Models From Natural Language Supervision", ICML 2021, arXiv 2103.00020. Chapter: ``notebooks/clip.py``.

1. An image tower and a text tower map images and texts to embeddings of norm 1; both learn from scratch.
2. In a batch of N pairs, each image has 1 right text and N - 1 wrong ones; a softmax over the cosines must choose it.
3. In the same way, each text must choose its image. The temperature of the softmax is learned.
4. After training, a list of sentences is a classifier: an image gets the class of the nearest sentence ("zero-shot").

The full-scale presets are those of DataComp's filtering track, which compares data and fixes everything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.config import PROBES, OptimConfig, SyncConfig, TrainConfig
from recipes_lib.data import tokenizer
from recipes_lib.data.load import Splits
from recipes_lib.data.loader import Batch, Crop
from recipes_lib.errors import Faults
from recipes_lib.evaluation.features import Features
from recipes_lib.models import backbones
from recipes_lib.models.text import TextTransformer
from recipes_lib.objectives import image_text
from recipes_lib.pretraining import image_text_data, image_text_scores
from recipes_lib.pretraining.image_text_data import OPEN_CLIP, PairData, PairViews
from recipes_lib.pretraining.image_text_scores import PairEval
from recipes_lib.pretraining.recipe import Method, Recipe, Warn
from recipes_lib.views import masking
from recipes_lib.views.multicrop import MultiCrop


@dataclass(frozen=True, kw_only=True)
class ModelConfig(backbones.BackboneConfig):
    """The image tower and the text tower; the defaults are DataComp's ViT-B/32."""

    arch: backbones.Arch = "vit_base"
    stem: backbones.Stem = "patch"
    patch_size: int = 32
    pre_norm: bool = True
    tokenizer: Literal["clip", "pantry"] = "clip"
    """clip: OpenAI's vocabulary of 49,408 pieces of words;
    pantry: at most 1,024 pieces, learned from the Pantry's texts."""
    context: int = 77
    """Number of tokens per text, start and end included, at least 3; longer texts are cut."""
    text_width: int = 512
    """Width of the text tower; a multiple of ``text_heads``."""
    text_layers: int = 12
    """Number of blocks of the text tower, at least 1."""
    text_heads: int = 8
    """Number of attention heads of the text tower; it must divide ``text_width``."""
    dim: int = 512
    """Dimension of the embeddings of images and texts, at least 2."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        faults.need(self.context >= 3, "model.context", self.context, "of at least 3: start, end and one between")
        for name in ("text_width", "text_layers", "text_heads"):
            faults.need(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "of at least 1")
        faults.need(self.dim >= 2, "model.dim", self.dim, "of at least 2")
        heads = self.text_heads
        if heads >= 1 and self.text_width % heads:
            faults.add(f"model.text_heads = {heads} does not divide model.text_width = {self.text_width}.")

    @property
    def has_blocks(self) -> bool:
        """Always true: the text tower is a transformer, whatever the image tower is."""
        return True


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective."""

    objective: Literal["clip", "siglip"] = "clip"
    """clip: a softmax over all texts (images) of the batch; siglip: a binary classification of each image-text pair."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """CLIP's config; the defaults are DataComp's scale *small*."""

    data: PairData = field(default_factory=PairData)
    views: PairViews = OPEN_CLIP
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=5e-4,
            lr_start=0.0,
            lr_final=0.0,
            warmup_steps=500,
            weight_decay=0.2,
            weight_decay_final=0.2,
            stretch=1.0,
            betas=(0.9, 0.98),
            eps=1e-6,
            clip=None,
        )
    )
    sync: SyncConfig = field(default_factory=SyncConfig)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=None, steps=3125, batch_size=4096, precision="bf16")
    )
    eval: PairEval = field(default_factory=PairEval)

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        for group in (self.data, self.views, self.model, self.optim, self.sync, self.train, self.eval):
            group.check(faults)
        sides = {"views.image_size": self.views.image_size}
        if self.data.image_size != self.views.image_size:
            sides["data.image_size"] = self.data.image_size
        self.model.check_sides(faults, sides)
        dropped, arch = self.views.patch_dropout, self.model.arch
        if 0 < dropped < 1 and not self.model.drops_patches:
            faults.add(f"views.patch_dropout = {dropped} has no patches to drop: model.arch is {arch}. Choose a vit.")
        if self.data.name == "shards":
            self.eval.check_shards(faults, held_out=self.data.test_root is not None)
        faults.raise_any()


def tokenizer_of(model: ModelConfig) -> tokenizer.Tokenizer:
    """The tokenizer that ``model`` names. The Pantry's is learned anew within a second, and is the same each time."""
    return _tokenizer(model.tokenizer, model.context)


@lru_cache(maxsize=4)  # by what it depends on: networks that differ in nothing else share one
def _tokenizer(name: str, context: int) -> tokenizer.Tokenizer:
    if name == "clip":
        return tokenizer.clip_vocabulary(context)
    with torch.device("cpu"):  # a caller may build the network on the meta device, but the texts need real tensors
        return tokenizer.train(image_text_data.vocabulary_texts(), 1024, context)


class CLIP(Method):
    """The image tower, the text tower and the learned temperature; ``forward`` computes the loss."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__()
        self.config = config
        self._tokenizer = tokenizer_of(config.model)
        model = config.model
        self.backbone = backbones.build(model, image_size=config.views.image_size)
        self.image_projection = nn.Linear(self.backbone.num_features, model.dim, bias=False)
        nn.init.normal_(self.image_projection.weight, std=self.backbone.num_features**-0.5)
        self.text = TextTransformer(
            vocabulary=self._tokenizer.vocabulary,
            context=model.context,
            width=model.text_width,
            layers=model.text_layers,
            heads=model.text_heads,
            dim=model.dim,
            end=self._tokenizer.end,
            layer_scale=model.layer_scale,
        )
        sigmoid = config.loss.objective == "siglip"
        start = image_text.INITIAL_SIGLIP_LOG_SCALE if sigmoid else image_text.INITIAL_LOG_SCALE
        self.log_scale = nn.Parameter(torch.tensor(start))
        self.bias = nn.Parameter(torch.tensor(image_text.INITIAL_SIGLIP_BIAS)) if sigmoid else None
        self._crop = MultiCrop(config.views, config.train.seed)

    @property
    def crop_one(self) -> Crop:
        """Cuts the view of one image file in a loader's worker process."""
        return self._crop.crop_one

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """The tokens of texts, int64 [n, context]."""
        return self._tokenizer.encode(texts)

    def embed(self, features: Tensor) -> Tensor:
        """Embeddings of norm 1 from features of the image tower: [n, D] -> [n, dim], float32."""
        return F.normalize(self.image_projection(features).float(), dim=-1)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embeddings of norm 1 from tokens of texts: int64 [n, context] -> [n, dim], float32."""
        return F.normalize(self.text(tokens).float(), dim=-1)

    def views(self, batch: Batch, step: int) -> dict[str, object]:
        """Cuts one view of each image; adds the tokens of its text, and with ``patch_dropout`` the patches it keeps.

        Shapes: ``images`` float32 [batch, 3, side, side], ``tokens`` int64 [batch, context], ``keep`` int64
        [batch, kept].
        """
        views = {"images": self._crop(batch)[0], "tokens": batch.tokens}
        if dropped := self.config.views.patch_dropout:
            keys = randomness.sample_keys(self.config.train.seed, batch.epoch, batch.indices)
            views["keep"] = masking.random_keep(self.backbone.patch_embed.num_patches, dropped, keys=keys)
        return views

    def forward(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        kept = (views["keep"],) if "keep" in views else ()  # a convnet takes only images
        images, texts = self.embed(self.backbone(views["images"], *kept)), self.embed_tokens(views["tokens"])
        if self.config.loss.objective == "siglip":
            return image_text.siglip_loss(images, texts, self.log_scale, self.bias)
        return image_text.clip_loss(images, texts, self.log_scale)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Keeps the logarithm of the scale (1 / temperature) in [0, ``image_text.MAX_LOG_SCALE``]."""
        self.log_scale.clamp_(0, image_text.MAX_LOG_SCALE)


def load(config: Config, warn: Warn) -> Splits:
    """Loads the training pairs and the test pairs."""
    if config.eval.imagenet is not None:
        image_text_scores.require_imagenet(config.eval.imagenet)  # fails now, not after hours of training
    return image_text_data.load(config.data, warn)


@torch.no_grad()
def diagnostics(method: CLIP, features: tuple[Features, Features] | None, images: Splits) -> dict[str, float]:
    """Reports the learned scale, which is 1 / temperature."""
    return {"scale": float(method.log_scale.exp())}


# The Pantry at 32 pixels with true captions, in half a minute of one CPU core.
# Not DataComp's: a warm-up of 20 steps, since its 500 are more than the 120 of this run.
_TOY = Config(
    data=PairData(name="pantry", image_size=32, train_size=3000, test_size=500),
    views=PairViews(image_size=32, global_scale=(0.6, 1.0), normalize="imagenet", resize="bilinear"),
    model=ModelConfig(
        arch="convnet",
        stem="imagenet",
        tokenizer="pantry",
        context=24,
        text_width=64,
        text_layers=2,
        text_heads=2,
        dim=64,
    ),
    optim=replace(
        Config().optim, lr=3e-3, warmup_steps=20, weight_decay=0.02, weight_decay_final=0.02, eps=1e-8, clip=1.0
    ),
    train=TrainConfig(epochs=None, steps=120, batch_size=256, threads=1, device="cpu", checkpoint_every=60),
    eval=PairEval(baselines="all", probes=("zero_shot", "retrieval")),
)


def _datacomp(steps: int, batch_size: int, **model: Any) -> Config:
    """A scale of DataComp's filtering track: training sees as many samples as the pool has pairs, for every subset."""
    base = Config(model=ModelConfig(**model))
    return replace(base, train=replace(base.train, steps=steps, batch_size=batch_size))


_LARGE = {"arch": "vit_large", "patch_size": 14, "text_width": 768, "text_heads": 12, "dim": 768}

PRESETS: dict[str, Config] = {
    "toy": _TOY,
    # The toy run with more images and steps; `recipes cook clip` stores the result.
    "simmer": replace(
        _TOY,
        data=replace(_TOY.data, train_size=12000, test_size=1000),
        train=replace(_TOY.train, steps=1500, checkpoint_every=500),
    ),
    # Shards of your own images and texts at 64 pixels, in about an hour on a laptop.
    "laptop": Config(
        data=PairData(image_size=64),
        views=PairViews(image_size=64, global_scale=(0.6, 1.0), normalize="imagenet", resize="bilinear"),
        model=ModelConfig(
            arch="vit_nano", stem="conv", patch_size=16, text_width=128, text_layers=4, text_heads=4, dim=128
        ),
        optim=replace(_TOY.optim, lr=1e-3, warmup_steps=200),
        train=TrainConfig(epochs=None, steps=6000, batch_size=256, checkpoint_every=500),
    ),
    # DataComp's scales. The number of GPUs is free, the batch size is fixed: 3,125 x 4,096 = 12.8 million samples,
    # 31,250 x 4,096 = 128 million, 156,250 x 8,192 = 1.28 billion and 142,045 x 90,112 = 12.8 billion.
    "datacomp_small": _datacomp(3125, 4096),
    "datacomp_medium": _datacomp(31_250, 4096),
    "datacomp_large": _datacomp(156_250, 8192, patch_size=16),
    "datacomp_xlarge": replace(
        _datacomp(142_045, 90_112, **_LARGE),
        optim=replace(Config().optim, lr=1e-3, warmup_steps=10_000, betas=(0.9, 0.95)),
    ),
}


RECIPE = Recipe(
    name="clip",
    config=Config,
    presets=PRESETS,
    method=CLIP,
    load=load,
    score=image_text_scores.score,
    probes=("zero_shot", "retrieval", *PROBES),
    diagnostics=diagnostics,
)
