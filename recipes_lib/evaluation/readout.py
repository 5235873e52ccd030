# SPDX-License-Identifier: Apache-2.0
"""How much of each true factor of an image a linear map reads from its features: class, colours, pose, light.

One ridge regression on standardised features for each factor, its penalty chosen on a fifth of the training rows. All
scores share a scale: 0 is what a guess gets that knows no image, 1 is without fault.

- A *number* (floating point; a row of k numbers is one factor): R^2, the share of the variance that is explained, of
  all its columns together.
- An *angle* (a name in ``periods``): as the numbers sine and cosine, so that 359 degrees lies beside 1.
- A *choice* (integer; of k columns the mean): balanced accuracy above chance, (mean recall - 1/C) / (1 - 1/C) of the C
  values that the test rows take. The regression is on one-hot rows divided by the values' frequencies, so the largest
  output is the value that the features speak for most, whatever values are frequent.

A factor that some images do not show (the colour of a card that is not there, the turn of a round bowl) cannot be read
from those, which lowers its score: compare it between networks, rather than with other factors.

Source: Alain & Bengio, arXiv 1610.01644 (linear probes); balanced accuracy as scikit-learn's, with ``adjusted``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib import randomness

PERIODS = {"azimuth": 360.0, "roll": 360.0, "light_azimuth": 360.0, "extra_azimuth": 360.0, "extra_hue": 1.0}
"""The Pantry's circular factors, and the value at which each is back where it began: degrees; a share of all hues."""

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties that are tried, in units of a standardised feature's sum of squares."""

FEWEST = 10
"""Training rows that are needed: a fifth of them chooses the penalties."""


@dataclass(frozen=True)
class _Target:
    """A factor, or a column of a choice, as numbers that a regression can learn."""

    factor: str
    train: Tensor
    """float64 [N, k]: numbers; or a column a value of the choice."""
    truth: Tensor
    """Of the training rows: as ``train``; or int64 [N], columns of it."""
    test: Tensor
    """As ``truth``, of the test rows; -1 for a value that no training row has."""


