# SPDX-License-Identifier: Apache-2.0
"""Captioners: several texts about one image, drawn at random; and a small one that learns in minutes of one core.

Symbols: B images, M places of the image's grid, r captions per image, T tokens, D width, V entries of the vocabulary.
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
    """What describes images in words."""

    def generate(self, images: Tensor | Sequence[Image.Image], count: int, seeds: Tensor) -> list[list[str]]:
        """``count`` captions of each image. An image's captions follow from its seed, whatever else is in the batch.

        Shapes: ``images`` uint8 [B, 3, H, W] or B pictures, ``seeds`` int64 [B] -> B lists of ``count`` texts.
        """
        ...


class Tokenizer(Protocol):
    """What turns texts into tokens and back."""

    start: int
    end: int
    padding: int
    vocabulary: int
    context: int

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, of which none is a start, an end or padding."""
        ...


class ToyCaptioner(nn.Module):
    """Three convolutions to a grid of M = (side / 8) ** 2 places, and a causal transformer that looks at them.

    The grid passes one layer in which its places see each other. Token embeddings are the output layer's weights too.
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
        self.stem = ConvNet().layers[:3]  # the fourth would leave 4 places of a 32-pixel image
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
        """Mean cross-entropy of the next token over all tokens up to the end; what stands after it does not count.

        Shapes: ``images`` float [B, 3, side, side] as :meth:`prepare` leaves them, ``tokens`` int64 [B, context] -> [].
        """
        asked, answers = tokens[:, :-1], tokens[:, 1:]
        over = (asked == self.tokenizer.end).cumsum(dim=1) > 0  # [B, T]: not by padding's id, a word may have it
        logits = self.logits(self.grid(images), asked)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision is too coarse here
        return F.cross_entropy(logits.flatten(0, 1), answers.masked_fill(over, -100).flatten(), ignore_index=-100)

    def grid(self, images: Tensor) -> Tensor:
        """What the decoder looks at: float [B, 3, side, side] -> [B, M, D]."""
        places = self.stem(images).flatten(2).mT  # [B, M, channels]
        return self.look(self.to_grid(places) + self.places)

    def logits(self, grid: Tensor, tokens: Tensor) -> Tensor:
        """Scores of the token that follows each token: [B, M, D], int64 [B, T] -> [B, T, V]."""
        x = self.words(tokens) + self.positions[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, layer.of_image(grid))
        return F.linear(self.norm(x), self.words.weight)

    def prepare(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Images as the network takes them: float [B, 3, side, side], about in [-1, 1], on its device.

        Pictures are resized by their shorter side and cut to the middle. Raises: ``ValueError`` for a tensor that is
        not uint8 [B, 3, side, side].
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
        """``count`` captions of each image, drawn as ``sampling`` says; see :class:`Captioner`.

        Raises: ``ValueError`` where ``count`` is below 1 or there is not one seed an image.
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
        """Tokens of the captions, an image's side by side, the start first: [B, M, D] -> int64 [B * r, 1 + T]."""
        sampling, names = self.sampling, self.tokenizer
        draws = sampling.draws(seeds, count).to(grid.device)  # [B * r, max_length]
        images = [layer.of_image(grid) for layer in self.layers]  # once for all captions and tokens
        pasts: list[tuple[Tensor, Tensor] | None] = [None] * len(self.layers)
        tokens = torch.full((len(draws), 1), names.start, device=grid.device)
        ended = torch.zeros(len(draws), dtype=torch.bool, device=grid.device)
        never = torch.tensor([names.start, names.padding], device=grid.device)
        for step in range(sampling.max_length):
            x = self.words(tokens[:, -1:]) + self.positions[step]  # [B * r, 1, D]
            for number, layer in enumerate(self.layers):
                x, pasts[number] = layer.step(x, images[number], pasts[number])
            logits = F.linear(self.norm(x[:, 0]), self.words.weight).float()
            logits = repetition_penalty(logits, tokens, sampling.repetition_penalty).index_fill(1, never, -torch.inf)
            if step < sampling.min_length:
                logits[:, names.end] = -torch.inf
            chosen = nucleus(logits, sampling.top_p, draws[:, step]).masked_fill(ended, names.end)
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
    """Raises ``ValueError`` where ``count`` captions of ``images`` images cannot be drawn with ``seeds``."""
    if count < 1:
        raise ValueError(f"count = {count} captions per image; use at least 1.")
    if seeds.dtype != torch.int64 or seeds.shape != (images,):
        raise ValueError(f"seeds are {seeds.dtype} {list(seeds.shape)}; {images} images take int64 [{images}].")


class _Layer(nn.Module):
    """A decoder's layer: earlier tokens, then the image, then two linear maps; a LayerNorm before each."""

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
        """Keys and values of an image's places: [B, M, D] -> twice [B, heads, M, D / heads]."""
        key, value = self._split(self.image(grid), 2)
        return key, value

    def forward(self, x: Tensor, image: tuple[Tensor, Tensor]) -> Tensor:
        """All tokens at once: [B, T, D] -> [B, T, D]."""
        query, key, value = self._split(self.qkv(self.norms[0](x)), 3)
        x = x + self.mix(_joined(F.scaled_dot_product_attention(query, key, value, is_causal=True)))
        return self._after(x, image)

    def step(
        self, x: Tensor, image: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One more token of every caption: [B * r, 1, D] and the keys and values of the earlier ones -> both, grown."""
        query, key, value = self._split(self.qkv(self.norms[0](x)), 3)
        if past is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(past, (key, value), strict=True))
        x = x + self.mix(_joined(F.scaled_dot_product_attention(query, key, value)))
        # r captions ask of one image as T tokens of one caption do: no copy of its keys and values is needed
        captions = x.view(len(image[0]), -1, x.shape[-1])  # [B, r, D]
        return self._after(captions, image).view_as(x), (key, value)

    def _after(self, x: Tensor, image: tuple[Tensor, Tensor]) -> Tensor:
        (query,) = self._split(self.ask(self.norms[1](x)), 1)
        x = x + self.take(_joined(F.scaled_dot_product_attention(query, *image)))
        return x + self.mlp(self.norms[2](x))

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, T, parts * D] -> ``parts`` times [B, heads, T, D / heads]"""
        batch, length, _ = x.shape
        return x.view(batch, length, parts, self.heads, -1).transpose(1, 3).unbind(2)


def _joined(x: Tensor) -> Tensor:
    """[B, heads, T, D / heads] -> [B, T, D]"""
    return x.transpose(1, 2).flatten(2)
