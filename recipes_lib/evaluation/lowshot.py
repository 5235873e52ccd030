# SPDX-License-Identifier: Apache-2.0
"""Low-shot evaluation: logistic regression on the frozen features of a few labelled images.

Source: Assran et al., "Masked Siamese Networks", ECCV 2022, arXiv 2204.07141, and its code's ``logistic_eval.py``:
features before the last normalisation; each row minus its own mean, scaled to length 1; multinomial logistic regression
without intercept, with an L2 penalty of lambda/2 |W|^2, lambda = 0.0025 (0.075 for 1 % of the labels).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LowShot:
    """The test accuracies for several choices of the labelled images."""

    scores: tuple[float, ...]
    """One accuracy per choice, in [0, 1]."""

    @property
    def mean(self) -> float:
        """The mean accuracy over the choices, in [0, 1]."""
        return sum(self.scores) / len(self.scores)

    @property
    def std(self) -> float:
        """The standard deviation over the choices (n - 1 in the denominator); 0 for a single choice."""
        return torch.tensor(self.scores, dtype=torch.float64).std().item() if len(self.scores) > 1 else 0.0


def low_shot(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    choices: Sequence[Tensor],
    penalty: float = 0.0025,
) -> LowShot:
    """The test accuracy of a logistic regression fitted on each of ``choices``: indices of the labelled training rows.

    Shapes: ``train`` [N, D], ``test`` [M, D], labels int64 [N] and [M], each choice int64 [n].
    """
    from sklearn.exceptions import ConvergenceWarning  # takes a second, and --help does not need it
    from sklearn.linear_model import LogisticRegression

    test_rows = _centred(test)
    scores = []
    for chosen in choices:
        model = LogisticRegression(C=1 / penalty, fit_intercept=False, max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol has 300 iterations, converged or not
            model.fit(_centred(train[chosen]), train_labels[chosen].cpu().numpy())
        scores.append(float((model.predict(test_rows) == test_labels.cpu().numpy()).mean()))
    return LowShot(tuple(scores))


def _centred(rows: Tensor) -> np.ndarray:
    """Each row minus its own mean, scaled to length 1.  [N, D] -> float64 [N, D]"""
    rows = rows.cpu().double()
    return F.normalize(rows - rows.mean(dim=1, keepdim=True), dim=1).numpy()
