# SPDX-License-Identifier: Apache-2.0
"""Parity with lightly's ``NegativeCosineSimilarity``, ``DINOLoss``, ``IBOTPatchLoss`` and ``KoLeoLoss``, float64."""

import pytest
import torch
from torch import Tensor

from recipes_lib.objectives import distillation

lightly_loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def same(ours: Tensor, theirs: Tensor, *inputs: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    wanted = torch.autograd.grad(theirs, inputs)
    for mine, his in zip(torch.autograd.grad(ours, inputs), wanted, strict=True):
        torch.testing.assert_close(mine, his, rtol=0, atol=atol)


def test_simsiam_and_byol_are_negative_cosines():
    p, z = draw(2, 8, 16), draw(2, 8, 16, seed=1)
    criterion = lightly_loss.NegativeCosineSimilarity()
    swapped = (criterion(p[0], z[1].detach()) + criterion(p[1], z[0].detach())) / 2
    same(distillation.simsiam_loss(p, z)["loss"], swapped, p)
    swapped = (criterion(p[0], z[1]) + criterion(p[1], z[0])) / 2
    same(distillation.simsiam_loss(p, z, stop_gradient=False)["loss"], swapped, p, z)
    swapped = (criterion(p[0], z[1].detach()) + criterion(p[1], z[0].detach())) / 2
    same(distillation.byol_loss(p, z)["loss"], 4 + 4 * swapped, p)


@pytest.mark.parametrize("views", [2, 5])
def test_dino_and_its_centre_over_two_steps(views):
    student, teacher = draw(views, 8, 12), draw(2, 8, 12, seed=1).detach()
    criterion = lightly_loss.DINOLoss(output_dim=12, teacher_temp=0.07, warmup_teacher_temp=0.07).double()
    centre = torch.zeros(12, dtype=torch.float64)
    for _ in range(2):
        theirs = criterion(list(teacher), list(student))
        # theirs keeps its temperature in float32
        same(
            distillation.dino_loss(student, teacher, centre, teacher_temperature=0.07)["loss"],
            theirs,
            student,
            atol=1e-6,
        )
        centre = distillation.moved_centre(centre, teacher)
        torch.testing.assert_close(centre, criterion.center.flatten(), rtol=0, atol=1e-9)


def test_patch_loss_on_hidden_patches():
    student, teacher = draw(6, 4, 12), draw(6, 4, 12, seed=1).detach()
    masked = torch.rand(6, 4, generator=torch.Generator().manual_seed(2)) < 0.5
    criterion = lightly_loss.IBOTPatchLoss(output_dim=12, teacher_temp=0.04).double()
    theirs = criterion(teacher[masked], student[masked], masked.unflatten(1, (2, 2)))
    ours = distillation.ibot_patch_loss(student, teacher, torch.zeros(12, dtype=torch.float64), masked)["loss"]
    same(ours, theirs, student, atol=1e-6)  # theirs keeps its temperature in float32


def test_koleo():
    features = draw(8, 16)
    # theirs adds 1e-8 to each difference before the distance is taken, too
    same(distillation.koleo_loss(features), lightly_loss.KoLeoLoss()(features), features, atol=1e-7)
