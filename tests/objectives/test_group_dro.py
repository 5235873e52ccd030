# SPDX-License-Identifier: Apache-2.0
"""Group DRO: golden values 1 to 4 of the BARACK card, what must not change the step, and bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives import group_dro
from recipes_lib.objectives.group_dro import GroupLosses, group_losses, robust_loss, soft_group_losses, update_weights

UNIFORM = torch.full((4,), 0.25, dtype=torch.float64)


def close(got: Tensor, want: object, atol: float = 5e-10) -> None:
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), rtol=0, atol=atol)


def given_means(*means: float | None) -> GroupLosses:
    """Groups of one point each; ``None`` is a group that the batch lacks."""
    values = torch.tensor([0.0 if mean is None else mean for mean in means], dtype=torch.float64)
    return GroupLosses(values, torch.tensor([float(mean is not None) for mean in means]))


def draw(seed: int, points: int = 12, count: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    losses = torch.rand(points, generator=g, dtype=torch.float64).requires_grad_()
    return losses, torch.randint(count, (points,), generator=g)


# golden values


def test_case_1_two_updates_with_the_same_losses():
    losses = given_means(0.2, 1.0, 0.5, 2.0)
    q = update_weights(UNIFORM, losses, 0.1)
    close(q, [0.231966949, 0.251286796, 0.239031395, 0.277714859])
    close(robust_loss(losses, q), 0.972625603)
    q = update_weights(q, losses, 0.1)
    close(q, [0.214193451, 0.251358343, 0.227438434, 0.307009773])
    close(robust_loss(losses, q), 1.021935796)


def test_case_2_the_adjustment_counts_in_the_weights_and_not_in_the_loss():
    losses = given_means(0.2, 1.0, 0.5, 2.0)
    adjustment = group_dro.size_adjustment(torch.tensor([3498, 184, 56, 1057]).double(), 1.0)
    close(losses.mean + adjustment, [0.216907917, 1.073720978, 0.633630621, 2.030758313])
    q = update_weights(UNIFORM, losses, 0.01, adjustment)
    close(q, [0.248072177, 0.250206824, 0.249108107, 0.252612892])
    close(robust_loss(losses, q), 0.929601096)
    close(robust_loss(losses, q) + q @ adjustment, 0.993299389)  # what the official code returns


def test_case_3_an_absent_group_has_no_loss():
    losses = given_means(0.2, None, 0.5, 2.0)
    q = update_weights(UNIFORM, losses, 0.1)
    close(q, [0.237649895, 0.232944112, 0.244887412, 0.284518581])
    close(robust_loss(losses, q), 0.739010847)


def test_case_4_soft_groups_and_the_hard_groups_of_their_argmax():
    losses = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    p = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]], dtype=torch.float64)
    close(soft_group_losses(losses, p).mean, [2.058823529, 2.692307692])
    close(group_losses(losses, p.argmax(dim=1), 2).mean, [2.5, 2.0])  # ties go to the lower index


# gradients


def test_the_gradient_of_a_point_is_its_groups_weight_over_the_groups_size():
    losses, groups = draw(0)
    means = group_losses(losses, groups, 4)
    q = update_weights(UNIFORM, means, 0.5)
    robust_loss(means, q).backward()
    close(losses.grad, (q / groups.bincount(minlength=4))[groups], atol=1e-15)


def test_weights_carry_no_gradient_back_to_the_losses():
    means = group_losses(*draw(1), 4)
    assert not update_weights(UNIFORM, means, 0.5, torch.ones(4)).requires_grad
    q = UNIFORM.clone().requires_grad_()
    robust_loss(means, q).backward()
    assert q.grad is None


def test_both_kinds_of_means_pass_gradcheck():
    losses, groups = draw(2, points=6, count=3)
    p = torch.rand(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: group_losses(x, groups, 3).mean, losses)
    assert torch.autograd.gradcheck(lambda x: soft_group_losses(x, p).mean, losses)


# invariants


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0, 20))
def test_weights_sum_to_one_and_follow_a_permutation_of_groups(seed, eta):
    losses, groups = draw(seed)
    q = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    q, order = q / q.sum(), torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    updated = update_weights(q, group_losses(losses, groups, 4), eta)
    close(updated.sum(), 1.0, atol=1e-12)
    moved = group_losses(losses, order.argsort()[groups], 4)
    close(update_weights(q[order], moved, eta), updated[order], atol=1e-12)


def test_a_step_size_of_zero_or_equal_losses_keep_the_weights():
    q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    close(update_weights(q, given_means(1.0, 5.0, 2.0, 0.1), 0.0), q, atol=1e-15)
    close(update_weights(q, given_means(3.0, 3.0, 3.0, 3.0), 0.7), q, atol=1e-15)


def test_a_huge_step_size_puts_all_weight_on_the_worst_group_without_overflow():
    close(update_weights(UNIFORM.float(), given_means(1.0, 5.0, 2.0, 0.1), 1e6), [0.0, 1.0, 0.0, 0.0], atol=0)


def test_one_hot_probabilities_are_hard_groups():
    losses, groups = draw(3)
    hard = group_losses(losses, groups, 5)
    soft = soft_group_losses(losses, torch.nn.functional.one_hot(groups, 5).double())
    close(soft.mean, hard.mean, atol=1e-15)
    assert torch.equal(soft.weight.double(), hard.weight.double())


def test_an_absent_group_keeps_its_weight_relative_to_another_with_an_adjustment_too():
    q = update_weights(UNIFORM, given_means(None, None, 0.5, 2.0), 0.1, torch.tensor([9.0, 1.0, 0.0, 0.0]))
    assert float(q[0]) == float(q[1])


def test_losses_in_half_precision_are_averaged_in_float32():
    losses = torch.full((3000,), 0.1, dtype=torch.bfloat16)
    mean = group_losses(losses, torch.zeros(3000, dtype=torch.int64), 1).mean
    assert mean.dtype == torch.float32
    assert abs(float(mean[0]) - float(losses[0])) < 1e-4


# several ranks


def step_of_rank() -> list[float]:
    """One step on a rank's part of a batch; the ranks hold unequal numbers of each group."""
    losses, groups = draw(5)
    parts = [slice(0, 4), slice(4, 12)]
    part = parts[collectives.rank()] if collectives.world_size() > 1 else slice(0, 12)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    means = group_losses(losses.detach()[part] * scale, groups[part], 5)  # group 4 is on no rank
    q = update_weights(torch.full((5,), 0.2, dtype=torch.float64), means, 0.5)
    loss = robust_loss(means, q)
    loss.backward()
    grad = collectives.all_reduce_mean(scale.grad)
    return [float(loss.detach()), float(grad), *q.tolist()]


