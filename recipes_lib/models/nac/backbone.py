# SPDX-License-Identifier: Apache-2.0
"""A circuit over images by its name: the config of ``model.arch nac_*``, and the network that it describes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn

from recipes_lib.errors import ConfigError, Faults, RunError
from recipes_lib.models.layers import LayersConfig
from recipes_lib.models.nac.circuit import LearnedCircuit
from recipes_lib.models.nac.network import ARCHS, Arch, LinkConfig, NeuralAttentiveCircuit, Shape
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


def described(network: NeuralAttentiveCircuit) -> dict[str, Any]:
    """What :func:`of_description` needs to build a circuit over images again, in words and numbers that JSON has.

    Raises: ``RunError`` for a circuit over something else than images, or one that texts generate.
    """
    tokens, shape = network.tokens, network.shape
    if not isinstance(tokens, ImageTokens) or not isinstance(network.circuit, LearnedCircuit):
        raise RunError(
            "There is no layout for a circuit that does not read images alone; its weights are in the run folder."
        )
    return {
        "shape": shape,
        "image_size": tokens.positions.shape[-1] * tokens.patch_size,
        "patch_size": tokens.patch_size,
        "stem": "patch" if isinstance(tokens.stem, nn.Conv2d) else "conv",
        "layer_scale": not isinstance(network.blocks[0].scale1, nn.Identity),
        "link": {each.name: getattr(network.link, each.name) for each in fields(LinkConfig)},
    }


def of_description(own: Mapping[str, Any]) -> NeuralAttentiveCircuit:
    """The circuit that :func:`described` described, with first weights. Raises: ``RunError`` naming what does not fit."""
    sizes, link = own.get("shape"), own.get("link")
    counts = [*sizes] if isinstance(sizes, list) and len(sizes) == len(Shape._fields) else [None]
    counts += [own.get("image_size"), own.get("patch_size")]
    if not all(isinstance(each, int) and not isinstance(each, bool) and each >= 1 for each in counts):
        raise RunError(
            f"config.json has shape = {sizes!r}, image_size = {counts[-2]!r} and patch_size = {counts[-1]!r}; counts of "
            f"{', '.join(Shape._fields)} and two sides are wanted."
        )
    if own.get("stem") not in ("patch", "conv") or not isinstance(own.get("layer_scale"), bool):
        raise RunError(
            f"config.json has stem = {own.get('stem')!r} and layer_scale = {own.get('layer_scale')!r}; patch or conv, and true or false are wanted."
        )
    names = [each.name for each in fields(LinkConfig)]
    if not isinstance(link, dict) or set(link) != set(names):
        raise RunError(f"config.json has link = {link!r}; {', '.join(names)} are wanted.")
    shape, faults = Shape(*sizes), Faults()
    try:
        LinkConfig(**link).check(faults, "link")
        faults.raise_any()
        tokens = ImageTokens(*counts[-2:], shape.width, stem=own["stem"])
    except (ConfigError, TypeError) as error:
        raise RunError(f"config.json does not describe a circuit: {str(error).splitlines()[0]}") from None
    return NeuralAttentiveCircuit(
        shape, tokens, link=LinkConfig(**link), layer_scale=0.0 if own["layer_scale"] else None
    )
