# SPDX-License-Identifier: Apache-2.0
"""The objectives of self-distillation. Golden values were computed in numpy from the papers' equations, float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives import distillation

Z1 = [[1, 0, 2], [0, 1, -1], [2, 1, 0], [-1, 1, 1]]
Z2 = [[1, 0.5, 1.5], [0, 1, -2], [1, 1, 0], [-1, 0, 1]]
T1, T2 = [[1, 0, 0.5, -1], [0.2, 0.4, -0.3, 0]], [[0.8, 0.1, 0.4, -0.9], [0, 0.5, -0.2, 0.1]]
U1, U2 = [[0.9, -0.1, 0.3, -0.5], [0.1, 0.3, -0.4, 0.2]], [[0.7, 0.2, 0.5, -1], [0.3, 0.6, 0, 0.1]]
U3 = [[0.5, 0.1, 0.1, -0.2], [0, 0.2, 0.1, -0.1]]
COSINE = 0.917511516124067


def table(*rows: list, grad: bool = False) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, requires_grad=grad)


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predicted_by_z2(grad: bool = False) -> tuple[Tensor, Tensor]:
    """Both directions ask for the same cosine: Z1 predicts Z2."""
    return table(Z1, Z1, grad=grad), table(Z2, Z2, grad=grad)


def student_and_teacher(grad: bool = False) -> tuple[Tensor, Tensor]:
    return table(U1, U2, U3, grad=grad), table(T1, T2, grad=grad)


def test_byol_is_two_directions_of_the_golden_one():
    got = distillation.byol_loss(*predicted_by_z2())
    assert got["loss"].item() == pytest.approx(2 * 0.164976967751866, abs=1e-9)
    assert got["cosine"].item() == pytest.approx(COSINE, abs=1e-9)


def test_simsiam_is_minus_the_golden_cosine():
    got = distillation.simsiam_loss(*predicted_by_z2())
    assert got["loss"].item() == pytest.approx(-COSINE, abs=1e-9)


def test_a_prediction_is_compared_with_the_target_of_the_other_view():
    predictions, targets = table(Z1, Z2), table(Z2, Z1)
    assert distillation.simsiam_loss(predictions, targets)["loss"].item() == pytest.approx(-1, abs=1e-12)
    assert distillation.byol_loss(predictions, targets)["loss"].item() == pytest.approx(0, abs=1e-12)
    first, second = torch.cat([predictions[:1], predictions[:1] * 0 + 1]), targets
    want = -(F.cosine_similarity(first[0], second[1]).mean() + F.cosine_similarity(first[1], second[0]).mean()) / 2
    torch.testing.assert_close(distillation.simsiam_loss(first, second)["loss"], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [distillation.byol_loss, distillation.simsiam_loss])
def test_targets_get_no_gradient(loss):
    predictions, targets = predicted_by_z2(grad=True)
    loss(predictions, targets)["loss"].backward()
    assert predictions.grad.abs().sum() > 0
    assert targets.grad is None


def test_without_stop_gradient_both_sides_get_one():
    predictions, embeddings = predicted_by_z2(grad=True)
    distillation.simsiam_loss(predictions, embeddings, stop_gradient=False)["loss"].backward()
    assert embeddings.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(
        lambda p, z: distillation.simsiam_loss(p, z, stop_gradient=False)["loss"], predicted_by_z2(grad=True)
    )


def test_dino_and_its_centre_over_two_steps():
    student, teacher = student_and_teacher()
    centre = torch.zeros(4, dtype=torch.float64)
    assert distillation.dino_loss(student, teacher, centre)["loss"].item() == pytest.approx(
        0.1986869622134475, abs=1e-9
    )
    centre = distillation.moved_centre(centre, teacher)
    torch.testing.assert_close(centre, table(0.05, 0.025, 0.01, -0.045), rtol=0, atol=1e-12)
    second = distillation.dino_loss(student, teacher, centre)["loss"]
    assert second.item() == pytest.approx(0.19717408192774175, abs=1e-9)


def test_a_warmer_teacher_and_equal_logits():
    student, teacher = student_and_teacher()
    centre = torch.zeros(4, dtype=torch.float64)
    warmer = distillation.dino_loss(student, teacher, centre, teacher_temperature=0.07)
    assert warmer["loss"].item() == pytest.approx(0.23822355257539163, abs=1e-9)
    flat = distillation.dino_loss(student * 0, teacher * 0, centre)
    assert flat["loss"].item() == pytest.approx(math.log(4), abs=1e-10)
    assert flat["teacher_entropy"].item() == pytest.approx(math.log(4), abs=1e-10)
    assert flat["kl"].item() == pytest.approx(0, abs=1e-12)


def test_entropy_and_divergence_are_those_of_each_pair_of_views():
    student, teacher = student_and_teacher()
    centre = table(0.1, 0.0, -0.2, 0.3)
    got = distillation.dino_loss(student, teacher, centre)
    p, q = (student / 0.1).softmax(2), ((teacher - centre) / 0.04).softmax(2)
    pairs = [(i, j) for i in range(2) for j in range(3) if i != j]
    kl = sum(F.kl_div(p[j].log(), q[i], reduction="batchmean") for i, j in pairs) / len(pairs)
    torch.testing.assert_close(got["kl"], kl, rtol=0, atol=1e-10)
    entropy = torch.distributions.Categorical(q).entropy().mean()
    torch.testing.assert_close(got["teacher_entropy"], entropy, rtol=0, atol=1e-10)


def test_the_teacher_gets_no_gradient_and_the_students_is_that_of_finite_differences():
    student, teacher = student_and_teacher(grad=True)
    centre = table(0.1, 0.0, -0.2, 0.3)
    distillation.dino_loss(student, teacher, centre)["loss"].backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s: distillation.dino_loss(s, teacher, centre)["loss"], student)
    assert not distillation.moved_centre(centre, teacher).requires_grad


def test_patch_loss_is_the_mean_over_each_images_hidden_patches():
    student, teacher, centre = draw(3, 4, 5), draw(3, 4, 5, seed=1), draw(5, seed=2)
    masked = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    got = distillation.ibot_patch_loss(student, teacher, centre, masked, temperature=0.3, teacher_temperature=0.2)
    s, t = student.numpy() / 0.3, (teacher - centre).numpy() / 0.2
    log_p = s - np.log(np.exp(s).sum(2, keepdims=True))
    q = np.exp(t) / np.exp(t).sum(2, keepdims=True)
    ce, h = -(q * log_p).sum(2), -(q * np.log(q)).sum(2)
    assert got["loss"].item() == pytest.approx((ce[0, [0, 2, 3]].mean() + ce[2, 1]) / 3, abs=1e-12)
    assert got["teacher_entropy"].item() == pytest.approx((h[0, [0, 2, 3]].mean() + h[2, 1]) / 2, abs=1e-12)


def test_patch_loss_reaches_hidden_patches_only_and_no_teacher():
    student, teacher = draw(2, 4, 5).requires_grad_(), draw(2, 4, 5, seed=1).requires_grad_()
    masked = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    centre = torch.zeros(5, dtype=torch.float64)
    distillation.ibot_patch_loss(student, teacher, centre, masked)["loss"].backward()
    assert teacher.grad is None
    assert torch.equal(student.grad.abs().sum(2) > 0, masked)
    assert torch.autograd.gradcheck(lambda s: distillation.ibot_patch_loss(s, teacher, centre, masked)["loss"], student)


def test_without_hidden_patches_the_patch_loss_is_zero():
    student = draw(2, 4, 5).requires_grad_()
    got = distillation.ibot_patch_loss(student, student.detach(), torch.zeros(5), torch.zeros(2, 4, dtype=torch.bool))
    got["loss"].backward()
    assert got["loss"] == 0
    assert got["teacher_entropy"] == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_koleo_is_minus_the_log_distance_to_the_nearest_neighbour():
    assert distillation.koleo_loss(table([1, 0], [0, 3])).item() == pytest.approx(-math.log(math.sqrt(2)), abs=1e-7)
    for seed in range(3):
        x = draw(7, 3, seed=seed).numpy()
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        distances = np.linalg.norm(x[:, None] - x[None], axis=2) + 10 * np.eye(7)
        want = -np.log(distances.min(axis=1) + 1e-8).mean()
        assert distillation.koleo_loss(draw(7, 3, seed=seed)).item() == pytest.approx(want, abs=1e-12)


def test_koleo_pushes_neighbours_apart_and_survives_equal_features():
    features = draw(6, 3, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(distillation.koleo_loss, features)
    (gradient,) = torch.autograd.grad(distillation.koleo_loss(features), features)
    assert distillation.koleo_loss(features - 0.05 * gradient) < distillation.koleo_loss(features)
    same = torch.ones(4, 3, requires_grad=True)
    loss = distillation.koleo_loss(same)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-8), rel=1e-6)
    assert same.grad.isfinite().all()


def test_only_the_loss_carries_a_graph_and_half_precision_is_raised():
    student, teacher = (x.detach().bfloat16().requires_grad_() for x in student_and_teacher())
    predictions, targets = (x.detach().bfloat16().requires_grad_() for x in predicted_by_z2())
    masked = torch.ones(2, 2, dtype=torch.bool)
    for parts in (
        distillation.byol_loss(predictions, targets),
        distillation.simsiam_loss(predictions, targets),
        distillation.dino_loss(student, teacher, torch.zeros(4)),
        distillation.ibot_patch_loss(student[:2], teacher, torch.zeros(4), masked),
    ):
        assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}
        assert {value.dtype for value in parts.values()} == {torch.float32}
    assert distillation.koleo_loss(draw(4, 3).bfloat16()).dtype == torch.float32
    assert distillation.moved_centre(torch.zeros(4), teacher).dtype == torch.float32


def test_bad_input_is_named():
    student, teacher, centre = torch.ones(3, 2, 4), torch.ones(2, 2, 4), torch.zeros(4)
    for loss in (distillation.byol_loss, distillation.simsiam_loss):
        with pytest.raises(ValueError, match=r"\[2, B, d\] each; got \[3, 2, 4\], \[3, 2, 4\]"):
            loss(student, student)
    for name in ("temperature", "teacher_temperature"):
        with pytest.raises(ValueError, match=f"^{name} = 0"):
            distillation.dino_loss(student, teacher, centre, **{name: 0.0})
    with pytest.raises(ValueError, match=r"got \[3, 2, 4\], \[2, 2, 5\]"):
        distillation.dino_loss(student, torch.ones(2, 2, 5), centre)
    with pytest.raises(ValueError, match="sees 1 of 1 views"):
        distillation.dino_loss(student[:1], teacher[:1], centre)
    with pytest.raises(ValueError, match=r"centre has shape \[5\]; it must have \[4\]"):
        distillation.dino_loss(student, teacher, torch.zeros(5))
    with pytest.raises(ValueError, match=r"got \[3, 2, 4\], \[2, 2, 4\], \[3, 2\]"):
        distillation.ibot_patch_loss(student, teacher, centre, torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"momentum = 1\.5"):
        distillation.moved_centre(centre, teacher, momentum=1.5)
    with pytest.raises(ValueError, match="1 image has no neighbour"):
        distillation.koleo_loss(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"\[B, d\]; got \[2, 2, 4\]"):
        distillation.koleo_loss(teacher)


def step_of_a_share() -> dict[str, Tensor]:
    """Each loss and its gradient on this rank's half of the images, gradients averaged as DDP does."""
    ranks, rank = collectives.world_size(), collectives.rank()
    mine = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
    weight = nn.Parameter(draw(6, 5))
    outputs, targets = draw(3, 8, 6, seed=1)[:, 2 * mine.start : 2 * mine.stop] @ weight, draw(2, 8, 5, seed=2)
    targets = targets[:, 2 * mine.start : 2 * mine.stop]
    patches, seen, centre = draw(4, 3, 6, seed=3)[mine] @ weight, draw(4, 3, 5, seed=4)[mine], draw(5, seed=5) / 9
    masked = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.bool)[mine]
    parts = {
        "byol": distillation.byol_loss(outputs[:2], targets),
        "simsiam": distillation.simsiam_loss(outputs[:2], targets),
        "dino": distillation.dino_loss(outputs, targets, centre),
        "patch": distillation.ibot_patch_loss(patches, seen, centre, masked),
        "koleo": {"loss": distillation.koleo_loss(outputs[0])},
    }
    results = {}
    for name, part in parts.items():
        (gradient,) = torch.autograd.grad(part["loss"], weight, retain_graph=True)
        results |= {name: part["loss"].detach(), f"gradient of {name}": gradient}
    everywhere = {"centre": distillation.moved_centre(centre, targets), "std": parts["byol"]["std"]}  # on each rank
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()} | everywhere


@pytest.mark.distributed
def test_two_ranks_give_the_losses_gradients_and_centre_of_one_rank_on_the_whole_batch():
    alone = step_of_a_share()
    for rank in run_ranks(step_of_a_share, 2):
        for name, value in alone.items():
            torch.testing.assert_close(
                rank[name], value, rtol=1e-10, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
            )
