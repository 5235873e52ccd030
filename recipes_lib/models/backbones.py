# SPDX-License-Identifier: Apache-2.0
"""Builds a backbone of any kind by its name, for recipes that work with every backbone."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from recipes_lib.errors import Faults
from recipes_lib.models import vit
from recipes_lib.models.convnet import ConvNet
from recipes_lib.models.layers import LayersConfig
from recipes_lib.models.resnet import ResNet
from recipes_lib.models.wide_resnet import WideResNet

Arch = Literal[
    "convnet",
    "resnet18",
    "resnet50",
    "wide_resnet28_2",
    "vit_pico",
    "vit_nano",
    "vit_tiny",
    "vit_small",
    "vit_base",
    "vit_large",
    "vit_huge",
]
Stem = Literal["imagenet", "cifar", "patch", "conv"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(LayersConfig):
    """The architecture of a convnet, a ResNet, a wide ResNet or a Vision Transformer."""

    arch: Arch = "resnet50"
    """convnet: four convolutions; the numbers of a wide ResNet are its depth and its width factor."""
    stem: Stem = "imagenet"
    """The first layers. ResNet: imagenet, or cifar (for images of 32 pixels); wide ResNet: cifar; Vision Transformer:
    patch or conv. A convnet has no choice."""
    patch_size: int = 16
    """Side of a Vision Transformer's patches in pixels; it must divide the side of every view."""
    pre_norm: bool = False
    """Whether a Vision Transformer has a LayerNorm before its first block and patches without bias, as in CLIP."""
    pool: Literal["cls", "mean"] = "cls"
    """A Vision Transformer's representation. cls: the class token; mean: the mean of the patch tokens."""
    registers: int = 0
    """Number of a Vision Transformer's additional tokens without a patch."""
    drop_path: float = 0.0
    """Stochastic depth: probability, in [0, 1), that a branch of a transformer's last block is skipped for an image in training. It
    rises linearly from 0 over the blocks."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        stems = _stems(self.arch)
        faults.need(self.stem in stems, "model.stem", self.stem, f"of {' or '.join(stems)} with {self.arch}")
        if self._is_transformer:
            self._transformer.check(faults)
            return
        for name, only in (("pool", "cls"), ("registers", 0), ("drop_path", 0.0)):
            value = getattr(self, name)
            faults.need(value == only, f"model.{name}", value, f"of {only} with {self.arch}", "Choose a vit.")

    def check_sides(self, faults: Faults, sides: Mapping[str, int]) -> None:
        """Adds to ``faults`` each of ``sides`` (config field -> side in pixels) that the patch size does not divide."""
        for field, side in sides.items():
            if self._is_transformer:
                self._transformer.check_side(faults, field, side)

    @property
    def has_blocks(self) -> bool:
        """Whether the backbone is a transformer."""
        return self._is_transformer

    @property
    def _is_transformer(self) -> bool:
        return self.arch.startswith("vit")

    @property
    def _transformer(self) -> vit.ViTConfig:
        shared = {each.name: getattr(self, each.name) for each in fields(vit.ViTConfig)}
        return vit.ViTConfig(**shared)


def _stems(arch: str) -> tuple[str, ...]:
    match arch.partition("_")[0]:
        case "vit":
            return ("patch", "conv")
        case "wide":
            return ("cifar",)
    return ("imagenet", "cifar")


def build(config: BackboneConfig, *, image_size: int) -> ResNet | WideResNet | vit.VisionTransformer:
    """Builds the network of ``config``; a Vision Transformer gets positions for views of ``image_size`` pixels."""
    match config.arch:
        case "convnet":
            return ConvNet()
        case "wide_resnet28_2":
            return WideResNet(depth=28, width=2)
        case "resnet18" | "resnet50":
            return ResNet(config.arch, stem=config.stem)
    return vit.build(config._transformer, image_size=image_size)
