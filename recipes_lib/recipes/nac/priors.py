# SPDX-License-Identifier: Apache-2.0
"""Graph priors: the target that links should have on average, and a loss that pulls the signatures towards it.

A target (a graphon) is a symmetric matrix G of link probabilities for N modules. Modules have no order, so they are
matched to the target's nodes by the Hungarian algorithm before they are compared.

Symbols: N modules, P link probabilities, G target, eps bandwidth.
Source: ``mweiss17/NeuralAttentiveCircuits``, ``objectives/regularization.py``.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from recipes_lib.errors import ConfigError
from recipes_lib.models.nac.links import check_signatures, log_link_probabilities

Graph = Literal["planted_partition", "ring_of_cliques", "scale_free", "watts_strogatz", "erdos_renyi"]


def planted_partition(modules: int, clusters: int, *, inside: float = 0.9, outside: float = 0.05) -> Tensor:
    """Clusters of equal size: probability ``inside`` within one, its diagonal too, ``outside`` elsewhere.  -> [N, N]

    Raises: ``ConfigError`` if the clusters cannot have equal sizes.
    """
    if clusters < 1 or modules % clusters:
        raise ConfigError(
            f"{modules} modules do not divide among {clusters} clusters of equal size: use a divisor of {modules}."
        )
    cluster = torch.arange(modules) // (modules // clusters)
    return torch.where(cluster[:, None] == cluster, inside, outside)


def ring_of_cliques(modules: int, clusters: int, *, inside: float = 0.9, outside: float = 0.05) -> Tensor:
    """A planted partition; the first node of each cluster is also linked to all of its own and of the next cluster.

    Differs: the official code leaves out the link from the last cluster to the first, without which it is no ring.
    Raises: ``ConfigError`` as :func:`planted_partition`.
    """
    target = planted_partition(modules, clusters, inside=inside, outside=outside)
    size = modules // clusters
    for cluster in range(clusters):
        for other in (cluster, (cluster + 1) % clusters):
            part = slice(other * size, (other + 1) * size)
            target[cluster * size, part] = 1.0
            target[part, cluster * size] = 1.0
    return target


def scale_free(modules: int) -> Tensor:
    """G_ij = sqrt(N / (i j)) / 16, at most 1, for i, j = 1 ... N: a few nodes have many links, as in Barabasi-Albert's
    graphs.  -> [N, N]
    """
    i = torch.arange(1, modules + 1, dtype=torch.float64)
    return ((modules / (i[:, None] * i)).sqrt() / 16).clamp(max=1.0).float()


def watts_strogatz(modules: int, neighbours: int, *, rewired: float = 0.4) -> Tensor:
    """Link probabilities of Watts and Strogatz's small worlds: a ring whose links are partly moved elsewhere.

    Every node is linked to its ``neighbours`` nearest ones on the ring, half on each side; each link is moved to a
    random node with probability ``rewired``. Its diagonal is 1, since a module is linked to itself.

    Shapes: -> [N, N]; mean of a row without the diagonal: neighbours / (N - 1).
    Raises: ``ConfigError`` if ``neighbours`` is odd or does not fit on the ring.
    Differs: the official code indexes a vector by two numbers, and cannot run. The links moved away are spread over all
    nodes that are no neighbours, so that the number of links is exact.
    """
    if neighbours % 2 or not 2 <= neighbours < modules - 1:
        raise ConfigError(
            f"{neighbours} neighbours on a ring of {modules} modules: use an even number from 2 to {modules - 2}."
        )
    place = torch.arange(modules)
    apart = (place[:, None] - place).abs()
    near = torch.minimum(apart, modules - apart) <= neighbours // 2
    target = torch.where(near, 1 - rewired, rewired * neighbours / (modules - 1 - neighbours))
    return target.fill_diagonal_(1.0)


def erdos_renyi(modules: int, probability: float) -> Tensor:
    """Every link has the same probability, but that of a module to itself, which is 1.  -> [N, N]"""
    return torch.full((modules, modules), probability).fill_diagonal_(1.0)


def check_reachable(target: Tensor, *, bandwidth: float, groups: int = 2) -> None:
    """Raises ``ConfigError`` if a target is below the least probability that links can have.

    Two signatures are at most opposite, so p >= exp(-2 / eps). The signatures of k ``groups`` that are all unlike each
    other have a mean cosine of at least -1 / (k - 1), so that with k > 2 the floor is exp(-(1 + 1 / (k - 1)) / eps).
    """
    apart = 1 + 1 / (groups - 1)
    floor, wanted = math.exp(-apart / bandwidth), float(target.min())
    if wanted < floor:
        needed = f"a bandwidth of at most {apart / -math.log(wanted):.3f}" if wanted > 0 else "a target above 0"
        among = "" if groups == 2 else f" among {groups} groups"
        raise ConfigError(
            f"the target probability {wanted:.4g} of a link cannot be reached: with bandwidth {bandwidth:g} no link"
            f"{among} has less than exp(-{apart:.3g} / {bandwidth:g}) = {floor:.4g} on average. Use {needed}."
        )


def match(probabilities: Tensor, target: Tensor) -> Tensor:
    """The module that takes each node of the target: int64 [N], a permutation.

    The Hungarian algorithm compares rows as they are, mean_v (G_uv - P_u'v)^2, and then rows and columns are permuted
    alike. This is a heuristic and not the best graph matching.

    Shapes: ``probabilities`` and ``target`` [N, N].
    """
    cost = torch.cdist(target.double(), probabilities.detach().double().cpu()).square() / len(target)
    return _assignment(cost)


@torch.library.custom_op("recipes_lib::assignment", mutates_args=())
def _assignment(cost: Tensor) -> Tensor:
    """The column of each row in the cheapest assignment.  float64 [N, N] on the CPU -> int64 [N]"""
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])


@_assignment.register_fake
def _assignment_without_values(cost: Tensor) -> Tensor:
    """What a plan sees, which traces a step without any values."""
    return cost.new_empty(len(cost), dtype=torch.int64)


def prior_loss(signatures: Tensor, target: Tensor, *, bandwidth: float) -> Tensor:
    """mean_uv (P_uv - G_uv)^2 of the matched modules, whose gradient reaches the signatures.

    Shapes: ``signatures`` [N, dim], ``target`` [N, N] -> [].
    """
    p = log_link_probabilities(signatures, signatures, bandwidth=bandwidth).exp()
    order = match(p, target).to(p.device)
    return F.mse_loss(p[order][:, order], target.to(p))


def realise(
    modules: int, dim: int, target: Tensor, *, bandwidth: float, generator: torch.Generator, steps: int = 500
) -> Tensor:
    """Signatures whose links have the target's probabilities as nearly as Adam finds them, to start training from.

    Module n takes node n of the target, so nothing is matched.

    Shapes: -> [modules, dim].
    Source: the official code draws a graph and fits the signatures to it; here they are fitted to the probabilities.
    """
    signatures = torch.randn(modules, dim, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([signatures], lr=0.05)
    for _ in range(steps):
        p = log_link_probabilities(signatures, signatures, bandwidth=bandwidth).exp()
        optimizer.zero_grad()
        F.mse_loss(p, target).backward()
        optimizer.step()
    return signatures.detach()


def distance(signatures: Tensor, target: Tensor, *, bandwidth: float) -> dict[str, float]:
    """How far the links are from a target: ``mse`` (as :func:`prior_loss`, diagonals left out), ``mean`` and ``target``
    (mean probabilities without the diagonal), ``correlation`` of the two matrices without their diagonals.

    Raises: ``ValueError`` for a signature of length 0.
    """
    check_signatures(signatures)
    p = log_link_probabilities(signatures, signatures, bandwidth=bandwidth).exp().detach().double()
    order = match(p, target)
    other = ~torch.eye(len(p), dtype=torch.bool)
    ours, wanted = p[order][:, order][other], target.double()[other]
    both = torch.stack([ours, wanted])
    return {
        "mse": float((ours - wanted).square().mean()),
        "mean": float(ours.mean()),
        "target": float(wanted.mean()),
        "correlation": float(torch.corrcoef(both)[0, 1]) if float(wanted.std()) > 0 else math.nan,
    }
