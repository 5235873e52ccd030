# SPDX-License-Identifier: Apache-2.0
"""The links between modules: probabilities from signatures, relaxed draws, and attention along them.

The link from sender v to receiver u has probability p = exp(-(1 - cos(s_u, s_v)) / bandwidth), which is never below
exp(-2 / bandwidth). In training a link's strength C in (0, 1) is drawn from the concrete (relaxed Bernoulli)
distribution; otherwise it is p. Attention is softmax(q k / sqrt(d) + log C), so a link of strength 0 carries nothing.

Symbols: U receivers, V senders, p probability of a link, C its strength, eps bandwidth, tau temperature.
Source: arXiv 2210.08031; ``mweiss17/NeuralAttentiveCircuits``, ``kernels.py`` and ``attention.py``.
Differs: the official code also subtracts logsumexp(log C) over the senders, which a softmax over the senders ignores.
"""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

_NO_LINK = 1e-30
"""Probability of a truncated link. Its logarithm, -69, leaves nothing of a softmax's weight, and is finite, so that a
gradient can pass."""


def check_signatures(signatures: Tensor) -> None:
    """Raises ``ValueError`` naming the first signature of length 0, which has no direction.

    Networks do not call it in their forward pass, where such a signature gives NaN.
    Shapes: ``signatures`` [..., modules, dim].
    """
    lengths = signatures.detach().norm(dim=-1).flatten()
    if (lengths == 0).any():
        index = int((lengths == 0).nonzero()[0]) % signatures.shape[-2]
        raise ValueError(f"signature {index} has length 0, so it has no cosine: draw it anew, or leave the module out.")


def log_link_probabilities(
    receivers: Tensor, senders: Tensor, *, bandwidth: float, truncation: float | None = None
) -> Tensor:
    """The logarithm of each link's probability, in float32 or more.

    ``truncation``: a pair at a distance 1 - cos above it has no link; its gradient passes as if there were one.

    Shapes: signatures [..., U, dim] and [..., V, dim] -> [..., U, V], at most 0.
    Raises: ``ValueError`` for a bandwidth that is not above 0, or a truncation outside (0, 2].
    """
    if not bandwidth > 0:
        raise ValueError(
            f"bandwidth = {bandwidth} must be above 0; a link's probability is at least exp(-2 / bandwidth)."
        )
    if truncation is not None and not 0 < truncation <= 2:
        raise ValueError(f"truncation = {truncation} is no distance 1 - cos: use a value in (0, 2], or None.")
    meta = receivers.is_meta  # there is no autocast for tensors without values
    with nullcontext() if meta else torch.autocast(receivers.device.type, enabled=False):
        r, s = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (receivers, senders))
        cosine = (r / r.norm(dim=-1, keepdim=True)) @ (s / s.norm(dim=-1, keepdim=True)).mT
        distance = (1 - cosine).clamp_min(0)  # rounding may give a cosine just above 1
        log_p = -distance / bandwidth
        if truncation is None:
            return log_p
        p = log_p.exp()
        kept = p + (torch.where(distance > truncation, 0.0, p) - p).detach()  # straight through
        return (kept + _NO_LINK).log()


def link_probabilities(signatures: Tensor, *, bandwidth: float, truncation: float | None = None) -> Tensor:
    """The probability of a link between each pair of modules.  [..., U, dim] -> [..., U, U] in [0, 1]

    Raises: ``ValueError`` as :func:`log_link_probabilities` and :func:`check_signatures`.
    """
    check_signatures(signatures)
    return log_link_probabilities(signatures, signatures, bandwidth=bandwidth, truncation=truncation).exp()


def draw_log_links(log_p: Tensor, uniform: Tensor, *, temperature: float) -> Tensor:
    """log C of relaxed draws C = sigmoid((logit p + logit u) / tau), in which gradients pass to p.

    A draw is above 0.5 with probability p, at any temperature. All is computed in logits: C itself would underflow.
    ``log_p`` is bounded just below 0, where a logit is finite, as by torch's ``RelaxedBernoulli``.

    Shapes: ``log_p`` [..., U, V] and ``uniform`` in [0, 1), of a shape to which it broadcasts -> the latter's shape.
    Raises: ``ValueError`` for a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be above 0; the paper's is 0.5.")
    tiny = torch.finfo(log_p.dtype).eps
    log_p = log_p.clamp(math.log(_NO_LINK), -tiny)
    u = uniform.clamp(tiny, 1 - tiny)
    logit = log_p - (-torch.expm1(log_p)).log() + u.log() - torch.log1p(-u)
    return F.logsigmoid(logit / temperature)


def hard_log_links(log_p: Tensor) -> Tensor:
    """log C of C = 1 where p >= 0.5, and 0 elsewhere. A module is always linked to itself.  [..., U, V] -> the same"""
    return torch.where(log_p >= math.log(0.5), 0.0, -torch.inf)


def attend(query: Tensor, key: Tensor, value: Tensor, log_links: Tensor | None, heads: int) -> Tensor:
    """Attention of U receivers to V senders along links, the same links in all heads; without links, to all alike.

    Shapes: ``query`` [B, U, heads * d], ``key`` and ``value`` [B, V, heads * d], ``log_links`` [U, V] or [B, U, V] ->
    [B, U, heads * d].
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (query, key, value))  # [B, heads, U or V, d]
    if log_links is not None:
        # torch's fused attention takes masks of two or four dimensions
        log_links = (log_links if log_links.dim() == 2 else log_links.unsqueeze(-3)).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=log_links).transpose(-3, -2).flatten(-2)
