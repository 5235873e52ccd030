# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import pytest
import torch

from recipes_lib.errors import ConfigError
from recipes_lib.models.nac.links import link_probabilities
from recipes_lib.recipes.nac import priors

SIGNATURES = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 0]], dtype=torch.float64)
"""The signatures of golden value n1."""
GRAPHS = {
    "planted_partition": priors.planted_partition(12, 3),
    "ring_of_cliques": priors.ring_of_cliques(12, 3),
    "scale_free": priors.scale_free(12),
    "watts_strogatz": priors.watts_strogatz(12, 4),
    "erdos_renyi": priors.erdos_renyi(12, 0.2),
}


# targets


def test_n6_a_scale_free_target():
    target = priors.scale_free(6)
    first = (0.1530931089, 0.1082531755, 0.0883883476, 0.0765465545, 0.0684653197, 0.0625)
    assert target[0].tolist() == pytest.approx(first, abs=1e-8)
    assert float(target.mean()) == pytest.approx(0.0563425586, abs=1e-8)


def test_n6_the_loss_of_a_planted_partition_is_that_of_the_best_of_all_matchings():
    target = priors.planted_partition(4, 2)
    assert float(priors.prior_loss(SIGNATURES, target, bandwidth=1.0)) == pytest.approx(0.1171234257, abs=1e-8)
    p = link_probabilities(SIGNATURES, bandwidth=1.0)
    orders = [list(order) for order in itertools.permutations(range(4))]
    best = min(float((p[order][:, order] - target).square().mean()) for order in orders)
    assert best == pytest.approx(0.1171234257, abs=1e-8)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_target_is_symmetric_and_its_values_are_probabilities(name):
    target = GRAPHS[name]
    assert torch.equal(target, target.T)
    assert (target.min() >= 0, target.max() <= 1) == (True, True)
    assert target.dtype == torch.float32


def test_a_planted_partition_has_equal_clusters():
    target = GRAPHS["planted_partition"]
    assert target[0, :5].tolist() == pytest.approx([0.9] * 4 + [0.05])
    assert float((target == target[0, 0]).float().mean()) == pytest.approx(1 / 3)


def test_a_ring_of_cliques_is_closed():
    target = GRAPHS["ring_of_cliques"]
    ones = {(int(i), int(j)) for i, j in (target == 1).nonzero()}
    hubs = {0: range(8), 4: range(4, 12), 8: [*range(8, 12), *range(4)]}
    assert ones == {pair for hub, near in hubs.items() for i in near for pair in ((hub, i), (i, hub))}


def test_a_small_world_has_as_many_links_as_its_ring():
    target = priors.watts_strogatz(30, 6, rewired=0.3)
    rows = target.sum(1) - target.diagonal()
    assert rows.tolist() == pytest.approx([6.0] * 30, abs=1e-4)
    assert target[0, [1, 2, 3, 27, 28, 29]].tolist() == pytest.approx([0.7] * 6)
    assert float(target[0, 4]) == pytest.approx(0.3 * 6 / 23)


def test_degrees_are_those_of_networkx_graphs_on_average():
    nx = pytest.importorskip("networkx", reason="networkx is not installed")
    drawn = {
        "planted_partition": lambda seed: nx.planted_partition_graph(3, 4, 0.9, 0.05, seed=seed),
        "watts_strogatz": lambda seed: nx.watts_strogatz_graph(12, 4, 0.4, seed=seed),
        "erdos_renyi": lambda seed: nx.erdos_renyi_graph(12, 0.2, seed=seed),
    }
    for name, draw in drawn.items():
        edges = [draw(seed).number_of_edges() for seed in range(200)]
        target = GRAPHS[name]
        expected = float((target.sum() - target.diagonal().sum()) / 2)
        assert sum(edges) / len(edges) == pytest.approx(expected, rel=0.06), name


# matching


def test_matching_undoes_a_permutation_of_the_modules():
    generator = torch.Generator().manual_seed(0)
    target = link_probabilities(torch.randn(9, 4, generator=generator), bandwidth=0.5)
    order = torch.randperm(9, generator=generator)
    found = priors.match(target[order][:, order], target)
    # the cost compares rows without permuting their columns, so it is sure of the answer only here
    assert torch.equal(priors.match(target, target), torch.arange(9))
    assert sorted(found.tolist()) == list(range(9))


