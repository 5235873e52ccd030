# SPDX-License-Identifier: Apache-2.0
"""Builds a backbone of any kind by its name, for recipes that work with every backbone."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from recipes_lib.errors import Faults
from recipes_lib.models import convit, convnet, tcnn, vit
from recipes_lib.models.convnet import ConvNet
from recipes_lib.models.layers import LayersConfig
from recipes_lib.models.nac import backbone as nac
from recipes_lib.models.nac.network import NeuralAttentiveCircuit
from recipes_lib.models.resnet import ResNet
from recipes_lib.models.resnet_rs import ResNetRS
from recipes_lib.models.wide_resnet import WideResNet

Arch = Literal[
    "convnet",
    "convnet_small",
    "resnet18",
    "resnet50",
    "resnetrs50",
    "wide_resnet28_2",
    "vit_pico",
    "vit_nano",
    "vit_tiny",
    "vit_small",
    "vit_base",
    "vit_large",
    "vit_huge",
    "convit_pico",
    "convit_nano",
    "convit_tiny",
    "convit_small",
    "convit_base",
    "convit_tiny_plus",
    "convit_small_plus",
    "convit_base_plus",
    "tcnn_convnet_small",
    "tcnn_resnet18",
    "tcnn_resnet50",
    "tcnn_resnetrs50",
    "nac_pico",
    "nac_nano",
    "nac_320",
    "nac_640",
    "nac_960",
    "nac_1120",
    "nac_1280",
]
Stem = Literal["imagenet", "cifar", "patch", "conv"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(LayersConfig):
    """The architecture of a convnet, a ResNet, a wide ResNet, a Vision Transformer, a ConViT, a T-CNN or a circuit of modules."""

    arch: Arch = "resnet50"
    """convnet: four convolutions; convnet_small: five narrow ones, with larger feature maps. The numbers of a wide ResNet are
    its depth and its width factor. A T-CNN (tcnn) is the network of the same name with its last convolutions as attention. The
    number of a circuit (nac) is that of its modules (:data:`recipes_lib.models.nac.network.ARCHS`)."""
    stem: Stem = "imagenet"
    """The first layers. ResNet: imagenet, or cifar (for images of 32 pixels); ResNet-RS: imagenet; wide ResNet: cifar; Vision
    Transformer and circuit: patch or conv; ConViT: patch; T-CNN: as the network that it starts from. A convnet has no choice."""
    patch_size: int = 16
    """Side of a transformer's patches in pixels; it must divide the side of every view."""
    pre_norm: bool = False
    """Whether a Vision Transformer has a LayerNorm before its first block and patches without bias, as in CLIP."""
    pool: Literal["cls", "mean"] = "cls"
    """A transformer's representation. cls: the class token; mean: the mean of the patch tokens."""
    registers: int = 0
    """Number of a Vision Transformer's additional tokens without a patch."""
    drop_path: float = 0.0
    """Stochastic depth: probability, in [0, 1), that a branch of a transformer's last block is skipped for an image in training. It
    rises linearly from 0 over the blocks; in a circuit it is the same in all of them."""
    gpsa_layers: int | None = None
    """Number of a ConViT's blocks, from the first on, whose attention starts as a convolution. None: all but the last two
    of 12, as in the paper, and all but the last of fewer; 0 is a plain Vision Transformer."""
    locality_strength: float | None = None
    """How sharply each head of a ConViT or T-CNN looks at one neighbour at the start, above 0. None: 1 for a ConViT; for a T-CNN 40
    with gate linear, 10 with gate near."""
    gate: Literal["linear", "near"] = "linear"
    """The gates of a T-CNN. linear: the parameter itself, which starts at 1, exactly the convolution; near: its sigmoid."""
    gate_logit: float = 10.0
    """The parameter of a T-CNN's gates at the start with gate near, at most 16; 4 lets them open sooner, 1 is ConViT's value."""
    head_dim: int = 8
    """Dimensions of the queries and keys of each of a T-CNN's heads."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        stems = _stems(self.arch)
        faults.need(self.stem in stems, "model.stem", self.stem, f"of {' or '.join(stems)} with {self.arch}")
        own = _options(self.arch)
        for name, (only, of) in _OPTIONS.items():
            value = getattr(self, name)
            fine = name in own or value in only
            faults.need(fine, f"model.{name}", value, f"of {only[0]} with {self.arch}", f"Choose {of}.")
        if self._own is not None:
            self._own.check(faults)

    def check_sides(self, faults: Faults, sides: Mapping[str, int]) -> None:
        """Adds to ``faults`` each of ``sides`` (config field -> side in pixels) that the patch size does not divide."""
        for field, side in sides.items() if _has_patches(self.arch) else ():
            self._own.check_side(faults, field, side)

    @property
    def has_blocks(self) -> bool:
        """Whether the backbone is a transformer."""
        return _has_patches(self.arch)

    @property
    def drops_patches(self) -> bool:
        """Whether the backbone can leave out patches, for masked training."""
        return _kind(self.arch) == "vit"

    @property
    def _own(self) -> Any:
        """The config of the network's own kind, or None if it has none; a recipe's config may have more of its fields."""
        kinds: dict[str, Any] = {"vit": vit.ViTConfig, "convit": convit.ConViTConfig, "tcnn": tcnn.TCNNConfig}
        kinds["nac"] = nac.NACConfig
        kind = kinds.get(_kind(self.arch))
        if kind is None:
            return None
        known = {each.name: getattr(self, each.name) for each in fields(self)}
        return kind(**{each.name: known[each.name] for each in fields(kind) if known.get(each.name) is not None})


_OPTIONS: dict[str, tuple[tuple[Any, ...], str]] = {
    "pool": (("cls",), "a vit or a convit"),
    "registers": ((0,), "a vit"),
    "drop_path": ((0.0,), "a vit, a convit or a nac"),
    "gpsa_layers": ((None,), "a convit"),
    "locality_strength": ((None, 1.0), "a convit or a tcnn"),  # 1.0 stands in the files of earlier runs
    "gate": (("linear",), "a tcnn"),
    "gate_logit": ((10.0,), "a tcnn"),
    "head_dim": ((8,), "a tcnn"),
}
"""Options that only some architectures have: their values with the others, and the architectures that have them."""


def _kind(arch: str) -> str:
    return arch.partition("_")[0]


def _has_patches(arch: str) -> bool:
    return _kind(arch) in ("vit", "convit", "nac")


def _options(arch: str) -> tuple[str, ...]:
    match _kind(arch):
        case "vit":
            return ("pool", "registers", "drop_path")
        case "convit":
            return ("pool", "drop_path", "gpsa_layers", "locality_strength")
        case "nac":
            return ("drop_path",)
        case "tcnn":
            return ("locality_strength", "gate", "gate_logit", "head_dim")
    return ()


def _stems(arch: str) -> tuple[str, ...]:
    match _kind(arch):
        case "vit" | "nac":
            return ("patch", "conv")
        case "convit":
            return ("patch",)
        case "wide":
            return ("cifar",)
        case "resnetrs50":
            return ("imagenet",)
        case "tcnn":
            return _stems(arch.removeprefix("tcnn_"))
    return ("imagenet", "cifar")


def build(
    config: BackboneConfig, *, image_size: int
) -> ResNet | ResNetRS | WideResNet | ConvNet | vit.VisionTransformer | convit.ConViT | NeuralAttentiveCircuit:
    """Builds the network of ``config``; a transformer gets positions for views of ``image_size`` pixels."""
    match config.arch:
        case "convnet":
            return ConvNet()
        case "convnet_small":
            return convnet.small()
        case "wide_resnet28_2":
            return WideResNet(depth=28, width=2)
        case "resnet18" | "resnet50":
            return ResNet(config.arch, stem=config.stem)
        case "resnetrs50":
            return ResNetRS()
    match _kind(config.arch):
        case "tcnn":
            return tcnn.build(config._own)
        case "convit":
            return convit.build(config._own, image_size=image_size)
        case "nac":
            return nac.build(config._own, image_size=image_size)
    return vit.build(config._own, image_size=image_size)
