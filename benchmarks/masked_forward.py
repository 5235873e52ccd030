# SPDX-License-Identifier: Apache-2.0
"""What dropping patches saves: forward and backward of a ViT of 196 patches, against mask tokens in their place.

``python benchmarks/masked_forward.py``; one thread, about two minutes.
"""

import argparse

import torch
from rich.console import Console
from rich.table import Table
from side_by_side import Timing, show, side_by_side
from torch import Tensor, nn

from recipes_lib.models import vit
from recipes_lib.views.masking import keep_count

PATCHES = 196
RATIOS = (0.0, 0.15, 0.5, 0.7)


class MaskTokens(vit.VisionTransformer):
    """The same network fed a learned token where a patch is masked: SimMIM's way, for comparison."""

    def __init__(self, shape: vit.Shape, keep: Tensor) -> None:
        super().__init__(shape, image_size=224, patch_size=16, stem="patch")
        self.mask_token = nn.Parameter(torch.zeros(shape.width))
        visible = torch.zeros(PATCHES, 1, dtype=torch.bool)
        visible[keep] = True
        self.register_buffer("visible", visible)

    def _embed(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed.proj(images).flatten(2).mT
        return torch.where(self.visible, tokens, self.mask_token) + self.pos_embed[:, 1:]


def measure(arch: str, batch: int, rounds: int) -> dict[str, dict[str, Timing]]:
    """Times the two networks at each ratio, and prints their operations."""
    shape, images = vit.ARCHS[arch], torch.randn(batch, 3, 224, 224)
    counted = Table(title=f"{arch}: share of the unmasked forward's operations, counted")
    for column in ("mask ratio", "kept patches", "patches dropped", "mask tokens"):
        counted.add_column(column, justify="right")
    cases = {}
    for ratio in RATIOS:
        keep = torch.randperm(PATCHES)[: keep_count(PATCHES, ratio)]
        dropping = vit.VisionTransformer(shape, image_size=224, patch_size=16, stem="patch")
        masking = MaskTokens(shape, keep)
        whole = vit.forward_flops(dropping, images[:1])
        shares = (vit.forward_flops(dropping, images[:1], keep) / whole, vit.forward_flops(masking, images[:1]) / whole)
        counted.add_row(f"{ratio}", f"{len(keep)}", *(f"{share:.3f}" for share in shares))
        cases[f"mask ratio {ratio}"] = side_by_side(
            {
                "mask tokens": lambda net=masking: net(images).square().mean().backward(),
                "patches dropped": lambda net=dropping, keep=keep: net(images, keep).square().mean().backward(),
            },
            rounds=rounds,
            reference="mask tokens",
        )
    Console(width=110).print(counted)
    return cases


def main() -> None:
    """Prints operations and times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="vit_tiny", choices=vit.ARCHS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = measure(arguments.arch, arguments.batch, arguments.rounds)
    show(
        f"{arguments.arch}, 224 pixels, forward and backward, one thread, batch {arguments.batch}",
        cases,
        per_call=dict.fromkeys(cases, arguments.batch),
    )


if __name__ == "__main__":
    main()
