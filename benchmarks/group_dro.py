# SPDX-License-Identifier: Apache-2.0
"""The mean losses of groups at once against a loop over groups, and a step of group DRO against one of the mean loss.

``python benchmarks/group_dro.py``; one thread, float32. The first part has 128 losses, forward and backward; the second
trains the toy's network on batches of 64 pictures of 32 px, and the ratio is the time of a step of group DRO over that of
the mean loss (goal 1 / .97 = 1.03).
"""

import argparse
import time

import torch
import torch.nn.functional as F
from side_by_side import Timing, show, side_by_side
from torch import Tensor

from recipes_lib.models.convnet import ConvNet
from recipes_lib.objectives import group_dro


def looped(losses: Tensor, groups: Tensor, count: int) -> list[Tensor]:
    """The mean loss of each group, one group after the other."""
    members = [losses[groups == group] for group in range(count)]
    return [some.mean() if len(some) else losses.new_zeros(()) for some in members]


def means(count: int, rounds: int, calls: int) -> dict[str, Timing]:
    """Compares both ways to mean losses of ``count`` groups."""
    g = torch.Generator().manual_seed(0)
    losses = torch.rand(128, generator=g).requires_grad_()
    groups = torch.randint(count, (128,), generator=g)

    def at_once() -> None:
        for _ in range(calls):
            group_dro.group_losses(losses, groups, count).mean.sum().backward()

    def in_a_loop() -> None:
        for _ in range(calls):
            torch.stack(looped(losses, groups, count)).sum().backward()

    rivals = {"at once": at_once, "loop": in_a_loop}
    return side_by_side(rivals, rounds=rounds, reference="at once", clock=time.process_time)


def step(rounds: int, calls: int) -> dict[str, Timing]:
    """Compares a step of group DRO with one of the mean loss."""
    g = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 3, 32, 32, generator=g), torch.randint(2, (64,), generator=g)
    groups = 2 * labels + torch.randint(2, (64,), generator=g)
    network = torch.nn.Sequential(ConvNet(), torch.nn.Linear(128, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    q = group_dro.uniform_weights(4)

    def train(robust: bool) -> None:
        nonlocal q
        for _ in range(calls):
            optimizer.zero_grad()
            each = F.cross_entropy(network(images), labels, reduction="none")
            if robust:
                found = group_dro.group_losses(each, groups, 4)
                q = group_dro.update_weights(q, found, 0.01)
                group_dro.robust_loss(found, q).backward()
            else:
                each.mean().backward()
            optimizer.step()

    rivals = {"mean loss": lambda: train(False), "group DRO": lambda: train(True)}
    return side_by_side(rivals, rounds=rounds, reference="mean loss", clock=time.process_time)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 64, 1024])
    arguments = parser.parse_args()
    show(
        "mean losses of groups",
        {f"{count} groups": means(count, arguments.rounds, max(2, 400 // count)) for count in arguments.groups},
    )
    show("a step", {"64 pictures, 4 groups": step(arguments.rounds, calls=5)})
