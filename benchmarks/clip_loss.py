# SPDX-License-Identifier: Apache-2.0
"""CLIP's loss, forward and backward, against open_clip's; and the memory of n x N logits a rank against N x N.

``python benchmarks/clip_loss.py``; one thread a process, one to three minutes. All compute the same number (``tests/peers``).
The time is of one rank with 512 pairs of 128 dimensions. The memory is of each of 4 ranks with 512 pairs (2,048 in
all): the tensors that the forward pass keeps for the backward pass, for ours, open_clip's ``local_loss`` and open_clip's
full loss.
"""

import time
import warnings

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from rich.console import Console
from side_by_side import show, side_by_side

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives.image_text import INITIAL_LOG_SCALE, clip_loss

PAIRS, DIM, RANKS = 512, 128, 4


def losses() -> dict[str, object]:
    """Each rival: images, texts, log scale -> loss."""
    place = {"rank": collectives.rank(), "world_size": collectives.world_size()}
    local = ClipLoss(local_loss=True, gather_with_grad=True, **place)
    full = ClipLoss(local_loss=False, gather_with_grad=True, **place)
    return {
        "ours": lambda f, g, a: clip_loss(f, g, a)["loss"],
        "open_clip, local": lambda f, g, a: local(f, g, a.exp()),
        "open_clip, full": lambda f, g, a: full(f, g, a.exp()),
    }


def inputs() -> list[torch.Tensor]:
    """Normalised pairs and the scale, as leaves."""
    torch.manual_seed(collectives.rank())
    rows = [F.normalize(torch.randn(PAIRS, DIM), dim=1) for _ in range(2)]
    return [x.requires_grad_() for x in (*rows, torch.tensor(INITIAL_LOG_SCALE))]


def memory_of_a_step() -> dict[str, float]:
    """MiB of tensors that each rival's forward pass keeps for its backward pass, on this rank."""
    warnings.simplefilter("ignore", FutureWarning)  # torch.distributed.nn, which open_clip gathers with
    leaves, needed = inputs(), {}
    for name, loss in losses().items():
        kept: dict[int, int] = {}

        def note(x: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = x.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()  # views of one tensor count once
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            value = loss(*leaves)
        torch.autograd.grad(value, leaves)
        needed[name] = sum(kept.values()) / 2**20
        collectives.barrier()
    return needed


def main() -> None:
    """Prints the ratio of the times and a table of the memory."""
    torch.set_num_threads(1)
    leaves = inputs()
    rivals = {name: loss for name, loss in losses().items() if name != "open_clip, local"}  # alike on one rank
    timings = side_by_side(
        {name: lambda loss=loss: torch.autograd.grad(loss(*leaves), leaves) for name, loss in rivals.items()},
        rounds=41,
        reference="open_clip, full",
        warm_up=5,
        clock=time.process_time,
    )
    case = f"{PAIRS} pairs, d = {DIM}"
    show("CLIP loss, forward and backward, float32, one thread", {case: timings}, per_call={case: PAIRS})
    worst: dict[str, float] = {}
    for needed in run_ranks(memory_of_a_step, RANKS, max_seconds=240):
        worst = {name: max(mib, worst.get(name, 0.0)) for name, mib in needed.items()}
    lines = [f"{name}: {mib:.1f} MiB" for name, mib in worst.items()]
    Console().print(f"kept for the backward pass, {RANKS} ranks of {PAIRS} pairs, the worst rank: {', '.join(lines)}")


if __name__ == "__main__":
    main()
