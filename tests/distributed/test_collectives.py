# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import recipes_lib
from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import RunError

pytestmark = pytest.mark.distributed
RANKS = 2


def rows() -> tuple[Tensor, Tensor]:
    """Inputs [8, 3] and a weight [3, 4], float64."""
    g = torch.Generator().manual_seed(7)
    return torch.randn(8, 3, generator=g, dtype=torch.float64), torch.randn(3, 4, generator=g, dtype=torch.float64)


def mean_entropy_loss(x: Tensor, weight: Tensor, mean_over_ranks) -> Tensor:
    """A local term and one that is nonlinear in a mean over all ranks, as ME-MAX is."""
    p = (x @ weight).softmax(1)  # [B, 4]
    pbar = mean_over_ranks(p.mean(0))
    return p.square().sum(1).mean() + torch.xlogy(pbar, pbar).sum()


def contrast_loss(x: Tensor, weight: Tensor) -> Tensor:
    """Each local row against the rows of all ranks."""
    z = x @ weight
    everyone = collectives.all_gather(z)
    first = collectives.rank() * len(z)
    return torch.nn.functional.cross_entropy(z @ everyone.mT, torch.arange(first, first + len(z)))


def raw_mean(x: Tensor) -> Tensor:
    x = x / collectives.world_size()
    dist.all_reduce(x.data)  # what autograd cannot see
    return x


def weight_gradient(loss_of, ranks: int) -> Tensor:
    x, weight = rows()
    weight.requires_grad_()
    loss_of(x.chunk(ranks)[collectives.rank()], weight).backward()
    if ranks > 1:
        dist.all_reduce(weight.grad)  # DDP: the mean over ranks
    return weight.grad / ranks


def refuse() -> None:
    raise RunError("rank 0 says no")


def on_each_rank() -> dict:
    """All that the tests look at, from one start of the processes."""
    rank = collectives.rank()
    try:
        collectives.from_main(refuse)
        refused = ""
    except RunError as error:
        refused = str(error)
    collectives.barrier()
    x = torch.ones(3)
    return {
        "rank": rank,
        "size": collectives.world_size(),
        "main": collectives.is_main(),
        "sum": collectives.all_reduce_sum(torch.tensor([1.0 + rank])),
        "mean": collectives.all_reduce_mean(torch.tensor([1.0 + rank])),
        "rows": collectives.all_gather(torch.full((2, 1), float(rank))),
        "object": collectives.broadcast_object({"from": rank}),
        "from_main": collectives.from_main(lambda: 10 + rank),
        # the others do not take part in it, so each of these would wait for them without end
        "alone": collectives.from_main(lambda: (collectives.world_size(), float(collectives.all_gather(x).sum()))),
        "refused": refused,
        "mean_gradient": weight_gradient(lambda x, w: mean_entropy_loss(x, w, collectives.all_reduce_mean), RANKS),
        "raw_gradient": weight_gradient(lambda x, w: mean_entropy_loss(x, w, raw_mean), RANKS),
        "gather_gradient": weight_gradient(contrast_loss, RANKS),
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_ranks(on_each_rank, RANKS)


def test_ranks_know_their_number_and_who_is_main(ranks):
    assert [(r["rank"], r["size"], r["main"]) for r in ranks] == [(0, 2, True), (1, 2, False)]


def test_sum_mean_and_rows_are_equal_on_every_rank(ranks):
    for r in ranks:
        assert r["sum"].item() == 3.0
        assert r["mean"].item() == 1.5
        assert r["rows"].tolist() == [[0.0], [0.0], [1.0], [1.0]]


def test_objects_and_results_come_from_rank_0(ranks):
    assert [r["object"] for r in ranks] == [{"from": 0}] * 2
    assert [r["from_main"] for r in ranks] == [10, 10]


def test_what_rank_0_does_for_all_waits_for_none_of_them(ranks):
    assert [r["alone"] for r in ranks] == [(1, 3.0)] * 2
    assert [r["size"] for r in ranks] == [2, 2]


def test_what_rank_0_refuses_is_refused_on_every_rank(ranks):
    assert [r["refused"] for r in ranks] == ["rank 0 says no"] * 2


def test_two_ranks_give_the_gradient_of_one_rank_on_the_whole_batch(ranks):
    whole = weight_gradient(lambda x, w: mean_entropy_loss(x, w, collectives.all_reduce_mean), 1)
    for r in ranks:
        torch.testing.assert_close(r["mean_gradient"], whole, rtol=1e-12, atol=1e-14)


def test_a_raw_all_reduce_gives_another_gradient(ranks):
    whole = weight_gradient(lambda x, w: mean_entropy_loss(x, w, collectives.all_reduce_mean), 1)
    assert (ranks[0]["raw_gradient"] - whole).norm() > 0.02 * whole.norm()


def test_gathered_rows_give_the_gradient_of_one_rank_on_the_whole_batch(ranks):
    whole = weight_gradient(contrast_loss, 1)
    for r in ranks:
        torch.testing.assert_close(r["gather_gradient"], whole, rtol=1e-12, atol=1e-14)


def test_one_process_gets_its_own_tensor_back():
    x = torch.ones(3)
    assert collectives.all_reduce_sum(x) is x
    assert collectives.all_reduce_mean(x) is x
    assert collectives.all_gather(x) is x
    assert collectives.broadcast_object(x) is x
    assert collectives.from_main(lambda: x) is x


def test_torch_distributed_is_used_in_this_folder_only():
    package = Path(recipes_lib.__file__).parent
    users = {
        str(path.relative_to(package).parent)
        for path in package.rglob("*.py")
        if re.search(r"torch\.distributed|from torch import distributed", path.read_text(encoding="utf-8"))
    }
    assert users == {"distributed"}


# ranks that do not exist


def test_pretended_ranks_hold_what_the_first_does_and_are_gone_afterwards():
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    with collectives.pretend(3):
        assert (collectives.world_size(), collectives.rank(), collectives.is_main()) == (3, 0, True)
        rows = collectives.all_gather(x)
        assert torch.equal(rows, torch.tensor([[1.0, 2.0]] * 3))
        assert torch.equal(collectives.all_reduce_sum(x), x)  # the shape of a sum, not its value
        (rows * torch.tensor([[1.0], [5.0], [7.0]])).sum().backward()
        assert torch.equal(x.grad, torch.ones(1, 2))  # of the first rank's own rows
        with pytest.raises(ValueError, match="process group"):
            collectives.broadcast_object("what no loss calls")
    assert collectives.world_size() == 1
    assert collectives.all_gather(x) is x