def test_the_gradient_of_the_loss_is_that_of_the_matched_difference():
    signatures = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    target = priors.planted_partition(6, 2)
    (gradient,) = torch.autograd.grad(priors.prior_loss(signatures, target, bandwidth=0.5), signatures)
    p = link_probabilities(signatures, bandwidth=0.5)
    order = priors.match(p, target)
    (want,) = torch.autograd.grad((p[order][:, order] - target).square().mean(), signatures)
    torch.testing.assert_close(gradient, want)
    assert (gradient * signatures).sum(1).abs().max() < 1e-14
    assert gradient.abs().max() > 1e-4


def test_signatures_can_realise_a_planted_partition_and_not_a_ring_of_cliques():
    found = {}
    for name, target in (("partition", priors.planted_partition(16, 4)), ("ring", priors.ring_of_cliques(16, 4))):
        generator = torch.Generator().manual_seed(0)
        signatures = priors.realise(16, 8, target, bandwidth=0.35, generator=generator, steps=150)
        found[name] = priors.distance(signatures, target, bandwidth=0.35)
    assert found["partition"]["mse"] < 1e-3
    assert found["partition"]["correlation"] > 0.99
    assert found["partition"]["mean"] == pytest.approx(found["partition"]["target"], abs=0.01)
    # a hub that is one with two clusters would make these two one
    assert found["ring"]["mse"] > 0.02


def test_the_distance_from_a_target_is_0_for_the_target_itself():
    target = link_probabilities(SIGNATURES, bandwidth=1.0)
    found = priors.distance(SIGNATURES, target, bandwidth=1.0)
    assert found["mse"] == pytest.approx(0, abs=1e-20)
    assert found["correlation"] == pytest.approx(1)
    assert math.isnan(priors.distance(SIGNATURES, priors.erdos_renyi(4, 0.3), bandwidth=1.0)["correlation"])


# bad input


def test_a_target_below_the_floor_is_refused_with_the_floor_and_the_bandwidth_that_reaches_it():
    target = priors.planted_partition(12, 3)
    with pytest.raises(ConfigError, match=r"0.05 of a link cannot be reached: .*exp\(-2 / 1\) = 0.1353.*at most 0.668"):
        priors.check_reachable(target, bandwidth=1.0)
    priors.check_reachable(target, bandwidth=0.667)  # 2 / -ln 0.05 = 0.6676
    with pytest.raises(ConfigError, match=r"among 3 groups has less than exp\(-1.5 / 0.667\) = 0.1055.*at most 0.501"):
        priors.check_reachable(target, bandwidth=0.667, groups=3)
    with pytest.raises(ConfigError, match="Use a target above 0"):
        priors.check_reachable(torch.zeros(2, 2), bandwidth=0.1)


def test_no_signatures_of_three_groups_reach_below_their_floor():
    """The mean cosine of three directions is at least -1/2."""
    target = priors.planted_partition(6, 3, outside=1e-4)
    signatures = priors.realise(6, 6, target, bandwidth=1.0, generator=torch.Generator().manual_seed(0), steps=150)
    p = link_probabilities(signatures, bandwidth=1.0)
    outside = p[target < 0.5]
    assert float(outside.log().mean().exp()) >= math.exp(-1.5) - 1e-6  # the mean cosine is that of the logarithms
    assert float(outside.mean()) == pytest.approx(math.exp(-1.5), abs=0.02)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(
        ConfigError, match="10 modules do not divide among 3 clusters of equal size: use a divisor of 10"
    ):
        priors.planted_partition(10, 3)
    with pytest.raises(ConfigError, match="10 modules do not divide among 0 clusters"):
        priors.ring_of_cliques(10, 0)
    with pytest.raises(ConfigError, match="3 neighbours on a ring of 10 modules: use an even number from 2 to 8"):
        priors.watts_strogatz(10, 3)
    with pytest.raises(ValueError, match="signature 1 has length 0"):
        priors.distance(torch.tensor([[1.0, 0], [0, 0]]), priors.erdos_renyi(2, 0.5), bandwidth=1.0)
