# SPDX-License-Identifier: Apache-2.0
"""What the MSN chapter measures beyond MSN's own runs: what masking saves."""

import statistics
import time

import torch

from recipes_lib.models import vit
from recipes_lib.views import masking

REPEATS = 7
"""Timed passes of each kind."""


def mask_cost(seed: int) -> dict[str, dict[str, float]]:
    """A ViT-Ti/16 on 224-pixel anchors with 70 % of the patches dropped, against none.

    ``cost.flops_*``: FLOPs of a forward pass; ``cost.seconds_*``: forward and backward, the median of alternating
    passes; ``cost.*_left``: masked over full.
    """
    torch.set_num_threads(1)
    backbone = vit.build(vit.ViTConfig(arch="vit_tiny", patch_size=16), image_size=224)
    images = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    masks = {"full": None, "masked": masking.random_keep(196, 0.7, generator=torch.Generator().manual_seed(seed))}

    def once(keep: torch.Tensor | None) -> None:
        backbone.zero_grad()
        backbone(images, keep).sum().backward()

    metrics = {}
    for name, keep in masks.items():
        once(keep)  # the first pass allocates
        metrics[f"flops_{name}"] = float(vit.forward_flops(backbone, images, keep))
    seconds: dict[str, list[float]] = {name: [] for name in masks}
    for _ in range(REPEATS):  # alternating, so that a busy moment meets both
        for name, keep in masks.items():
            start = time.perf_counter()
            once(keep)
            seconds[name].append(time.perf_counter() - start)
    metrics |= {f"seconds_{name}": statistics.median(times) for name, times in seconds.items()}
    metrics |= {f"{what}_left": metrics[f"{what}_masked"] / metrics[f"{what}_full"] for what in ("flops", "seconds")}
    return {"cost": {**metrics, "whole": 1.0}}
