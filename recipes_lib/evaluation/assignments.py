# SPDX-License-Identifier: Apache-2.0
"""How images are spread over prototypes: the metrics in which a collapse, or a shortcut, shows."""

from collections.abc import Mapping

from torch import Tensor

from recipes_lib.objectives.prototypes import average_entropy, entropy


def describe(assignments: Tensor, factors: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics of the soft assignments of N images to K prototypes.

    ``prototypes_used``: prototypes that are some image's first choice. ``exp_mean_entropy``: exp of the entropy of the
    mean assignment, in [1, K] (1: all images on one prototype). ``exp_entropy``: exp of the mean entropy of an image's
    assignment, in [1, K] (K: flat, so that it says nothing). ``nmi_NAME``: normalised mutual information, in [0, 1],
    of the first choice with each factor.

    Shapes: ``assignments`` [N, K], rows sum to 1; each factor int64 [N].
    """
    from sklearn.metrics import normalized_mutual_info_score  # a second of importing, which --help does without

    choice = assignments.argmax(dim=1).cpu()
    metrics = {
        "prototypes_used": float(choice.unique().numel()),
        "exp_mean_entropy": float(entropy(assignments.mean(dim=0)).exp()),
        "exp_entropy": float(average_entropy(assignments).exp()),
    }
    return metrics | {f"nmi_{name}": float(normalized_mutual_info_score(f, choice)) for name, f in factors.items()}


def tint(colours: Tensor) -> Tensor:
    """Which of six hues a colour is nearest to, told by the order of its channels.  [N, 3] -> int64 [N] in 0..5"""
    lowest, middle, _ = colours.argsort(dim=1).unbind(dim=1)
    return 2 * lowest + (middle - lowest) % 3 - 1  # the middle channel is the next one round, or the one after
