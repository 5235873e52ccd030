# SPDX-License-Identifier: Apache-2.0
"""Zero-shot classification: a class is the mean of its prompts' embeddings, an image belongs to the nearest.

Source: Radford et al., arXiv 2103.00020, sections 3.1.2 and 3.1.4.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ZeroShot:
    """How many images the class weights name rightly."""

    accuracy: float
    """Share of the images, in [0, 1]."""
    per_class: tuple[float, ...]
    """The same of each class's images; NaN for a class that has none."""


@torch.no_grad()
def class_weights(
    encode: Callable[[list[str]], Tensor], prompts: Mapping[str, Sequence[str]], *, chunk: int = 512
) -> Tensor:
    """The normalised mean, over each class's prompts, of their normalised embeddings, in the order of ``prompts``.

    Shapes: ``encode`` takes a list of n texts, at most ``chunk``, to [n, d] -> [classes, d], float32, norm 1.
    Raises: ``ValueError`` naming the classes that have no prompt, or where there is no class.
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
        # normalised below, so a sum does for the mean
        total.index_add_(0, torch.tensor(rows, device=features.device), features)
    return F.normalize(total, dim=1)


@torch.no_grad()
def predict(features: Tensor, weights: Tensor, *, chunk: int = 8192) -> Tensor:
    """The class of highest cosine, the first of them where several are equal: [n, d], [classes, d] -> int64 [n].

    ``chunk`` images are compared at once; features need not be normalised, for their length changes no order.
    """
    return torch.cat([(rows.float() @ weights.T).argmax(dim=1) for rows in features.split(chunk)])


def accuracy(features: Tensor, weights: Tensor, labels: Tensor) -> ZeroShot:
    """How many images :func:`predict` names rightly: [n, d], [classes, d], int64 [n].

    Raises: ``ValueError`` for no image, or a label that is no class; ``FloatingPointError`` for features or weights
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
    right = (predict(features, weights) == labels).double()
    counts = torch.bincount(labels, minlength=len(weights))
    per_class = torch.bincount(labels, weights=right, minlength=len(weights)) / counts  # 0 / 0 is NaN
    return ZeroShot(right.mean().item(), tuple(per_class.tolist()))
