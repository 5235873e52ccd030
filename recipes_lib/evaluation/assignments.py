# SPDX-License-Identifier: Apache-2.0
"""Metrics of how images are spread over prototypes, which show a collapse or a shortcut."""

from collections.abc import Mapping

from torch import Tensor

from recipes_lib.objectives.prototypes import average_entropy, entropy


def describe(assignments: Tensor, factors: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics of the soft assignments of N images to K prototypes.

    ``prototypes_used``: the number of prototypes that are the first choice of at least one image. ``exp_mean_entropy``:
    exp of the entropy of the mean assignment, in [1, K] (1: all images on one prototype). ``exp_entropy``: exp of the
    mean entropy of an image's assignment, in [1, K] (K: all assignments are uniform). ``nmi_NAME``: normalised mutual
    information, in [0, 1], of the first choice and the factor NAME.

    Shapes: ``assignments`` [N, K], rows sum to 1; each factor int64 [N].
    """
    from sklearn.metrics import normalized_mutual_info_score  # takes a second, and --help does not need it

    choice = assignments.argmax(dim=1).cpu()  # [N]
    metrics = {
        "prototypes_used": float(choice.unique().numel()),
        "exp_mean_entropy": float(entropy(assignments.mean(dim=0)).exp()),
        "exp_entropy": float(average_entropy(assignments).exp()),
    }
    return metrics | {f"nmi_{name}": float(normalized_mutual_info_score(f, choice)) for name, f in factors.items()}


def tint(colours: Tensor) -> Tensor:
    """The number of the hue, of six, that each colour is nearest to, by the order of its channels' values.

    Shapes: float [N, 3] -> int64 [N] in 0..5.
    """
    lowest, middle, _ = colours.argsort(dim=1).unbind(dim=1)  # [N] each: channel numbers
    return 2 * lowest + (middle - lowest) % 3 - 1  # (middle - lowest) % 3 is 1 or 2
