# SPDX-License-Identifier: Apache-2.0
"""Measures how much computation masking saves, for the MSN chapter."""

import statistics
import time

import torch

from recipes_lib.models import vit
from recipes_lib.views import masking

REPEATS = 7
"""Number of timed passes, masked and full each."""


def mask_cost(seed: int) -> dict[str, dict[str, float]]:
    """The cost of a ViT-Ti/16 on 224-pixel anchors with 70 % of the patches dropped, and with all patches.

    ``cost.flops_*``: FLOPs of a forward pass. ``cost.seconds_*``: seconds of a forward and backward pass, the median
    over alternating passes. ``cost.*_left``: the cost with masking divided by the cost without.
    """
    torch.set_num_threads(1)
    backbone = vit.build(vit.ViTConfig(arch="vit_tiny", patch_size=16), image_size=224)
    images = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(seed))  # (224 / 16)^2 = 196 patches
    masks = {"full": None, "masked": masking.random_keep(196, 0.7, generator=torch.Generator().manual_seed(seed))}

    def once(keep: torch.Tensor | None) -> None:
        backbone.zero_grad()
        backbone(images, keep).sum().backward()

    metrics = {}
    for name, keep in masks.items():
        once(keep)  # not timed: the first pass allocates memory
        metrics[f"flops_{name}"] = float(vit.forward_flops(backbone, images, keep))
    seconds: dict[str, list[float]] = {name: [] for name in masks}
    for _ in range(REPEATS):  # alternating, so that a busy moment of the machine slows both
        for name, keep in masks.items():
            start = time.perf_counter()
            once(keep)
            seconds[name].append(time.perf_counter() - start)
    metrics |= {f"seconds_{name}": statistics.median(times) for name, times in seconds.items()}
    metrics |= {f"{what}_left": metrics[f"{what}_masked"] / metrics[f"{what}_full"] for what in ("flops", "seconds")}
    return {"cost": {**metrics, "whole": 1.0}}
