# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives.suncet import suncet_loss

LABELS = torch.tensor([0, 1, 0, 1, 2, 2])


def rows(seed: int = 0) -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(z: Tensor, labels: Tensor, temperature: float) -> float:
    """The formula, term by term."""
    z = z / z.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(len(z)):
        alike = others = 0.0
        for k in range(len(z)):
            if k != i:
                weight = math.exp(float(z[i] @ z[k]) / temperature)
                others += weight
                alike += weight * (labels[k] == labels[i]).item()
        total -= math.log(alike / others)
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_loss_is_minus_log_of_the_share_of_the_own_class(temperature):
    parts = suncet_loss(rows(), LABELS, temperature=temperature)
    assert float(parts["loss"]) == pytest.approx(by_hand(rows(), LABELS, temperature), abs=1e-12)
    assert not parts["own_class"].requires_grad


def test_two_classes_on_two_axes_have_the_loss_of_the_closed_form():
    axes = torch.eye(2, dtype=torch.float64)[[0, 1, 0, 1]]
    # of three others one is alike, at cosine 1, and two are not, at cosine 0
    wanted = -math.log(math.exp(10) / (math.exp(10) + 2))
    parts = suncet_loss(axes, torch.tensor([0, 1, 0, 1]), temperature=0.1)
    assert float(parts["loss"]) == pytest.approx(wanted, abs=1e-12)
    assert float(parts["own_class"]) == pytest.approx(math.exp(-wanted), abs=1e-12)


def test_equal_embeddings_have_the_share_of_their_class_among_the_others():
    parts = suncet_loss(torch.ones(6, 4), LABELS)
    assert float(parts["loss"]) == pytest.approx(math.log(5), abs=1e-6)  # one of five others is alike


def test_the_order_of_rows_and_the_names_of_classes_do_not_matter():
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    loss = suncet_loss(rows(), LABELS)["loss"]
    torch.testing.assert_close(suncet_loss(rows()[order], LABELS[order])["loss"], loss)
    torch.testing.assert_close(suncet_loss(rows(), 7 - LABELS)["loss"], loss)


def test_its_gradient_is_that_of_its_values():
    z = rows().requires_grad_(True)
    assert gradcheck(lambda z: suncet_loss(z, LABELS, temperature=0.5)["loss"], (z,))


def test_a_step_against_the_gradient_gives_the_own_class_more():
    z = rows().requires_grad_(True)
    before = suncet_loss(z, LABELS)
    before["loss"].backward()
    assert suncet_loss(z.detach() - 0.1 * z.grad, LABELS)["own_class"] > before["own_class"]


@pytest.mark.parametrize(
    ("embeddings", "labels", "temperature", "words"),
    [
        (rows(), LABELS, 0.0, "temperature = 0.0; it must be above 0"),
        (rows(), LABELS[:5], 0.1, r"got \[6, 4\] and \[5\]"),
        (rows()[0], LABELS, 0.1, r"got \[4\]"),
        (rows(), torch.tensor([0, 0, 1, 1, 2, 3]), 0.1, "embedding 4 is the only one of class 2; each class needs two"),
    ],
)
def test_what_does_not_fit_is_named(embeddings, labels, temperature, words):
    with pytest.raises(ValueError, match=words):
        suncet_loss(embeddings, labels, temperature=temperature)


def gradient_of_a_share(z: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the mean of the ranks' losses with respect to this rank's rows."""
    share = len(z) // collectives.world_size()
    own = slice(collectives.rank() * share, (collectives.rank() + 1) * share)
    rows = z[own].clone().requires_grad_(True)
    suncet_loss(rows, labels[own])["loss"].backward()
    return rows.grad / collectives.world_size()


@pytest.mark.distributed
def test_two_ranks_give_the_gradient_of_one_rank_on_the_whole_batch():
    z = rows().requires_grad_(True)
    suncet_loss(z, LABELS)["loss"].backward()
    torch.testing.assert_close(torch.cat(run_ranks(gradient_of_a_share, 2, rows(), LABELS)), z.grad)
