# SPDX-License-Identifier: Apache-2.0
"""A step of StableAdamW against torch's AdamW, foreach and fused, and torch-optimi's StableAdamW.

``python benchmarks/stable_adamw.py``; one thread, half a minute. The tensors are those of a timm ViT with gradients as they are. Each
rival has weights and a state of its own, so that none finds another's in the cache. AdamW does not clip: it is
what the clipping may cost. The goals: at most 1.15 times AdamW's foreach step, at most torch-optimi's.
"""

import argparse
import os
import time
from collections.abc import Callable

import optimi
import timm
import torch
from side_by_side import show, side_by_side
from torch import nn

from recipes_lib.optim import StableAdamW


def weights(arch: str) -> list[nn.Parameter]:
    """A network's parameters with gradients of very different sizes."""
    torch.manual_seed(0)
    parameters = list(timm.create_model(arch, num_classes=0).parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * torch.rand(()).mul(-12).exp()
    return parameters


def rivals(arch: str) -> dict[str, Callable[[], object]]:
    """Each rival's step."""
    same = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.2}
    return {
        "StableAdamW": StableAdamW(weights(arch), **same).step,
        "AdamW, foreach": torch.optim.AdamW(weights(arch), **same, foreach=True).step,
        "AdamW, fused": torch.optim.AdamW(weights(arch), **same, fused=True).step,
        "torch-optimi, foreach": optimi.StableAdamW(weights(arch), **same, triton=False, foreach=True).step,
        "torch-optimi, one by one": optimi.StableAdamW(weights(arch), **same, triton=False, foreach=False).step,
    }


def main() -> None:
    """Prints a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=["vit_tiny_patch16_224", "vit_small_patch16_224"])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = {
        arch: side_by_side(
            rivals(arch), rounds=options.rounds, reference="AdamW, foreach", warm_up=2, clock=time.process_time
        )
        for arch in options.archs
    }
    show(f"One optimiser step, float32, one thread; load {os.getloadavg()[0]:.0f}", cases)


if __name__ == "__main__":
    main()
