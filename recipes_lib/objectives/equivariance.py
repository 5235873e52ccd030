# SPDX-License-Identifier: Apache-2.0
"""How well an operator carries the embedding of one image of an object to that of another image of it.

Symbols: z and z' embeddings of an object before and after a variation, z_hat = g(t) z what the operator makes of z.

Source: Ibrahim, Bouchacourt, Morcos, "Robust Self-Supervised Learning with Lie Groups", arXiv 2210.13356. Of the paper,
only the abstract and the introduction could be read; how its terms are weighted is not known to us.
"""

import torch
from torch import Tensor

from recipes_lib.objectives.precision import at_least_float32


def transfer_loss(transformed: Tensor, target: Tensor) -> Tensor:
    """The mean over pairs of ||z_hat - z'||^2, which sums over dimensions. Half precision is raised to float32.

    It is not free of scale: embeddings that shrink lower it. Watch :func:`relative_error` beside it, and give the
    embeddings a reason to stay spread.

    Shapes: [N, d] twice -> [], at least 0.
    Raises: ``ValueError`` if the shapes differ, or there is no pair.
    """
    _check(transformed, target)
    return (at_least_float32(transformed) - at_least_float32(target)).square().sum(dim=1).mean()


def relative_error(transformed: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """sum ||z_hat - z'||^2 / sum ||z' - z||^2 over the pairs: 0 if the operator is exact, 1 if it does nothing.

    Unlike :func:`transfer_loss` it does not change if all embeddings are scaled.

    Shapes: [N, d] three times -> [], at least 0.
    Raises: ``ValueError`` if the shapes differ, there is no pair, or all pairs have equal embeddings.
    """
    _check(transformed, target)
    _check(source, target)
    transformed, target, source = (at_least_float32(rows) for rows in (transformed, target, source))
    moved = (target - source).square().sum()
    if not moved > 0:
        raise ValueError(
            f"z and z' are equal for all {len(target)} pairs: there is no motion to explain. Give pairs of different images."
        )
    return (transformed - target).square().sum() / moved


def refuse_equal_pairs(first: Tensor, second: Tensor) -> None:
    """Raises ``ValueError`` if both images of a pair are equal, since an operator would learn the identity from them.

    Shapes: [N, ...] twice.
    """
    if first.shape != second.shape or not len(first):
        raise ValueError(f"pairs have equal shapes; got {list(first.shape)} and {list(second.shape)}.")
    same = (first == second).flatten(1).all(dim=1)
    if same.any():
        raise ValueError(
            f"x and x' are equal for {int(same.sum())} of {len(same)} pairs: the operator would learn the identity. "
            "Give two different images of each object."
        )


def generator_cosine(learned: Tensor, true: Tensor) -> Tensor:
    """|<L, L*>| / (||L|| ||L*||) of two generators, in [0, 1]; the sign and scale of a generator are not determined.

    Shapes: [d, d] twice -> [].
    Raises: ``ValueError`` if the shapes differ or a generator is 0.
    """
    if learned.shape != true.shape or learned.dim() != 2:
        raise ValueError(f"two generators are wanted, [d, d]; got {list(learned.shape)} and {list(true.shape)}.")
    norms = torch.linalg.matrix_norm(learned) * torch.linalg.matrix_norm(true)
    if not norms > 0:
        raise ValueError("a generator is 0 and has no direction. Check that it was learned.")
    return ((learned * true).sum() / norms).abs()


def _check(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.dim() != 2 or not len(first):
        raise ValueError(f"embeddings of pairs are wanted, [N, d]; got {list(first.shape)} and {list(second.shape)}.")
