# SPDX-License-Identifier: Apache-2.0
"""Zero-shot classification: a class is the mean of its prompts' embeddings, and an image gets the nearest class.

Source: Radford et al., arXiv 2103.00020, sections 3.1.2 and 3.1.4.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ZeroShot:
    """The accuracy of a zero-shot classifier, over all images and per class."""

    accuracy: float
    """The share of images that are classified rightly, in [0, 1]."""
    per_class: tuple[float, ...]
    """The accuracy on the images of each class; NaN for a class without images."""


@torch.no_grad()
def class_weights(
    encode: Callable[[list[str]], Tensor], prompts: Mapping[str, Sequence[str]], *, chunk: int = 512
) -> Tensor:
    """The classifier's weights: for each class the normalised mean of its prompts' normalised embeddings.

    Shapes: ``encode`` maps a list of n texts, at most ``chunk``, to [n, d] -> float32 [classes, d] of norm 1, in the
    order of ``prompts``.
    Raises: ``ValueError`` naming the classes without a prompt, or if there is no class.
    """
    empty = [name for name, texts in prompts.items() if not texts]
    if empty or not prompts:
        raise ValueError(f"no prompt for class {', '.join(map(repr, empty))}." if empty else "there is no class.")
    texts = [(row, text) for row, of_class in enumerate(prompts.values()) for text in of_class]
    total = None
    for start in range(0, len(texts), chunk):
        rows, some = zip(*texts[start : start + chunk], strict=True)
        features = F.normalize(encode(list(some)).float(), dim=1)  # [n, d]
        if total is None:
            total = features.new_zeros(len(prompts), features.shape[1])
        # the sum is normalised below, so it need not be divided by the number of prompts
        total.index_add_(0, torch.tensor(rows, device=features.device), features)
    return F.normalize(total, dim=1)


@torch.no_grad()
def predict(features: Tensor, weights: Tensor, *, chunk: int = 8192) -> Tensor:
    """The class with the highest cosine for each image; of equal ones the first.  [n, d], [classes, d] -> int64 [n]

    ``chunk`` images are compared at once. Features need not be normalised: their norm does not change the order.
    """
    return torch.cat([(rows.float() @ weights.T).argmax(dim=1) for rows in features.split(chunk)])


def accuracy(features: Tensor, weights: Tensor, labels: Tensor) -> ZeroShot:
    """The accuracy of :func:`predict`, in total and per class.

    Shapes: ``features`` [n, d], ``weights`` [classes, d], ``labels`` int64 [n].
    Raises: ``ValueError`` if there is no image or a label is no class; ``FloatingPointError`` for features or weights
    that are not finite.
    """
    if not (features.isfinite().all() and weights.isfinite().all()):
        raise FloatingPointError("features or class weights hold NaN or Inf.")
    if not len(labels) or len(labels) != len(features):
        raise ValueError(
            f"{len(features)} images and {len(labels)} labels; there must be one for each, and at least one."
        )
    if labels.min() < 0 or labels.max() >= len(weights):
        raise ValueError(
            f"labels from {int(labels.min())} to {int(labels.max())}, but there are {len(weights)} classes."
        )
    right = (predict(features, weights) == labels).double()  # [n]
    counts = torch.bincount(labels, minlength=len(weights))  # [classes]
    per_class = torch.bincount(labels, weights=right, minlength=len(weights)) / counts  # 0 / 0 is NaN
    return ZeroShot(right.mean().item(), tuple(per_class.tolist()))
