# SPDX-License-Identifier: Apache-2.0
"""A circuit over images by its name: the config of ``model.arch nac_*``, and the network that it describes."""

from dataclasses import dataclass
from typing import Literal

from recipes_lib.errors import Faults
from recipes_lib.models.layers import LayersConfig
from recipes_lib.models.nac.network import ARCHS, Arch, LinkConfig, NeuralAttentiveCircuit
from recipes_lib.models.nac.tokens import ImageTokens
from recipes_lib.models.vit import untiled


@dataclass(frozen=True, kw_only=True)
class NACConfig(LinkConfig, LayersConfig):
    """The architecture of a Neural Attentive Circuit."""

    arch: Arch = "nac_640"
    """Modules, output modules, width, propagators, heads: pico 16, 1, 32, 2, 2; nano 32, 1, 64, 3, 2; 320 has 64 output
    modules, width 384, 8 propagators, 6 heads; 640, the same and 8 heads; 960 and 1120, width 512; 1280 has 128 output
    modules, width 768, 12 heads."""
    patch_size: int = 8
    """Side of the square of pixels of a token; it must divide the side of every view."""
    stem: Literal["patch", "conv"] = "conv"
    """patch: a linear map of each patch; conv: a small ConvNeXt, as in the paper, whose patch size is a multiple of 4."""
    drop_path: float = 0.0
    """Stochastic depth: the probability that a branch of a propagator is left out for a sample, in [0, 1)."""
    initial_scale: float = 0.0
    """The value at which the vectors of ``layer_scale`` start; the paper's runs on Tiny-ImageNet start at 0.1."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        LayersConfig.check(self, faults)
        LinkConfig.check(self, faults)
        size = self.patch_size
        faults.need(size >= 1, "model.patch_size", size, "of at least 1")
        if self.stem == "conv" and size >= 1:
            hint = "The convolutional stem halves the grid twice; --model.stem patch takes any size."
            faults.need(size % 4 == 0, "model.patch_size", size, "that is a multiple of 4", hint)
        faults.need(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "in [0, 1)")
        scaled = self.layer_scale or self.initial_scale == 0
        faults.need(scaled, "model.initial_scale", self.initial_scale, "of 0 without model.layer_scale")
        if self.evaluation == "sample":
            faults.add(
                "model.evaluation = sample draws links in evaluation, for which a recipe gives no random keys: use mean "
                "or threshold."
            )

    def check_side(self, faults: Faults, field: str, side: int) -> None:
        """Adds a fault to ``faults`` if the patch size does not divide ``side``, the value of config ``field``."""
        if self.patch_size >= 1 and side >= 1 and side % self.patch_size:
            faults.add(untiled(side, self.patch_size, f"{field} = {side}"))


def build(config: NACConfig, *, image_size: int) -> NeuralAttentiveCircuit:
    """Builds the network of ``config``, with one position per token of a view of ``image_size`` pixels.

    Raises: ``ConfigError`` if ``config`` has a fault or its patches do not tile the image.
    """
    faults = Faults()
    config.check(faults)
    config.check_side(faults, "the image side", image_size)
    faults.raise_any()
    shape = ARCHS[config.arch]
    return NeuralAttentiveCircuit(
        shape,
        ImageTokens(image_size, config.patch_size, shape.width, stem=config.stem),
        link=config,
        layer_scale=config.initial_scale if config.layer_scale else None,
        drop_path=config.drop_path,
    )
