# SPDX-License-Identifier: Apache-2.0
"""Groups of a training set: a class crossed with an attribute, of which few points may have a label.

Symbols: y the class in 0..C-1, a the attribute in 0..A-1, g = y A + a the group, n_g the number of points of group g.
"""

import torch
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.data import splits
from recipes_lib.data.images import UNLABELLED
from recipes_lib.errors import DataError


def group_index(labels: Tensor, attributes: Tensor, count: int) -> Tensor:
    """g = y A + a, and ``UNLABELLED`` where the attribute is.

    Shapes: ``labels`` int64 [N], ``attributes`` int64 [N] in 0..count-1 or -1 -> int64 [N].
    Raises: ``DataError`` as :func:`check_attributes`.
    """
    check_attributes(attributes, count)
    return torch.where(attributes == UNLABELLED, UNLABELLED, labels * count + attributes)


def check_attributes(attributes: Tensor, count: int) -> None:
    """Raises ``DataError`` with the values that are found unless all attributes are in 0..count-1 or -1 (no label)."""
    wrong = attributes[~((attributes >= UNLABELLED) & (attributes < count) & (attributes == attributes.round()))]
    if len(wrong):  # NaN compares False
        found = ", ".join(f"{value:g}" for value in sorted(set(map(float, wrong.tolist())), key=str)[:5])
        raise DataError(
            f"The attribute has the value {found}. Use 0 to {count - 1}, and -1 for a point whose attribute is not known."
        )


def group_names(classes: tuple[str, ...], attributes: tuple[str, ...]) -> tuple[str, ...]:
    """The names of all groups, "class, attribute", in the order of their numbers."""
    return tuple(f"{label}, {attribute}" for label in classes for attribute in attributes)


def keep_few(groups: Tensor, share: float, seed: int, *, by_group: bool = True) -> Tensor:
    """The points that keep their group label: a random share of all points.  int64 [N] -> bool [N]

    ``by_group``: the share of each group, and at least one point of it; otherwise a group may be left without a label.
    Points without a group label never get one.

    Raises: ``ValueError`` if ``share`` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share} is not in (0, 1]; 0.05 keeps one group label in twenty.")
    kept = torch.zeros(len(groups), dtype=torch.bool)
    if by_group:
        kept[splits.fraction(groups, share, seed)] = True
        return kept
    known = (groups != UNLABELLED).nonzero()[:, 0]
    order = torch.randperm(len(known), generator=randomness.generator(seed, 0, "group labels"))
    kept[known[order[: max(1, round(share * len(known)))]]] = True
    return kept


def require_labels(groups: Tensor, kept: Tensor, names: tuple[str, ...]) -> None:
    """Raises ``DataError`` unless each group has a labelled point, and there is more than one group.

    Shapes: ``groups`` int64 [N], ``kept`` bool [N], the points whose group label is used.
    """
    if not kept.any():
        raise DataError(
            "No training point has a group label, so groups cannot be predicted. Label some points, or choose an arm that "
            "needs none: --groups.arm erm, jtt, lff or george."
        )
    if len(names) < 2:
        raise DataError(
            "There is only one group, whose loss is the mean loss. Give an attribute with two values or more."
        )
    labelled = torch.bincount(groups[kept], minlength=len(names))
    if lacking := [name for name, found in zip(names, labelled.tolist(), strict=True) if not found]:
        raise DataError(
            f"No point with a group label is in: {'; '.join(lacking)}. Such a group can never be predicted, and nothing is "
            "guaranteed for it: label at least one point of each group."
        )


def balanced_weights(groups: Tensor, count: int) -> Tensor:
    """Sampling weights 1 / n_g, with which each group that has a point is drawn equally often; 0 without a group.

    Shapes: int64 [N] -> float64 [N].
    """
    known = groups != UNLABELLED
    sizes = torch.bincount(groups[known], minlength=count).double()
    return torch.where(known, 1 / sizes[groups.clamp_min(0)], 0.0)


def drawn_order(weights: Tensor, seed: int, epoch: int) -> Tensor:
    """An epoch's order of as many draws as there are points, with replacement and in proportion to ``weights``.

    Copy number c of a point, counted from 0, stands in it as the point's number plus c N, so that each copy has an
    augmentation of its own.

    Shapes: ``weights`` [N], not negative -> int64 [N].
    Raises: ``ValueError`` unless the weights are finite and one of them is above 0.
    """
    if not bool(((weights >= 0) & weights.isfinite()).all()) or not float(weights.sum()) > 0:
        raise ValueError("weights of sampling must be finite and at least 0, and one of them above 0.")
    count = len(weights)
    # the inverse of the cumulative sum: torch.multinomial takes at most 2^24 weights
    ends = weights.double().cumsum(0)
    draws = torch.rand(count, generator=randomness.generator(seed, epoch, "weighted order"), dtype=torch.float64)
    order = torch.searchsorted(ends, draws * ends[-1], right=True).clamp_max(count - 1)
    by_point = order.argsort(stable=True)
    ordered = order[by_point]
    first = torch.searchsorted(ordered, ordered)  # where the copies of a point begin
    copies = torch.empty_like(order)
    copies[by_point] = torch.arange(count) - first
    return order + copies * count
