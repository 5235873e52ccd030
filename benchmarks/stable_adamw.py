# SPDX-License-Identifier: Apache-2.0
"""A step of StableAdamW against torch's AdamW, fused and foreach, and torch-optimi's StableAdamW.

``python benchmarks/stable_adamw.py``; one thread, half a minute. The tensors are those of a timm ViT with gradients as they are. Each
rival has weights and a state of its own, so that none finds another's in the cache. AdamW does not clip: it is
what the clipping may cost. The goals: at most twice AdamW's fused step, at most torch-optimi's. ``--dtype bfloat16``:
weights in half precision, with and without Kahan's sum.
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


def weights(arch: str, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """A network's parameters with gradients of very different sizes."""
    torch.manual_seed(0)
    parameters = list(timm.create_model(arch, num_classes=0).to(dtype).parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * torch.rand(()).mul(-12).exp()
    return parameters


def rivals(arch: str, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Each rival's step."""
    same = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.2}
    optimi_same = {**same, "triton": False, "kahan_sum": dtype != torch.float32}

    def fresh() -> list[nn.Parameter]:
        return weights(arch, dtype)

    found = {
        "StableAdamW": StableAdamW(fresh(), **same).step,
        "AdamW, fused": torch.optim.AdamW(fresh(), **same, fused=True).step,
        "AdamW, foreach": torch.optim.AdamW(fresh(), **same, foreach=True).step,
        "torch-optimi, foreach": optimi.StableAdamW(fresh(), **optimi_same, foreach=True).step,
        "torch-optimi, one by one": optimi.StableAdamW(fresh(), **optimi_same, foreach=False).step,
    }
    if dtype != torch.float32:
        found["StableAdamW, Kahan's sum"] = StableAdamW(fresh(), **same, kahan=True).step
    return found


def main() -> None:
    """Prints a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=["vit_tiny_patch16_224", "vit_small_patch16_224"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = {
        arch: side_by_side(
            rivals(arch, getattr(torch, options.dtype)),
            rounds=options.rounds,
            reference="AdamW, fused",
            warm_up=2,
            clock=time.process_time,
        )
        for arch in options.archs
    }
    show(f"One optimiser step, {options.dtype}, one thread; load {os.getloadavg()[0]:.0f}", cases)


if __name__ == "__main__":
    main()
