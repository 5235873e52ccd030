# SPDX-License-Identifier: Apache-2.0
"""Options of a transformer's blocks, which every recipe with a transformer takes."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recipes_lib.errors import Faults


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """The layers of a transformer's blocks."""

    linear: Literal["full", "switchback", "switchback_m", "switchback_q", "int8", "fp8", "fp8_switchback"] = "full"
    """The linear layers inside the blocks. full: ``nn.Linear``; the others: the kinds of
    :func:`recipes_lib.lowbit.convert`. Embeddings, norms and heads are always in full precision."""
    layer_scale: bool = False
    """Whether each branch of a block is multiplied by a learned vector that starts at zero, so that each block starts
    as the identity. It is refused if a head has batch norm: at the start all images would have the same class token."""

    def check(self, faults: Faults) -> None:
        """Adds to ``faults`` each of these options that is set although the backbone has no blocks."""
        if self.has_blocks:
            return
        for name, only in (("linear", "full"), ("layer_scale", False)):
            value = getattr(self, name)
            faults.need(value == only, f"model.{name}", value, f"of {only} without a transformer", "Choose a vit.")

    @property
    def has_blocks(self) -> bool:
        """Whether the backbone is a transformer, which has blocks."""
        return True


def refuse_equal_features(faults: Faults, config: LayersConfig) -> None:
    """Adds to ``faults`` the option ``layer_scale``, with which all images have equal features at the start.

    Call it for recipes whose head has batch norm.
    """
    faults.need(
        not config.layer_scale,
        "model.layer_scale",
        config.layer_scale,
        "of False here",
        "It starts at zero, so every image would have the same features, and the head's batch norm would divide rounding "
        "noise by its own size.",
    )


class ZeroScale(nn.Module):
    """LayerScale: x * gamma with a learned vector gamma that starts at zero.  [..., width] -> [..., width]

    Source: Touvron et al., "Going deeper with Image Transformers", arXiv 2103.17239, whose gamma starts small. Wortsman
    et al., "Stable and low-precision training for large-scale vision-language models", arXiv 2304.13013, start at zero.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))  # timm's and open_clip's name

    def forward(self, x: Tensor) -> Tensor:
        """The branch ``x`` times gamma.  [..., width] -> [..., width]"""
        return x * self.gamma
