# SPDX-License-Identifier: Apache-2.0
"""Draws the next token of a text: pure functions of logits and uniform random numbers.

Symbols: n texts, V vocabulary entries, L tokens so far.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipes_lib.randomness import uniform

_FEW = 64  # number of likeliest tokens: the nucleus of a trained network is mostly among them


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The settings by which captions are drawn.

    The defaults are those of Sieve's official code, whose lengths also count a prompt of 4 tokens.

    Raises: ``ValueError`` that names the field and its range.
    """

    top_p: float = 0.9
    """Probability of the nucleus, in (0, 1]; 1 is plain sampling, a value near 0 always gives the likeliest token."""
    min_length: int = 1
    """The least number of tokens before the end token, at least 0."""
    max_length: int = 16
    """The largest number of drawn tokens, with the end token; at least ``min_length`` and at least 1."""
    repetition_penalty: float = 1.1
    """The factor by which the logit of a token that has occurred is lowered, at least 1; 1 is no penalty."""

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} is not in (0, 1].")
        if not 0 <= self.min_length <= self.max_length or self.max_length < 1:
            lengths = f"min_length = {self.min_length}, max_length = {self.max_length}"
            raise ValueError(f"{lengths}; they need 0 <= min_length <= max_length and max_length >= 1.")
        if not self.repetition_penalty >= 1:
            raise ValueError(f"repetition_penalty = {self.repetition_penalty} is below 1.")

    def draws(self, seeds: Tensor, count: int) -> Tensor:
        """Draws the uniform numbers for ``count`` captions per image; caption i gets the same ones for every ``count``.

        Shapes: ``seeds`` int64 [images] -> float32 [images * count, max_length]; an image's captions are adjacent rows.
        """
        return uniform(seeds, "captions", count * self.max_length).view(-1, self.max_length)


def nucleus(logits: Tensor, top_p: float, draws: Tensor) -> Tensor:
    """Draws a token per text from its nucleus: the smallest set of likeliest tokens with probability ``top_p``.

    A token of the nucleus is drawn in proportion to its probability. A draw of 0 gives the likeliest token; of equal
    logits the first counts as likelier.

    Shapes: ``logits`` [n, V] (-inf for tokens that must not be drawn), ``draws`` [n] in [0, 1) -> int64 [n].
    Source: Holtzman et al., "The curious case of neural text degeneration", arXiv 1904.09751.
    """
    logits = logits.float()
    total = logits.logsumexp(dim=1, keepdim=True)  # [n, 1]
    some, ids = logits.topk(min(_FEW, logits.shape[1]), dim=1)  # [n, k]: many times faster than sorting all
    # if the tokens that are likelier than the last of these have probability top_p, the nucleus is among them
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
    """:func:`nucleus` among k given tokens that contain the nucleus.

    Shapes: ``logits`` and ``ids`` [n, k], ``total`` [n, 1] (logsumexp of all logits), ``draws`` [n] -> int64 [n].
    """
    ids, order = ids.sort(dim=1)  # before the stable sort: of equal logits the first counts as likelier
    ordered, order = logits.gather(1, order).sort(dim=1, descending=True, stable=True)
    share = (ordered - total).exp()  # [n, k]: probabilities, the largest first
    until = share.cumsum(dim=1)  # probability of a token and all likelier ones
    share = share.masked_fill(until - share >= top_p, 0.0)  # outside the nucleus: the likelier ones reach top_p
    until = share.cumsum(dim=1)
    place = torch.searchsorted(until, draws[:, None] * until[:, -1:], right=True)  # right: skips tokens with share 0
    last = (share > 0).sum(dim=1, keepdim=True) - 1  # the limit if rounding puts the target at the very end
    return ids.gather(1, order.gather(1, place.minimum(last))).squeeze(1)


def repetition_penalty(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Lowers the logits of the tokens ``ids``: positive ones are divided by ``penalty``, negative ones multiplied.

    A token that occurs twice is penalised once.

    Shapes: ``logits`` [n, V], ``ids`` int64 [n, L] -> [n, V].
    Source: Keskar et al., CTRL, arXiv 1909.05858, section 4.1.
    """
    seen = logits.gather(1, ids)  # [n, L]
    return logits.scatter(1, ids, torch.where(seen > 0, seen / penalty, seen * penalty))
