# SPDX-License-Identifier: Apache-2.0
"""Parity with lightly's ``NTXentLoss`` (with and without its memory bank), ``DCLLoss`` and ``NNMemoryBankModule``.

Losses and gradients, float64, atol 1e-9. Where they differ, the test says by how much and why.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.models.queue import Queue
from recipes_lib.objectives.contrastive import dcl_loss, info_nce, nearest, nnclr_loss, nt_xent

lightly_loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")
memory = pytest.importorskip("lightly.models.modules.memory_bank", reason="lightly is not installed")
neighbours = pytest.importorskip("lightly.models.modules.nn_memory_bank", reason="lightly is not installed")

Z1 = torch.tensor([[1, 0, 2], [0, 1, -1], [2, 1, 0], [-1, 1, 1]], dtype=torch.float64)
Z2 = torch.tensor([[1, 0.5, 1.5], [0, 1, -2], [1, 1, 0], [-1, 0, 1]], dtype=torch.float64)
QUEUE = torch.tensor([[1, 1, 1], [-1, 0.5, 1], [0, -1, 2]], dtype=torch.float64)


def draw(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    wanted = torch.autograd.grad(theirs, inputs, retain_graph=True)
    for mine, his in zip(torch.autograd.grad(ours, inputs), wanted, strict=True):
        torch.testing.assert_close(mine, his, rtol=0, atol=1e-9)


def filled(bank: torch.nn.Module, rows: Tensor) -> torch.nn.Module:
    """A memory bank module of lightly that holds ``rows``."""
    bank.bank = F.normalize(rows.detach(), dim=1)
    return bank


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_queries_against_a_queue_equal_ntxent_with_a_memory_bank(temperature):
    queries, keys, rows = draw(8, 16), draw(2, 8, 16)[1].detach(), draw(32, 16).detach()
    theirs = lightly_loss.NTXentLoss(temperature, memory_bank_size=(32, 16))
    filled(theirs.memory_bank, rows)
    same(info_nce(queries, keys, temperature=temperature, queue=rows)["loss"], theirs(queries, keys), queries)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_decoupled_loss_equals_dclloss(temperature):
    views = draw(2, 8, 16)
    same(dcl_loss(*views, temperature=temperature)["loss"], lightly_loss.DCLLoss(temperature)(*views), views)


def test_both_queues_hold_the_same_rows_after_the_same_keys():
    """Ours has the newest first, lightly's writes at a pointer. They agree if the batch size divides the queue's; else
    lightly drops what does not fit. Its bank is not saved in checkpoints, ours is."""
    torch.manual_seed(0)
    ours, theirs = Queue(12, 16), memory.MemoryBankModule(size=(12, 16))
    for step in range(5):
        keys = F.normalize(torch.randn(4, 16), dim=1)
        ours.push(keys)
        theirs(keys, update=True)
        if step >= 2:  # both are full of keys
            by_first = (rows[rows[:, 0].argsort()] for rows in (ours.rows, theirs.bank))
            torch.testing.assert_close(*by_first)
    assert (list(ours.state_dict()), list(theirs.state_dict())) == (["rows"], [])


def test_neighbours_equal_those_of_the_memory_bank():
    bank = filled(neighbours.NNMemoryBankModule(size=(3, 3)), QUEUE)
    torch.testing.assert_close(nearest(Z1, QUEUE), bank(Z1), rtol=0, atol=1e-12)


def test_nnclr_differs_from_lightlys_composition_by_its_candidates():
    """Lightly feeds neighbours and predictions to NT-Xent: the other images' neighbours and predictions are candidates
    too, and predictions look for neighbours. The paper has predictions alone as candidates, and one direction."""
    bank = filled(neighbours.NNMemoryBankModule(size=(3, 3)), QUEUE)
    theirs = lightly_loss.NTXentLoss(0.1)(bank(Z1), Z2)
    ours = nnclr_loss((Z1, Z1), (Z2, Z2), QUEUE, temperature=0.1)["loss"]
    assert theirs.item() == pytest.approx(3.3685403816188693, abs=1e-9)
    assert ours.item() == pytest.approx(3.598826177128864, abs=1e-9)
    torch.testing.assert_close(nt_xent(nearest(Z1, QUEUE), Z2, temperature=0.1)["loss"], theirs, rtol=0, atol=1e-9)
