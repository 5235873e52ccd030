# SPDX-License-Identifier: Apache-2.0
"""A linear layer's forward and backward pass, in 8-bit integers against ``nn.Linear``, at CLIP's sizes.

``python benchmarks/switchback.py``; one thread, process time, about two minutes. Quantising the weight is counted
in every call, as in a training step without accumulation. "share of quantisation" is X, G and W to integers, timed alone,
over the whole layer's time. Where torchao is installed, ``--kinds torchao torchao-int8`` adds its int8 layer: without and
with dW in integers, which are SwitchBackQ and int8. ``bitsandbytes`` is SwitchBack with that package's product of integers,
``compiled`` SwitchBack under ``torch.compile``, which needs a C++ compiler and makes one kernel of the scaling; the times
of its reference, ``nn.Linear``, hardly change by it. ``--product``: Q(X) Q(W)^T + b alone, without gradients, against
bitsandbytes' own quantisation, product and scaling, all with a scale for each row of X and W. ``--step 4``: a ViT-B/16's whole training step on four images. A CPU
without bf16 instructions multiplies bf16 so slowly that its ratios say little.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from side_by_side import Timing, show, side_by_side
from torch import nn

from recipes_lib.lowbit import (
    Int8Linear,
    SwitchBackLinear,
    SwitchBackMLinear,
    SwitchBackQLinear,
    convert,
    quantize,
)
from recipes_lib.lowbit.matmul import default_backend, product
from recipes_lib.models import vit
from recipes_lib.optim import StableAdamW

KINDS = {
    "SwitchBack": SwitchBackLinear,
    "SwitchBackM": SwitchBackMLinear,
    "SwitchBackQ": SwitchBackQLinear,
    "int8": Int8Linear,
    "bitsandbytes": partial(SwitchBackLinear, backend="bitsandbytes"),
    "compiled": SwitchBackLinear,
}
PEERS = {"torchao": False, "torchao-int8": True}
"""torchao's layer by whether dW is made in integers too."""


def measure(
    tokens: int, width: int, out: int, dtype: torch.dtype, kinds: list[str], device: str, rounds: int
) -> tuple[dict[str, Timing], float]:
    """The timings of ``nn.Linear`` and of each kind, and SwitchBack's share of quantisation."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator).to(device, dtype).requires_grad_()
    grad = torch.randn(tokens, out, generator=generator).to(device, dtype)
    plain = nn.Linear(width, out, device=device, dtype=dtype)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def rival(layer: nn.Linear):
        def call() -> None:
            torch.autograd.grad(layer(x), (x, *layer.parameters()), grad)
            wait()

        return call

    def quantise() -> None:
        quantize.rows(x.detach())
        quantize.rows(grad)
        quantize.tensor(plain.weight.detach())
        wait()

    rivals = {"nn.Linear": rival(plain), "quantisation": quantise}
    for name in kinds:
        layer = nn.Linear(width, out, device=device, dtype=dtype) if name in PEERS else None
        made = _torchao(layer, PEERS[name]) if layer else KINDS[name](width, out, device=device, dtype=dtype)
        rivals[name] = rival(torch.compile(made) if name == "compiled" else made)
    clock = time.perf_counter if device == "cuda" else time.process_time
    timings = side_by_side(rivals, rounds=rounds, reference="nn.Linear", clock=clock)
    return timings, timings.pop("quantisation").seconds / timings[kinds[0]].seconds


@torch.no_grad()
def products(tokens: int, width: int, out: int, dtype: torch.dtype, device: str, rounds: int) -> dict[str, Timing]:
    """The timings of Y alone: by ``nn.Linear``, by our product, and by bitsandbytes' operations."""
    from bitsandbytes.functional import int8_vectorwise_quant

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator).to(device, dtype)
    plain = nn.Linear(width, out, device=device, dtype=dtype)
    weight, bias = plain.weight.detach(), plain.bias.detach()
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def ours() -> None:
        right = quantize.rows(weight).T
        product(x, right, dtype=dtype, backend=default_backend(x.device), bias=bias, name="x")
        wait()

    def theirs() -> None:
        (left, left_scale, _), (right, right_scale, _) = int8_vectorwise_quant(x), int8_vectorwise_quant(weight)
        torch.ops.bitsandbytes.int8_scaled_mm(left, right, left_scale, right_scale, bias=bias, dtype=dtype)
        wait()

    rivals = {"nn.Linear": lambda: (plain(x), wait()), "ours": ours, "bitsandbytes": theirs}
    clock = time.perf_counter if device == "cuda" else time.process_time
    return side_by_side(rivals, rounds=rounds, reference="nn.Linear", clock=clock)


