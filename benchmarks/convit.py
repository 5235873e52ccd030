# SPDX-License-Identifier: Apache-2.0
"""ConViT against timm's with the same weights: one GPSA layer, and the whole network beside a ViT of the same size.

``python benchmarks/convit.py``; one thread, some minutes. It checks first that both give the same features.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import timm
import torch
from side_by_side import Timing, show, side_by_side
from torch import Tensor

from recipes_lib.models import convit

Rivals = dict[str, Callable[[], Tensor]]


def rivals(arch: str, images: Tensor, patch_size: int) -> dict[str, Rivals]:
    """Forward passes of ours and timm's first GPSA layer, and of both networks and a ViT of the same size."""
    torch.manual_seed(0)
    side, place = images.shape[-1], {"device": images.device, "dtype": images.dtype}
    config = convit.ConViTConfig(arch=arch, patch_size=patch_size, drop_path=0.0)
    ours = convit.build(config, image_size=side).to(**place)
    plain = convit.build(replace(config, gpsa_layers=0), image_size=side).to(**place)
    width, depth, heads = ours.shape
    how = {"embed_dim": width // heads, "num_heads": heads, "depth": depth, "local_up_to_layer": ours.gpsa_layers}
    how |= {"img_size": side, "patch_size": patch_size, "num_classes": 0}
    theirs = timm.create_model("convit_base", **how).to(**place)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        tolerance = 1e-4 if images.dtype == torch.float32 else 0.1
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=tolerance)
    grid = ours.grid(images)
    tokens = torch.randn(len(images), grid[0] * grid[1], width, **place)
    mine, other = ours.blocks[0].attn, theirs.blocks[0].attn
    return {
        "GPSA layer": {"timm": lambda: other(tokens), "ours": lambda: mine(tokens, grid)},
        "network": {"timm": lambda: theirs(images), "ours": lambda: ours(images), "ViT": lambda: plain(images)},
    }


def measure(arch: str, images: Tensor, patch_size: int, rounds: int) -> dict[str, dict[str, Timing]]:
    """Times forward passes, and forward and backward passes together."""
    clock = time.process_time if images.device.type == "cpu" else time.perf_counter
    cases = {}
    for part, calls in rivals(arch, images, patch_size).items():
        for name, backward in (("forward", False), ("both passes", True)):
            timed = {rival: _timed(call, backward, images.device) for rival, call in calls.items()}
            cases[f"{arch}, {part}, {name}"] = side_by_side(timed, rounds=rounds, reference="timm", clock=clock)
    return cases


def _timed(call: Callable[[], Tensor], backward: bool, device: torch.device) -> Callable[[], None]:
    def run() -> None:
        with torch.set_grad_enabled(backward):
            out = call()
        if backward:
            out.float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def main() -> None:
    """Prints times, and images a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archs", nargs="+", default=["convit_tiny", "convit_small"], choices=convit.ARCHS)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    shape = (given.batch, 3, given.image_size, given.image_size)
    images, cases = torch.randn(shape, device=given.device, dtype=getattr(torch, given.dtype)), {}
    for arch in given.archs:
        cases |= measure(arch, images, given.patch_size, given.rounds)
    title = f"ConViT, {given.image_size} pixels, batch {given.batch}, {given.dtype} on {given.device}"
    show(title, cases, per_call=dict.fromkeys(cases, given.batch))


if __name__ == "__main__":
    main()
