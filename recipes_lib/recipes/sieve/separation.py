# SPDX-License-Identifier: Apache-2.0
"""Measures how well a score separates true pairs from false pairs, if the truth is known."""

from collections.abc import Mapping, Sequence

import numpy as np


def auc(scores: np.ndarray, good: np.ndarray) -> float:
    """The AUC: probability that a good pair scores above a bad one; ties count half. float [n], bool [n] -> [0, 1].

    Raises: ``ValueError`` if all pairs are good, or none is.
    """
    from sklearn.metrics import roc_auc_score  # the import takes a second, which --help should not

    if good.all() or not good.any():
        raise ValueError(f"{int(good.sum())} of {len(good)} pairs are good: an AUC needs both kinds.")
    return float(roc_auc_score(good, scores))


def by_kind(
    scores: Mapping[str, np.ndarray], kinds: np.ndarray, names: Sequence[str], aligned: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The AUC of each score by kind of pair, and over ``all`` pairs.

    Pairs of a bad kind are compared with all good pairs, and pairs of a good kind with all bad pairs. Kinds that no
    pair has are left out.

    Shapes: ``scores`` score -> [n], ``kinds`` int [n], positions in ``names``, of which ``aligned`` are good; ->
    score -> kind -> AUC.
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
    """The share of each kind's pairs that was kept: bool [n], int [n] -> kind -> share in [0, 1]."""
    return {name: float(kept[kinds == number].mean()) for number, name in enumerate(names) if (kinds == number).any()}