def _torchao(layer: nn.Linear, grad_weight: bool) -> nn.Module:
    """torchao's layer in the place of ``layer``. By ``module_swap``: by its other way 0.18 stays in full precision."""
    from torchao import quantize_
    from torchao.prototype.quantized_training import Int8MixedPrecisionTrainingConfig

    model = nn.Sequential(layer)
    quantize_(model, Int8MixedPrecisionTrainingConfig(grad_weight=grad_weight, module_swap=True))
    return model[0]


def training_step(kind: str, images: int, device: str, rounds: int) -> dict[str, Timing]:
    """The timings of a ViT-B/16's whole step (forward, backward, StableAdamW) in float32, with ``nn.Linear`` and with ``kind``."""
    pictures = torch.randn(images, 3, 224, 224, device=device)

    def rival(low_bit: bool):
        model = vit.build(vit.ViTConfig(arch="vit_base"), image_size=224).to(device)
        if low_bit:
            convert(model, kind)
        optimizer = StableAdamW(model.parameters(), lr=1e-4)

        def call() -> None:
            model(pictures).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()

        return call

    clock = time.perf_counter if device == "cuda" else time.process_time
    rivals = {"nn.Linear": rival(False), kind: rival(True)}
    return side_by_side(rivals, rounds=rounds, reference="nn.Linear", clock=clock)


def main() -> None:
    """Prints a table of times, and lines of speed-ups."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096])
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 1280])
    parser.add_argument("--expansion", type=int, default=4, help="the layer's output is this many times as wide")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--kinds", nargs="+", default=["SwitchBack"], choices=[*KINDS, *PEERS])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", type=int, metavar="IMAGES", help="a ViT-B/16's whole training step instead")
    parser.add_argument("--product", action="store_true", help="Y alone, against bitsandbytes' operations")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.step:
        timings = training_step("switchback", asked.step, asked.device, asked.rounds)
        show("a training step", {f"ViT-B/16, {asked.step} images": timings})
        return
    cases, shares = {}, {}
    for tokens in asked.tokens:
        for width in asked.widths:
            for dtype in asked.dtypes:
                out = width * asked.expansion
                case, of = f"{tokens}x{width}x{out} {dtype}", (tokens, width, out, getattr(torch, dtype))
                if asked.product:
                    cases[case] = products(*of, asked.device, asked.rounds)
                else:
                    cases[case], shares[case] = measure(*of, asked.kinds, asked.device, asked.rounds)
    if asked.product:
        show("the forward product of a linear layer", cases)
        return
    show("forward and backward of a linear layer", cases)
    for case, timings in cases.items():
        gains = ", ".join(f"{name} {1 / timings[name].ratio:.2f}" for name in asked.kinds)
        Console(width=110).print(
            f"{case}: times the speed of nn.Linear: {gains}; share of quantisation {shares[case]:.2f}"
        )
    if "bfloat16" in asked.dtypes and asked.device == "cpu" and not _has_bf16():
        Console(width=110).print("This CPU has no bf16 instructions: its bfloat16 ratios do not carry over.")


def _has_bf16() -> bool:
    flags = Path("/proc/cpuinfo")
    return not flags.exists() or "avx512_bf16" in flags.read_text() or "amx_bf16" in flags.read_text()


if __name__ == "__main__":
    main()
