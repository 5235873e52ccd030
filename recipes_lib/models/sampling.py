# SPDX-License-Identifier: Apache-2.0
"""How the next token of a text is drawn: pure functions of logits and uniform draws.

Symbols: n texts, V entries of the vocabulary, L tokens so far.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipes_lib.randomness import uniform

_FEW = 64  # tokens that hold most nuclei of a trained network


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How captions are drawn. The defaults are those of Sieve's official code, whose lengths count a prompt of 4 tokens.

    Raises: ``ValueError`` that names the field and its range.
    """

    top_p: float = 0.9
    """Share of probability that the nucleus holds, in (0, 1]; 1 is plain sampling, next to 0 the likeliest token."""
    min_length: int = 1
    """Tokens that are drawn before the end may be; from 0 on."""
    max_length: int = 16
    """Tokens that are drawn at most, the end among them; at least ``min_length``, and 1."""
    repetition_penalty: float = 1.1
    """By how much a token that is there already is less likely; from 1, which is no penalty, on."""

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} is not in (0, 1].")
        if not 0 <= self.min_length <= self.max_length or self.max_length < 1:
            lengths = f"min_length = {self.min_length}, max_length = {self.max_length}"
            raise ValueError(f"{lengths}; they need 0 <= min_length <= max_length and max_length >= 1.")
        if not self.repetition_penalty >= 1:
            raise ValueError(f"repetition_penalty = {self.repetition_penalty} is below 1.")

    def draws(self, seeds: Tensor, count: int) -> Tensor:
        """The uniform draws of ``count`` captions per image; more captions leave the earlier ones' draws as they are.

        Shapes: ``seeds`` int64 [images] -> float32 [images * count, max_length], an image's captions side by side.
        """
        return uniform(seeds, "captions", count * self.max_length).view(-1, self.max_length)


def nucleus(logits: Tensor, top_p: float, draws: Tensor) -> Tensor:
    """A token of each text from its nucleus: the fewest likeliest tokens that hold ``top_p`` of the probability.

    Each of them keeps its share. A draw of 0 gives the likeliest token; of equal logits the first counts as likelier.

    Shapes: ``logits`` [n, V] (-inf for what may not be drawn), ``draws`` [n] in [0, 1) -> int64 [n].
    Source: Holtzman et al., "The curious case of neural text degeneration", arXiv 1904.09751.
    """
    logits = logits.float()
    total = logits.logsumexp(dim=1, keepdim=True)
    some, ids = logits.topk(min(_FEW, logits.shape[1]), dim=1)  # many times faster than sorting all
    # where what is likelier than the last of them holds the share, nothing outside belongs to the nucleus
    enough = ((some - total).exp() * (some > some[:, -1:])).sum(dim=1) >= top_p  # [n]
    if enough.all():
        return _drawn(some, ids, total, top_p, draws)
    found = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    found[enough] = _drawn(some[enough], ids[enough], total[enough], top_p, draws[enough])
    rest = logits[~enough]
    ids = torch.arange(logits.shape[1], device=logits.device).expand_as(rest)
    found[~enough] = _drawn(rest, ids, total[~enough], top_p, draws[~enough])
    return found


def _drawn(logits: Tensor, ids: Tensor, total: Tensor, top_p: float, draws: Tensor) -> Tensor:
    """:func:`nucleus` where these tokens hold it: [n, k] logits and ids, [n, 1] logsumexp of all, [n] -> int64 [n]."""
    ids, order = ids.sort(dim=1)  # before the stable sort: of equal logits the first counts as likelier
    ordered, order = logits.gather(1, order).sort(dim=1, descending=True, stable=True)
    share = (ordered - total).exp()
    until = share.cumsum(dim=1)  # of a token and all likelier ones
    share = share.masked_fill(until - share >= top_p, 0.0)  # the likelier ones hold top_p without it
    until = share.cumsum(dim=1)
    place = torch.searchsorted(until, draws[:, None] * until[:, -1:], right=True)  # right: never one without a share
    last = (share > 0).sum(dim=1, keepdim=True) - 1  # where rounding takes the target to the very end
    return ids.gather(1, order.gather(1, place.minimum(last))).squeeze(1)


def repetition_penalty(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Logits in which each token of ``ids`` is less likely: divided by ``penalty`` where positive, else multiplied.

    A token that is there twice is penalised once.

    Shapes: ``logits`` [n, V], ``ids`` int64 [n, L] -> [n, V].
    Source: Keskar et al., CTRL, arXiv 1909.05858, section 4.1.
    """
    seen = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(seen > 0, seen / penalty, seen * penalty))
