# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.models.queue import Queue


def rows(*numbers: float) -> Tensor:
    """Unit rows that tell by their angle which number they are."""
    angles = torch.tensor(numbers) / 10
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_a_new_queue_has_random_unit_rows_of_the_seed_and_takes_no_number_from_a_network_before_it():
    torch.manual_seed(5)
    first, after = Queue(64, 16).rows, torch.rand(())
    torch.manual_seed(5)
    assert torch.equal(Queue(64, 16).rows, first)
    assert torch.equal(torch.rand(()), after)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(64))
    assert first.mean(dim=0).norm() < 0.4  # directions of all sides: expected 1 / sqrt(64)
    assert not torch.equal(Queue(64, 16).rows, first)


def test_the_newest_rows_come_first_and_the_oldest_leave():
    queue = Queue(4, 2)
    queue.push(3 * rows(1, 2))  # they are normalised
    torch.testing.assert_close(queue.rows[:2], rows(1, 2))
    queue.push(rows(3, 4))
    torch.testing.assert_close(queue.rows, rows(3, 4, 1, 2))
    queue.push(rows(5, 6))
    torch.testing.assert_close(queue.rows, rows(5, 6, 3, 4))
    queue.push(rows(1, 2, 3, 4))
    torch.testing.assert_close(queue.rows, rows(1, 2, 3, 4))


def test_a_loss_may_go_backwards_after_the_queue_has_moved_on():
    queue, queries = Queue(4, 2), rows(1, 2).requires_grad_()
    before = queue.rows.clone()
    loss = (queries @ queue.rows.T).square().sum()
    queue.push(queries)
    loss.backward()
    torch.testing.assert_close(queries.grad, 2 * (queries @ before.T).detach() @ before)
    assert not queue.rows.requires_grad


def test_the_rows_are_saved_and_loaded_with_the_weights():
    queue, other = Queue(4, 2), Queue(4, 2)
    queue.push(rows(1, 2))
    other.load_state_dict(queue.state_dict())
    assert list(queue.state_dict()) == ["rows"]
    assert torch.equal(other.rows, queue.rows)
    assert list(queue.parameters()) == []


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"shape \[2, 3\]; this queue takes \[batch, 2\]"):
        Queue(4, 2).push(torch.ones(2, 3))
    with pytest.raises(ValueError, match="5 embeddings do not fit into a queue of 4 rows"):
        Queue(4, 2).push(torch.ones(5, 2))


def push_a_share() -> Tensor:
    torch.manual_seed(0)
    queue, new = Queue(6, 2), F.normalize(torch.randn(4, 2, generator=torch.Generator().manual_seed(1)), dim=1)
    ranks, rank = collectives.world_size(), collectives.rank()
    queue.push(new[rank * 4 // ranks : (rank + 1) * 4 // ranks])
    return queue.rows


@pytest.mark.distributed
def test_the_embeddings_of_all_ranks_enter_and_all_ranks_have_the_same_queue():
    alone = push_a_share()
    for queue in run_ranks(push_a_share, 2):
        torch.testing.assert_close(queue, alone, rtol=0, atol=1e-6)
