# SPDX-License-Identifier: Apache-2.0
"""How well a linear map predicts each true factor of an image from its features: class, colours, pose, light.

Each factor gets a ridge regression on standardised features, whose penalty is chosen on a fifth of the training rows.
All scores share one scale: 0 is the score of a guess without the image, 1 is a perfect prediction.

- A *number* (floating point; a row of k numbers is one factor): R^2, the share of the variance that is explained, over
  all columns together.
- An *angle* (a name in ``periods``): its sine and cosine are predicted as numbers, so that 359 degrees is close to 1.
- A *choice* (integer; the score of k columns is their mean): adjusted balanced accuracy,
  (mean recall - 1/C) / (1 - 1/C), over the C values among the test rows. The regression targets are one-hot rows
  divided by the frequencies of the values, so the largest output marks the value that the features favour most, however
  frequent it is.

A factor that some images do not show (the colour of an absent card, the rotation of a round bowl) cannot be predicted
for them, which lowers its score. Therefore compare the score of one factor between networks, not with other factors.

Source: Alain & Bengio, arXiv 1610.01644 (linear probes); balanced accuracy as in scikit-learn with ``adjusted=True``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib import randomness

PERIODS = {"azimuth": 360.0, "roll": 360.0, "light_azimuth": 360.0, "extra_azimuth": 360.0, "extra_hue": 1.0}
"""The Pantry's circular factors and their periods: 360 degrees, or 1 for a hue as a share of the colour circle."""

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties that are tried, relative to the variance (1) of a standardised feature."""

FEWEST = 10
"""The least number of training rows: a fifth of them, at least 2, chooses the penalties."""


@dataclass(frozen=True)
class _Target:
    """A factor, or one column of a choice, as the targets of a regression."""

    factor: str
    """The factor's name."""
    train: Tensor
    """float64 [N, k]: the numbers, or one column per value of the choice."""
    truth: Tensor
    """The training rows' true values: the same as ``train`` for numbers, or int64 [N], a column number of ``train``."""
    test: Tensor
    """The test rows' true values, in the form of ``truth``; -1 for a value that no training row has."""


def factor_scores(
    train: Tensor,
    train_factors: Mapping[str, Tensor],
    test: Tensor,
    test_factors: Mapping[str, Tensor],
    *,
    periods: Mapping[str, float] = PERIODS,
) -> dict[str, float]:
    """The test score, in [0, 1], of each factor's prediction by a linear map of the features, fitted on ``train``.

    Factors that do not vary are left out, and so are choices whose test values are all new (the number of a scan).

    Shapes: ``train`` [N, D], ``test`` [M, D]; factors [N] or [N, k] and [M] or [M, k], floating point or integers.

    Raises: ``ValueError`` if lengths or names do not fit together, or there are fewer than 10 training rows.
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
    joined = torch.cat([target.train for target in targets], dim=1)  # [N, K]: one decomposition serves all targets
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
        raise ValueError(
            f"both sides need the same factors; one lacks {sorted(train_factors.keys() ^ test_factors.keys())}"
        )
    for rows, factors in ((train, train_factors), (test, test_factors)):
        for name, values in factors.items():
            if len(values) != len(rows) or values.ndim not in (1, 2):
                raise ValueError(f"factor {name} has shape {list(values.shape)} for {len(rows)} rows of features")
    for name, values in train_factors.items():
        if values.shape[1:] != test_factors[name].shape[1:]:
            raise ValueError(f"factor {name} has {list(values.shape)} and {list(test_factors[name].shape)} values")


def _targets(name: str, train: Tensor, test: Tensor, period: float | None) -> list[_Target]:
    """The regression targets of a factor; an empty list if the factor does not vary."""
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
    """The ridge regression's predictions for the test rows, one tensor per penalty.

    Shapes: float64 ``train`` [N, D], ``targets`` [N, K], ``test`` [M, D] -> [M, K] for each of ``PENALTIES``.
    """
    mean, deviation = train.mean(dim=0), train.std(dim=0, correction=0)
    scale = torch.where(deviation > 1e-9 * deviation.max(), deviation, torch.inf)  # a constant feature becomes 0
    train, test = (train - mean) / scale, (test - mean) / scale
    level = targets.mean(dim=0)  # [K]
    moment = (targets - level) / len(train)  # [N, K]
    if len(train) < train.shape[1]:  # the same solution by the smaller linear system
        gram, basis = train @ train.T / len(train), test @ train.T  # [N, N], [M, N]
    else:
        gram, basis, moment = train.T @ train / len(train), test, train.T @ moment  # [D, D], [M, D], [D, K]
    unit = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = (torch.cholesky_solve(moment, torch.linalg.cholesky(gram + penalty * unit)) for penalty in PENALTIES)
    return [level + basis @ weight for weight in weights]


def _score(read: Tensor, truth: Tensor) -> float:
    """The score of the predictions ``read`` float64 [M, k]; it is below 0 if a guess without the image is better.

    ``truth``: numbers float64 [M, k], or column numbers int64 [M].
    """
    if truth.is_floating_point():
        errors, spread = (read - truth).square().sum(), (truth - truth.mean(dim=0)).square().sum()
        return (1 - errors / spread.clamp_min(torch.finfo(spread.dtype).tiny)).item()
    values, places = truth.unique(return_inverse=True)
    right = (read.argmax(dim=1) == truth).double()
    recall = torch.zeros(len(values), dtype=right.dtype, device=right.device).index_add_(0, places, right)
    recall = (recall / places.bincount()).mean().item()
    chance = 1 / len(values)
    return (recall - chance) / max(1 - chance, chance)
