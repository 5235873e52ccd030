# SPDX-License-Identifier: Apache-2.0
"""Recall of image-text retrieval: how often a right candidate is among the k nearest of the other modality.

TR@k (text retrieval) searches a text for an image, IR@k (image retrieval) an image for a text. An image may have
several texts; a text has one image.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TIE = 1e-6
"""Cosines that differ by less count as equal: the rounding of a float32 product is about as large, and depends on the
position in the matrix."""


@torch.no_grad()
def recall(
    images: Tensor, texts: Tensor, owner: Tensor, *, ks: Sequence[int] = (1, 5, 10), chunk: int = 1024
) -> dict[str, float]:
    """The recall at each of ``ks``, in both directions: ``tr1``, ``ir1``, ...

    TR@k is the share of images with at least one of their own texts among the k nearest texts, IR@k the share of texts
    with their own image among the k nearest images; nearest by cosine. Candidates with equal cosine are ranked in
    random order: a query counts by its probability of a hit, so a network that maps everything to one point scores k /
    candidates, not 1.

    Shapes: ``images`` [m, d], ``texts`` [t, d], not necessarily normalised; ``owner`` int64 [t], the image of each
    text. ``chunk`` queries are compared at once: memory is chunk * max(m, t).
    Units: shares in [0, 1]; 1 if ``k`` is the number of candidates or more.
    Equal captions of different images are not merged: as candidates they tie, and as queries only one of them can have
    the nearest image, so perfect embeddings score below 1. Only compare scores on the same texts.
    Raises: ``ValueError`` for an owner that is no image, an image without a text, or a k below 1;
    ``FloatingPointError`` for embeddings that are not finite.
    """
    _check(images, texts, owner, ks)
    f, g = F.normalize(images.float(), dim=1), F.normalize(texts.float(), dim=1)
    every = torch.arange(len(f), device=f.device)
    found_texts, found_images = f.new_zeros(len(ks)).double(), f.new_zeros(len(ks)).double()
    for rows, mine in zip(f.split(chunk), every.split(chunk), strict=True):
        found_texts += _hits(rows @ g.T, mine[:, None] == owner, ks)
    for rows, mine in zip(g.split(chunk), owner.split(chunk), strict=True):
        found_images += _hits(rows @ f.T, mine[:, None] == every, ks)
    shares = {f"tr{k}": hits / len(f) for k, hits in zip(ks, found_texts.tolist(), strict=True)}
    return shares | {f"ir{k}": hits / len(g) for k, hits in zip(ks, found_images.tolist(), strict=True)}


def _hits(cosines: Tensor, right: Tensor, ks: Sequence[int]) -> Tensor:
    """The expected number of queries with a right candidate among the first k.  [q, c], bool [q, c] -> [len(ks)]

    First come the ``ahead`` candidates that are nearer than the best right one, then a block of ``tied`` wrong and
    ``own`` right candidates in random order, of which the first r = k - ahead count. All of these are wrong with
    probability C(tied, r) / C(tied + own, r) = prod_{j < r} (tied - j) / (tied + own - j).
    """
    best = cosines.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)  # [q, 1]
    ahead = (cosines > best + TIE).sum(dim=1)  # [q]
    block = (cosines - best).abs() <= TIE  # [q, c]
    own, size = (block & right).sum(dim=1), block.sum(dim=1)  # [q] each
    tied = size - own
    missed = torch.ones_like(ahead, dtype=torch.float64)
    hits = cosines.new_zeros(len(ks)).double()
    for k in range(1, max(ks) + 1):
        j = k - ahead - 1  # [q]: position of the k-th candidate in the block; below 0 it comes before the block
        # from the block's end on the product is 0: a right candidate has come before
        wrong = (tied - j).clamp_min(0) / (size - j).clamp_min(1)
        missed = torch.where(j >= 0, missed * wrong, missed)
        for place, wanted in enumerate(ks):
            if wanted == k:
                hits[place] = (1 - missed).sum()
    return hits


def _check(images: Tensor, texts: Tensor, owner: Tensor, ks: Sequence[int]) -> None:
    if images.dim() != 2 or texts.dim() != 2 or images.shape[1] != texts.shape[1] or owner.shape != texts.shape[:1]:
        shapes = f"images {list(images.shape)}, texts {list(texts.shape)}, owner {list(owner.shape)}"
        raise ValueError(f"{shapes} do not fit; wanted are [m, d], [t, d] and [t].")
    for name, rows in (("images", images), ("texts", texts)):
        if not rows.isfinite().all():  # every comparison with NaN is False, so NaN would count as found
            raise FloatingPointError(f"{name}[{int((~rows.isfinite()).any(dim=1).nonzero()[0])}] holds NaN or Inf.")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks = {tuple(ks)}; each k must be 1 or more.")
    outside = (owner < 0) | (owner >= len(images))
    if outside.any():
        text = int(outside.nonzero()[0])
        raise ValueError(f"text {text} belongs to image {int(owner[text])}, but there are {len(images)} images.")
    lacking = torch.bincount(owner, minlength=len(images)) == 0
    if lacking.any():
        raise ValueError(f"image {int(lacking.nonzero()[0])} has no text ({int(lacking.sum())} images have none).")
