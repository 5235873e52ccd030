# SPDX-License-Identifier: Apache-2.0
"""Captioners: draw several captions per image; with a small one that is trained in minutes on one core.

Symbols: B images, M positions of the feature grid, r captions per image, T tokens, D width, V vocabulary entries.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from recipes_lib.models.convnet import ConvNet
from recipes_lib.models.sampling import Sampling, nucleus, repetition_penalty


class Captioner(Protocol):
    """A model that describes images in words."""

    def generate(self, images: Tensor | Sequence[Image.Image], count: int, seeds: Tensor) -> list[list[str]]:
        """Draws ``count`` captions per image. An image's captions depend only on its seed, not on the batch.

        Shapes: ``images`` uint8 [B, 3, H, W] or B PIL images, ``seeds`` int64 [B] -> B lists of ``count`` texts.
        """
        ...


class Tokenizer(Protocol):
    """The part of a tokenizer that a captioner needs: its special tokens and sizes, and decoding."""

    start: int
    """Id of the start token."""
    end: int
    """Id of the end token."""
    padding: int
    """Id of the padding."""
    vocabulary: int
    """Number of token ids."""
    context: int
    """Length of a tokenised text, in tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens ``ids``, none of which is the start, the end or padding."""
        ...


class ToyCaptioner(nn.Module):
    """A small captioner: convolutions to a feature grid, and a causal transformer decoder that attends to it.

    Three convolutions make a grid of M = (side / 8) ** 2 positions, followed by one transformer encoder layer. The
    token embeddings are also the weights of the output layer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.image_size, self.sampling = tokenizer, image_size, sampling or Sampling()
        if image_size < 8 or image_size % 8:
            raise ValueError(f"image_size = {image_size} is no multiple of 8 pixels.")
        if width % heads:
            raise ValueError(f"width = {width} is not divisible by heads = {heads}.")
        if self.sampling.max_length > tokenizer.context:
            raise ValueError(
                f"max_length = {self.sampling.max_length} exceeds the context of {tokenizer.context} tokens."
            )
        self.stem = ConvNet().layers[:3]  # the fourth would leave 2 x 2 = 4 positions of a 32-pixel image
        channels = self.stem[-1][0].out_channels
        self.to_grid = nn.Linear(channels, width)
        self.places = nn.Parameter(torch.randn((image_size // 8) ** 2, width) * 0.02)
        self.look = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.words = nn.Embedding(tokenizer.vocabulary, width)
        self.positions = nn.Parameter(torch.randn(tokenizer.context, width) * 0.02)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.words.weight, std=0.02)

    def loss(self, images: Tensor, tokens: Tensor) -> Tensor:
        """The mean cross-entropy of the next token over all tokens up to the end token; later ones do not count.

        Shapes: ``images`` float [B, 3, side, side] from :meth:`prepare`, ``tokens`` int64 [B, context] -> [].
        """
        asked, answers = tokens[:, :-1], tokens[:, 1:]  # [B, T] each, T = context - 1
        # [B, T]: found by the end token, because a word may have the id of the padding
        over = (asked == self.tokenizer.end).cumsum(dim=1) > 0
        logits = self.logits(self.grid(images), asked)  # [B, T, V]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision is too coarse for log
        return F.cross_entropy(logits.flatten(0, 1), answers.masked_fill(over, -100).flatten(), ignore_index=-100)

    def grid(self, images: Tensor) -> Tensor:
        """The feature grid that the decoder attends to.  float [B, 3, side, side] -> [B, M, D]"""
        places = self.stem(images).flatten(2).mT  # [B, M, channels]
        return self.look(self.to_grid(places) + self.places)

    def logits(self, grid: Tensor, tokens: Tensor) -> Tensor:
        """The logits of the token that follows each token.  [B, M, D], int64 [B, T] -> [B, T, V]"""
        x = self.words(tokens) + self.positions[: tokens.shape[1]]  # [B, T, D]
        for layer in self.layers:
            x = layer(x, layer.of_image(grid))
        return F.linear(self.norm(x), self.words.weight)

    def prepare(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Converts images to the network's input: float [B, 3, side, side] in [-1, 1], on its device.

        PIL images are resized by their shorter side and cropped to the centre.

        Raises: ``ValueError`` for a tensor that is not uint8 [B, 3, side, side].
        """
        side = self.image_size
        if not isinstance(images, Tensor):
            fitted = [ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC) for image in images]
            images = torch.stack([pil_to_tensor(image) for image in fitted])
        if images.dtype != torch.uint8 or images.shape[1:] != (3, side, side):
            found = f"{images.dtype} {list(images.shape)}"
            raise ValueError(f"images are {found}; this captioner takes uint8 [B, 3, {side}, {side}].")
        return images.to(self.places.device).float() / 127.5 - 1

    @torch.no_grad()
    def generate(self, images: Tensor | Sequence[Image.Image], count: int, seeds: Tensor) -> list[list[str]]:
        """Draws ``count`` captions per image by ``sampling``; shapes are those of :class:`Captioner`.

        Raises: ``ValueError`` if ``count`` is below 1 or there is not one seed per image.
        """
        check_request(len(images), count, seeds)
        if len(images) == 0:
            return []
        training = self.training
        self.eval()
        try:
            tokens = self._draw(self.grid(self.prepare(images)), count, seeds)
        finally:
            self.train(training)
        texts = [self._text(row) for row in tokens.tolist()]
        return [texts[first : first + count] for first in range(0, len(texts), count)]

    def _draw(self, grid: Tensor, count: int, seeds: Tensor) -> Tensor:
        """Draws the tokens of the captions, from the start token on; the r captions of an image are adjacent rows.

        Shapes: [B, M, D] -> int64 [B * r, 1 + T].
        """
        sampling, names = self.sampling, self.tokenizer
        draws = sampling.draws(seeds, count).to(grid.device)  # [B * r, max_length]
        images = [layer.of_image(grid) for layer in self.layers]  # computed once for all captions and tokens
        pasts: list[tuple[Tensor, Tensor] | None] = [None] * len(self.layers)
        tokens = torch.full((len(draws), 1), names.start, device=grid.device)
        ended = torch.zeros(len(draws), dtype=torch.bool, device=grid.device)
        never = torch.tensor([names.start, names.padding], device=grid.device)
        for step in range(sampling.max_length):
            x = self.words(tokens[:, -1:]) + self.positions[step]  # [B * r, 1, D]
            for number, layer in enumerate(self.layers):
                x, pasts[number] = layer.step(x, images[number], pasts[number])
            logits = F.linear(self.norm(x[:, 0]), self.words.weight).float()  # [B * r, V]
            logits = repetition_penalty(logits, tokens, sampling.repetition_penalty).index_fill(1, never, -torch.inf)
            if step < sampling.min_length:
                logits[:, names.end] = -torch.inf
            chosen = nucleus(logits, sampling.top_p, draws[:, step]).masked_fill(ended, names.end)  # [B * r]
            tokens = torch.cat([tokens, chosen[:, None]], dim=1)
            ended = ended | (chosen == names.end)
            if ended.all():
                break
        return tokens

    def _text(self, tokens: list[int]) -> str:
        end = self.tokenizer.end
        length = tokens.index(end) if end in tokens else len(tokens)
        return self.tokenizer.decode(tokens[1:length]).strip()


def check_request(images: int, count: int, seeds: Tensor) -> None:
    """Raises ``ValueError`` unless ``count`` is at least 1 and ``seeds`` holds one int64 seed per image."""
    if count < 1:
        raise ValueError(f"count = {count} captions per image; use at least 1.")
    if seeds.dtype != torch.int64 or seeds.shape != (images,):
        raise ValueError(f"seeds are {seeds.dtype} {list(seeds.shape)}; {images} images take int64 [{images}].")


class _Layer(nn.Module):
    """A pre-norm decoder layer: causal self-attention, cross-attention to the image, and an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ask, self.image, self.take = (
            nn.Linear(a, b) for a, b in ((width, width), (width, 2 * width), (width, width))
        )
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def of_image(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of the image's positions.  [B, M, D] -> two of [B, heads, M, D / heads]"""
        key, value = self._split(self.image(grid), 2)
        return key, value

    def forward(self, x: Tensor, image: tuple[Tensor, Tensor]) -> Tensor:
        """The layer's output for all tokens at once, in training.  [B, T, D] -> [B, T, D]"""
        query, key, value = self._split(self.qkv(self.norms[0](x)), 3)  # [B, heads, T, D / heads] each
        x = x + self.mix(_joined(F.scaled_dot_product_attention(query, key, value, is_causal=True)))
        return self._after(x, image)

    def step(
        self, x: Tensor, image: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The layer's output for one more token per caption, given the keys and values ``past`` of the earlier tokens.

        Shapes: [B * r, 1, D] -> [B * r, 1, D], and the keys and values with those of this token.
        """
        query, key, value = self._split(self.qkv(self.norms[0](x)), 3)
        if past is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(past, (key, value), strict=True))
        x = x + self.mix(_joined(F.scaled_dot_product_attention(query, key, value)))
        # the r captions of an image are treated like tokens of one text, so its keys and values need not be copied
        captions = x.view(len(image[0]), -1, x.shape[-1])  # [B, r, D]
        return self._after(captions, image).view_as(x), (key, value)

    def _after(self, x: Tensor, image: tuple[Tensor, Tensor]) -> Tensor:
        (query,) = self._split(self.ask(self.norms[1](x)), 1)
        x = x + self.take(_joined(F.scaled_dot_product_attention(query, *image)))
        return x + self.mlp(self.norms[2](x))

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Splits the last dimension by part and head.  [B, T, parts * D] -> ``parts`` of [B, heads, T, D / heads]"""
        batch, length, _ = x.shape
        return x.view(batch, length, parts, self.heads, -1).transpose(1, 3).unbind(2)


def _joined(x: Tensor) -> Tensor:
    """Joins the heads.  [B, heads, T, D / heads] -> [B, T, D]"""
    return x.transpose(1, 2).flatten(2)
