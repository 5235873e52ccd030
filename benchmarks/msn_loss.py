# SPDX-License-Identifier: Apache-2.0
"""MSN's loss, forward and backward, against lightly's at the paper's sizes: 64 images, 11 views, 1024 prototypes.

``python benchmarks/msn_loss.py``; one thread, some seconds. Both compute the same number (``tests/peers``).
"""

import torch
from lightly.loss import MSNLoss
from side_by_side import show, side_by_side

from recipes_lib.objectives.prototypes import msn_loss

IMAGES, VIEWS, PROTOTYPES, DIM = 64, 11, 1024, 256


def main() -> None:
    """Prints the ratio."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    anchors = torch.randn(VIEWS * IMAGES, DIM, requires_grad=True)
    targets = torch.randn(IMAGES, DIM)
    prototypes = torch.randn(PROTOTYPES, DIM, requires_grad=True)
    lightly_loss = MSNLoss()

    def step(loss: torch.Tensor) -> None:
        torch.autograd.grad(loss, (anchors, prototypes))

    timings = side_by_side(
        {
            "lightly": lambda: step(lightly_loss(anchors, targets, prototypes)),
            "ours": lambda: step(msn_loss(anchors, targets, prototypes)["loss"]),
        },
        rounds=25,
        reference="lightly",
        warm_up=3,
    )
    size = f"{VIEWS * IMAGES} anchors, {PROTOTYPES} prototypes"
    show("MSN loss, forward and backward, float32, one thread", {size: timings}, per_call={size: VIEWS * IMAGES})


if __name__ == "__main__":
    main()
