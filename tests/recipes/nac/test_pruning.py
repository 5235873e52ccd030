# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor

from recipes_lib.models.nac.network import NeuralAttentiveCircuit, Shape
from recipes_lib.models.nac.tokens import ImageTokens
from recipes_lib.models.perceiver import PerceiverIO, Sizes
from recipes_lib.recipes.nac import pruning

SHAPE = Shape(modules=6, outputs=1, width=12, signature_dim=4, depth=2, heads=2, head_width=5, hidden=10)


def network() -> NeuralAttentiveCircuit:
    torch.manual_seed(0)
    return NeuralAttentiveCircuit(SHAPE, ImageTokens(8, 4, 6, stem="patch", position_width=3)).eval()


def images() -> Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Costs:
    """A loss that is the sum of the costs of the modules that are left out, and of pairs that are both left out."""

    def __init__(self, single: list[float], pairs: dict[tuple[int, int], float]) -> None:
        self.single, self.pairs, self.calls = single, pairs, 0

    def __call__(self, kept: Tensor) -> float:
        self.calls += 1
        gone = set(range(len(self.single))) - set(kept.tolist())
        both = sum(cost for (i, j), cost in self.pairs.items() if {i, j} <= gone)
        return sum(self.single[module] for module in gone) + both


# rankings


def test_rankings_put_the_module_first_without_which_the_loss_is_largest():
    loss = Costs([0.1, 5.0, 3.0, 0.2], {})
    assert pruning.by_single_removal(4, loss).tolist() == [1, 2, 3, 0]
    assert loss.calls == 4
    loss = Costs([0.1, 5.0, 3.0, 0.2], {})
    assert pruning.by_elimination(4, loss).tolist() == [1, 2, 3, 0]
    assert loss.calls == 4 + 3 + 2


def test_elimination_keeps_one_of_two_modules_that_replace_each_other():
    twins = Costs([0.0, 0.0, 1.0, 2.0], {(0, 1): 9.0})
    assert set(pruning.by_single_removal(4, twins)[2:].tolist()) == {0, 1}  # each alone seems useless
    order = pruning.by_elimination(4, twins).tolist()
    assert order[0] in (0, 1)
    assert order[-1] in (0, 1)


def test_link_mass_counts_the_links_to_other_modules_and_to_the_output():
    made = network()
    p = made.log_links(made.circuit()).exp().detach()
    mass = torch.tensor([float(p[:, u].sum() - p[u, u]) for u in range(6)])
    assert pruning.by_link_mass(made).tolist() == mass.argsort(descending=True).tolist()
    made.circuit.signatures.data[2] = made.circuit.signatures.data[[0, 1, 3, 4, 5, 6]].mean(0)
    assert int(pruning.by_link_mass(made)[0]) == 2


def test_a_random_ranking_is_a_permutation_that_depends_on_its_generator():
    orders = [pruning.at_random(6, torch.Generator().manual_seed(seed)).tolist() for seed in (0, 0, 1)]
    assert sorted(orders[0]) == list(range(6))
    assert orders[0] == orders[1] != orders[2]


# pruned networks


def test_a_pruned_copy_gives_what_the_kept_modules_give_and_leaves_the_network_as_it_was():
    made, kept = network(), torch.tensor([4, 1, 2])
    with torch.no_grad():
        want = made(images(), kept=kept)
        left = pruning.pruned(made, kept)
        torch.testing.assert_close(left(images()), want)
    assert left.circuit().modules == 3
    assert made.circuit().modules == 6
    assert made.read_in.key.fixed is None
    assert left.read_in.key.fixed.shape == (3, 9)


def test_a_perceiver_is_pruned_the_same_way():
    torch.manual_seed(0)
    made = PerceiverIO(Sizes(6, 1, 12, 2, 2, 5, 10), ImageTokens(8, 4, 6, stem="patch", position_width=3)).eval()
    kept = torch.tensor([4, 1])
    with torch.no_grad():
        torch.testing.assert_close(pruning.pruned(made, kept)(images()), made(images(), kept=kept))
    assert len(made.latents) == 6


def test_modules_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="module 6 cannot be kept"):
        pruning.pruned(network(), torch.tensor([0, 6]))


# the curve


def test_the_curve_has_the_accuracy_and_the_median_time_of_every_size():
    ticks = iter(range(10_000))
    sizes = []

    def accuracy(made: NeuralAttentiveCircuit) -> float:
        sizes.append(made.circuit().modules)
        return sizes[-1] / 6

    points = pruning.curve(
        network(), torch.tensor([3, 1, 0, 2, 5, 4]), (6, 3, 1), accuracy, images(), rounds=3, clock=lambda: next(ticks)
    )
    assert [point.kept for point in points] == sizes == [6, 3, 1]
    assert [point.accuracy for point in points] == [1.0, 0.5, 1 / 6]
    assert [(point.seconds, point.spread) for point in points] == [(1, 1.0)] * 3


def test_times_are_medians_of_calls_that_take_turns_after_one_that_is_not_counted():
    called = []
    taken = {"a": iter([50, 1, 2, 9]), "b": iter([70, 4, 8, 4])}
    now = [0]

    def call(name: str) -> None:
        called.append(name)
        now[0] += next(taken[name])

    found = pruning.median_seconds(
        {name: lambda name=name: call(name) for name in taken}, rounds=3, clock=lambda: now[0]
    )
    assert found == {"a": (2, 9.0), "b": (4, 2.0)}
    assert called == ["a", "b"] * 4
