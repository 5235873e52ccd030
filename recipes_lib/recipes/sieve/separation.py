# SPDX-License-Identifier: Apache-2.0
"""How well a score tells pairs that belong together from those that do not, where the truth is known."""

from collections.abc import Mapping, Sequence

import numpy as np


def auc(scores: np.ndarray, good: np.ndarray) -> float:
    """The chance that a good pair scores above a bad one, ties counted half: float [n], bool [n] -> [0, 1].

    Raises: ``ValueError`` where all pairs are good, or none is.
    """
    from sklearn.metrics import roc_auc_score  # a second of importing, which --help does without

    if good.all() or not good.any():
        raise ValueError(f"{int(good.sum())} of {len(good)} pairs are good: an AUC needs both kinds.")
    return float(roc_auc_score(good, scores))


def by_kind(
    scores: Mapping[str, np.ndarray], kinds: np.ndarray, names: Sequence[str], aligned: Sequence[str]
) -> dict[str, dict[str, float]]:
    """AUC of each signal by kind: of a bad kind against all good pairs, of a good kind against all bad ones; ``all`` of both.

    Shapes: ``scores`` signal -> [n], ``kinds`` int [n], positions in ``names``, of which ``aligned`` are good -> signal ->
    kind -> AUC. Kinds that no pair has are left out.
    """
    good = np.isin(kinds, [names.index(name) for name in aligned])
    found: dict[str, dict[str, float]] = {}
    for signal, values in scores.items():
        found[signal] = {"all": auc(values, good)}
        for number, name in enumerate(names):
            own = kinds == number
            if own.any():
                some = own | (good if name not in aligned else ~good)
                found[signal][name] = auc(values[some], good[some])
    return found


def kept_kinds(kept: np.ndarray, kinds: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The share of each kind's pairs that were kept: bool [n], int [n] -> kind -> share."""
    return {name: float(kept[kinds == number].mean()) for number, name in enumerate(names) if (kinds == number).any()}
