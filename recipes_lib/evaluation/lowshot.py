# SPDX-License-Identifier: Apache-2.0
"""Low-shot evaluation: logistic regression on the frozen features of a handful of labelled images.

Source: Assran et al., "Masked Siamese Networks", ECCV 2022, arXiv 2204.07141, and its code's ``logistic_eval.py``:
features before the last normalisation; each row centred over its own features and scaled to length 1; multinomial
logistic regression with an L2 penalty of lambda/2 |W|^2 and no intercept, lambda = 0.0025 (0.075 for 1 % of the labels).
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
    """Accuracies of several choices of the labelled images."""

    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the choices, in [0, 1]."""
        return sum(self.scores) / len(self.scores)

    @property
    def std(self) -> float:
        """Standard deviation over the choices (n - 1 in the denominator); 0 for a single one."""
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
    """Test accuracy of a regression fitted on each of ``choices``, indices of the training rows that keep their label.

    Shapes: ``train`` [N, D], ``test`` [M, D], labels int64 [N] and [M], each choice int64 [n].
    """
    from sklearn.exceptions import ConvergenceWarning  # a second of importing, which --help does without
    from sklearn.linear_model import LogisticRegression

    test_rows = _centred(test)
    scores = []
    for chosen in choices:
        model = LogisticRegression(C=1 / penalty, fit_intercept=False, max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 300 iterations are the protocol, converged or not
            model.fit(_centred(train[chosen]), train_labels[chosen].cpu().numpy())
        scores.append(float((model.predict(test_rows) == test_labels.cpu().numpy()).mean()))
    return LowShot(tuple(scores))


def _centred(rows: Tensor) -> np.ndarray:
    """Each row less its own mean, at length 1: float64 [N, D]."""
    rows = rows.cpu().double()
    return F.normalize(rows - rows.mean(dim=1, keepdim=True), dim=1).numpy()
