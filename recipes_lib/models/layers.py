# SPDX-License-Identifier: Apache-2.0
"""What a transformer's blocks are made of: options that every recipe with a transformer takes."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recipes_lib.errors import Faults


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """Layers of a transformer's blocks."""

    linear: Literal["full", "switchback", "switchback_m", "switchback_q", "int8", "fp8", "fp8_switchback"] = "full"
    """What multiplies inside the blocks. full: ``nn.Linear``; the others: :func:`recipes_lib.lowbit.convert`'s kinds.
    Embeddings, norms and heads are always full."""
    layer_scale: bool = False
    """Every branch of a block is multiplied by a learned vector that starts at zero, so each block starts as the identity.
    Refused where a head has batch norm: it would meet the same class token of every image."""

    def check(self, faults: Faults) -> None:
        """Notes in ``faults`` options of blocks where there are none."""
        if self.has_blocks:
            return
        for name, only in (("linear", "full"), ("layer_scale", False)):
            value = getattr(self, name)
            faults.need(value == only, f"model.{name}", value, f"of {only} without a transformer", "Choose a vit.")

    @property
    def has_blocks(self) -> bool:
        """Whether there is a transformer."""
        return True


def refuse_equal_features(faults: Faults, config: LayersConfig) -> None:
    """Notes in ``faults`` a transformer that starts by giving every image the same features, in front of batch norm."""
    faults.need(
        not config.layer_scale,
        "model.layer_scale",
        config.layer_scale,
        "of False here",
        "It starts at zero, so every image would have the same features, and the head's batch norm would divide rounding "
        "noise by its own size.",
    )


class ZeroScale(nn.Module):
    """x * gamma with a learned gamma of zeros: [..., width] -> [..., width].

    Source: Touvron et al., "Going deeper with Image Transformers", arXiv 2103.17239, whose gamma starts small; zero:
    Wortsman et al., "Stable and low-precision training for large-scale vision-language models", arXiv 2304.13013.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))  # timm's and open_clip's name

    def forward(self, x: Tensor) -> Tensor:
        """The branch, scaled."""
        return x * self.gamma