@pytest.mark.distributed
def test_two_ranks_with_unequal_groups_take_the_step_of_one_rank():
    alone = step_of_rank()
    for ranks in run_ranks(step_of_rank, 2):
        assert ranks == pytest.approx(alone, abs=1e-12)


# bad input


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: group_losses(torch.ones(3), torch.zeros(2, dtype=torch.int64), 2), r"shape \[3\] and groups \[2\]"),
        (lambda: group_losses(torch.ones(2), torch.tensor([0, -1]), 2), r"group -1 is outside 0..1"),
        (lambda: group_losses(torch.ones(2), torch.tensor([0, 2]), 2), r"group 2 is outside 0..1"),
        (lambda: soft_group_losses(torch.ones(3), torch.ones(2, 2)), r"probabilities \[2, 2\]"),
        (lambda: group_dro.uniform_weights(0), r"count = 0"),
        (lambda: group_dro.size_adjustment(torch.tensor([3, 0, 5]), 1.0), r"no point of group 1"),
        (lambda: group_dro.size_adjustment(torch.tensor([3]), -1.0), r"strength = -1"),
        (lambda: update_weights(UNIFORM, given_means(1, 1, 1, 1), -0.1), r"eta = -0.1"),
        (lambda: group_dro.check_weights(UNIFORM, 2), r"there are 2 groups"),
        (lambda: group_dro.check_weights(torch.tensor([1.5, -0.5]), 2), r"weights of groups are at least 0"),
        (lambda: group_dro.check_weights(torch.tensor([float("nan"), 1.0]), 2), r"sums to nan"),
        (lambda: group_dro.check_weights(2 * UNIFORM, 4), r"sums to 2"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(call, said):
    with pytest.raises(ValueError, match=said) as told:
        call()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_told_with_its_group(loss):
    with pytest.raises(FloatingPointError, match=f"the loss of group 1 is {loss}"):
        update_weights(UNIFORM, given_means(1, loss, 1, 1), 0.1)