def factor_scores(
    train: Tensor,
    train_factors: Mapping[str, Tensor],
    test: Tensor,
    test_factors: Mapping[str, Tensor],
    *,
    periods: Mapping[str, float] = PERIODS,
) -> dict[str, float]:
    """The test score in [0, 1] of each factor: how well a linear map of the features, fitted on ``train``, reads it.

    Left out are factors that do not vary, and those whose test values are all new (the number of a scan).

    Shapes: ``train`` [N, D], ``test`` [M, D]; factors [N] or [N, k] and [M] or [M, k], floating point or integers.

    Raises: ``ValueError`` where lengths or names do not fit together, or there are fewer than 10 training rows.
    """
    _check(train, train_factors, test, test_factors)
    targets = [
        target
        for name in train_factors
        for target in _targets(name, train_factors[name], test_factors[name], periods.get(name))
    ]
    if not targets:
        return {}
    train, test = train.double(), test.double()
    order = randomness.permutation(0, 0, len(train)).to(train.device)
    held, kept = order[: len(train) // 5], order[len(train) // 5 :]
    joined = torch.cat([target.train for target in targets], dim=1)  # one decomposition serves all
    widths = [target.train.shape[1] for target in targets]
    on_held = [read.split(widths, dim=1) for read in _ridge(train[kept], joined[kept], train[held])]
    on_test = [read.split(widths, dim=1) for read in _ridge(train, joined, test)]
    found: dict[str, list[float]] = {}
    for place, target in enumerate(targets):
        trials = [_score(reads[place], target.truth[held]) for reads in on_held]
        best = max(range(len(PENALTIES)), key=trials.__getitem__)
        found.setdefault(target.factor, []).append(_score(on_test[best][place], target.test))
    return {name: max(0.0, sum(scores) / len(scores)) for name, scores in found.items()}


def _check(
    train: Tensor, train_factors: Mapping[str, Tensor], test: Tensor, test_factors: Mapping[str, Tensor]
) -> None:
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        raise ValueError(f"features are [N, D] and [M, D], not {list(train.shape)} and {list(test.shape)}")
    if len(train) < FEWEST:
        raise ValueError(f"{len(train)} training rows are too few to fit and choose a penalty: give at least {FEWEST}")
    if train_factors.keys() != test_factors.keys():
        raise ValueError(f"factors of one side alone: {sorted(train_factors.keys() ^ test_factors.keys())}")
    for rows, factors in ((train, train_factors), (test, test_factors)):
        for name, values in factors.items():
            if len(values) != len(rows) or values.ndim not in (1, 2):
                raise ValueError(f"factor {name} has shape {list(values.shape)} for {len(rows)} rows of features")
    for name, values in train_factors.items():
        if values.shape[1:] != test_factors[name].shape[1:]:
            raise ValueError(f"factor {name} has {list(values.shape)} and {list(test_factors[name].shape)} values")


def _targets(name: str, train: Tensor, test: Tensor, period: float | None) -> list[_Target]:
    """What is to be learned of a factor; nothing where it does not vary."""
    train, test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    if not train.is_floating_point():
        columns = (_choice(name, *column) for column in zip(train.long().T, test.long().T, strict=True))
        return [target for target in columns if target is not None]
    train, test = (_on_circle(rows.double(), period) if period else rows.double() for rows in (train, test))
    if any(bool((rows == rows[:1]).all()) for rows in (train, test)):
        return []
    return [_Target(name, train, train, test)]


def _on_circle(values: Tensor, period: float) -> Tensor:
    turn = values * (2 * math.pi / period)
    return torch.cat([turn.sin(), turn.cos()], dim=1)


def _choice(name: str, train: Tensor, test: Tensor) -> _Target | None:
    values, places = train.unique(return_inverse=True)
    known = torch.isin(test, values)
    if len(values) < 2 or len(test.unique()) < 2 or not known.any():
        return None
    one_hot = F.one_hot(places, len(values)).double()
    test_places = torch.where(known, torch.searchsorted(values, test.contiguous()).clamp_max(len(values) - 1), -1)
    return _Target(name, one_hot / one_hot.mean(dim=0), places, test_places)


def _ridge(train: Tensor, targets: Tensor, test: Tensor) -> list[Tensor]:
    """What is read off the test rows with each penalty: float64 [N, D], [N, K], [M, D] -> [M, K] each."""
    mean, deviation = train.mean(dim=0), train.std(dim=0, correction=0)
    scale = torch.where(deviation > 1e-9 * deviation.max(), deviation, torch.inf)  # a dead feature says nothing
    train, test = (train - mean) / scale, (test - mean) / scale
    level = targets.mean(dim=0)
    moment = (targets - level) / len(train)
    if len(train) < train.shape[1]:  # the same solution by the smaller of two systems
        gram, basis = train @ train.T / len(train), test @ train.T
    else:
        gram, basis, moment = train.T @ train / len(train), test, train.T @ moment
    unit = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = (torch.cholesky_solve(moment, torch.linalg.cholesky(gram + penalty * unit)) for penalty in PENALTIES)
    return [level + basis @ weight for weight in weights]


def _score(read: Tensor, truth: Tensor) -> float:
    """The score of float64 [M, k] against numbers [M, k] or columns int64 [M]; below 0 where a guess does better."""
    if truth.is_floating_point():
        errors, spread = (read - truth).square().sum(), (truth - truth.mean(dim=0)).square().sum()
        return (1 - errors / spread.clamp_min(torch.finfo(spread.dtype).tiny)).item()
    values, places = truth.unique(return_inverse=True)
    right = (read.argmax(dim=1) == truth).double()
    recall = torch.zeros(len(values), dtype=right.dtype, device=right.device).index_add_(0, places, right)
    recall = (recall / places.bincount()).mean().item()
    chance = 1 / len(values)
    return (recall - chance) / max(1 - chance, chance)
