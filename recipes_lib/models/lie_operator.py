# SPDX-License-Identifier: Apache-2.0
"""Matrix Lie groups that act on embeddings: g(t) = exp(sum_k t_k L_k), with learned generators L_k and coefficients t.

g(0) is the identity, g(-t) is the inverse of g(t), and with one generator g(s) g(t) = g(s + t). With several this holds
only if they commute, and exp(t_1 L_1 + t_2 L_2) is not exp(t_1 L_1) exp(t_2 L_2).

Source: Ibrahim, Bouchacourt, Morcos, "Robust Self-Supervised Learning with Lie Groups", arXiv 2210.13356, whose abstract
and introduction only could be read. The parts below that are not in them are ours: the network that infers t, its input,
the norm of the generators, the skew-symmetric option.
"""

from typing import Literal

import torch
from torch import Tensor, nn

# N: pairs, K: generators, d: dimensions, B: blocks (1 for dense generators), b = d / B: dimensions of a block
# L: generators [K, d, d], t: coefficients [N, K], A: sums of generators [N, d, d], z: embeddings [N, d]

Input = Literal["antisymmetric", "pair"]


def generator_sum(coefficients: Tensor, generators: Tensor) -> Tensor:
    """A_n = sum_k t_nk L_k.

    Shapes: [N, K] and [K, ..., d, d] -> [N, ..., d, d].
    Raises: ``ValueError`` for generators that are not square, or another number of coefficients than of generators.
    """
    if generators.dim() < 3 or generators.shape[-1] != generators.shape[-2]:
        raise ValueError(f"generators have shape {list(generators.shape)}; they must be square, [K, d, d].")
    if coefficients.dim() != 2 or coefficients.shape[1] != len(generators):
        raise ValueError(
            f"coefficients have shape {list(coefficients.shape)} for {len(generators)} generators; "
            f"they must be [N, {len(generators)}]."
        )
    return torch.tensordot(coefficients, generators, dims=1)


def exponentials(algebra: Tensor) -> Tensor:
    """The matrix exponentials, by torch's ``matrix_exp``, whose gradient is exact (the Frechet derivative).

    Shapes: [N, ..., d, d] -> the same.
    Raises: ``TypeError`` for half precision or integers; ``ValueError`` naming the first matrix that overflows.
    """
    if algebra.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"the matrix exponential needs float32 or float64, not {algebra.dtype}. Cast to float32 first.")
    found = torch.linalg.matrix_exp(algebra)
    if not found.isfinite().all():
        row = int((~found.isfinite().flatten(1).all(dim=1)).nonzero()[0])
        norm = torch.linalg.matrix_norm(algebra[row], ord=1).max().item()
        raise ValueError(
            f"exp(A) overflows for pair {row}, whose A has the norm {norm:.3g} (largest column sum). Bound the coefficients, or use "
            "skew-symmetric generators."
        )
    return found


def operators(coefficients: Tensor, generators: Tensor) -> Tensor:
    """g(t_n) = exp(sum_k t_nk L_k): [N, K] and [K, ..., d, d] -> [N, ..., d, d].

    Raises: as :func:`generator_sum` and :func:`exponentials`.
    """
    return exponentials(generator_sum(coefficients, generators))


def act(operators: Tensor, embeddings: Tensor) -> Tensor:
    """g z for each row, z as a column vector.

    Shapes: ``operators`` [N, d, d], or [N, B, b, b] block by block; ``embeddings`` [N, d] -> [N, d].
    Raises: ``ValueError`` if the dimensions do not fit.
    """
    blocks = operators.shape[1] if operators.dim() == 4 else 1
    size = operators.shape[-1]
    if embeddings.dim() != 2 or embeddings.shape != (len(operators), blocks * size):
        raise ValueError(
            f"operators of shape {list(operators.shape)} act on embeddings [{len(operators)}, {blocks * size}], "
            f"not on {list(embeddings.shape)}."
        )
    columns = embeddings.reshape(len(operators), *operators.shape[1:-2], size, 1)
    return (operators @ columns).reshape(embeddings.shape)


def taylor_action(
    coefficients: Tensor, generators: Tensor, embeddings: Tensor, *, substeps: int = 8, terms: int = 9
) -> Tensor:
    """g(t) z without any d x d matrix per pair: ``substeps`` times the first ``terms`` terms of exp(A / substeps) z.

    The truncation costs a relative error below 1e-5 while the largest column sum of A is at most 8; half of that needs
    half of the substeps. Its gradient is that of the truncated sum.

    Shapes: [N, K], [K, d, d] or [K, B, b, b], [N, d] -> [N, d].
    """
    blocks, size = (generators.shape[1] if generators.dim() == 4 else 1), generators.shape[-1]
    stacked = generators.reshape(len(generators), blocks, size, size)
    z = embeddings.reshape(len(embeddings), blocks, size)

    def times_algebra(x: Tensor) -> Tensor:
        # first all generators on all rows, then the sum over generators, so that no [N, d, d] arises
        return torch.einsum("nk,nkBi->nBi", coefficients, torch.einsum("kBij,nBj->nkBi", stacked, x))

    for _ in range(substeps):
        term = z
        for order in range(1, terms + 1):
            term = times_algebra(term) / (substeps * order)
            z = z + term
    return z.reshape(embeddings.shape)


class LieOperator(nn.Module):
    """K learned generators, and the group that they generate.

    With ``skew`` the generators are L = W - W^T, so that g(t) is a rotation: it keeps norms and cannot overflow. The
    scale of t and L is shared, (t, L) -> (c t, L / c) changes nothing, so with ``unit_norm`` every generator has the
    Frobenius norm sqrt(d) (of each block sqrt(b)). ``block_size`` b makes generators block-diagonal, which takes d b^2
    instead of d^3 operations. ``taylor`` applies :func:`taylor_action` instead of the matrix exponential.

    Shapes: ``weight`` [K, d / b, b, b].
    Raises: ``ValueError`` for a number of generators or a block size that is out of range.
    """

    def __init__(
        self,
        dim: int,
        generators: int,
        *,
        skew: bool = True,
        unit_norm: bool = True,
        block_size: int | None = None,
        taylor: bool = False,
    ) -> None:
        super().__init__()
        size = block_size or dim
        if not 1 <= size <= dim or dim % size:
            raise ValueError(f"block_size = {size} does not divide dim = {dim}.")
        most = most_generators(dim, size, skew)
        if not 1 <= generators <= most:
            kind = "skew-symmetric " if skew else ""
            raise ValueError(f"generators = {generators}; use 1 to {most} {kind}generators of {dim} dimensions.")
        self.dim, self.skew, self.unit_norm, self.taylor = dim, skew, unit_norm, taylor
        self.weight = nn.Parameter(torch.empty(generators, dim // size, size, size))
        nn.init.normal_(self.weight, std=0.05)

    @property
    def blocks(self) -> Tensor:
        """The generators as they act, block by block: [K, d / b, b, b]."""
        blocks = self.weight.float() if self.weight.dtype in (torch.float16, torch.bfloat16) else self.weight
        if self.skew:
            blocks = blocks - blocks.mT
        if self.unit_norm:
            # the clamp only matters for a generator of 0, which has no direction
            norms = torch.linalg.matrix_norm(blocks, keepdim=True).clamp_min(1e-12)
            blocks = blocks / norms * blocks.shape[-1] ** 0.5
        return blocks

    @property
    def generators(self) -> Tensor:
        """The generators as whole matrices: [K, d, d]."""
        return torch.stack([torch.block_diag(*each) for each in self.blocks])

    def operators(self, coefficients: Tensor) -> Tensor:
        """g(t), block by block: [N, K] -> [N, d / b, b, b]. Raises: as :func:`operators`."""
        return operators(coefficients, self.blocks)

    def forward(self, embeddings: Tensor, coefficients: Tensor) -> Tensor:
        """g(t) z: [N, d] and [N, K] -> [N, d]; computed in float32 at least, under autocast too."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings, coefficients = (_full(rows) for rows in (embeddings, coefficients))
            if self.taylor:
                return taylor_action(coefficients, self.blocks, embeddings)
            return act(self.operators(coefficients), embeddings)


def most_generators(dim: int, block_size: int, skew: bool) -> int:
    """The largest number of linearly independent generators: the dimension of their space."""
    of_block = block_size * (block_size - 1) // 2 if skew else block_size**2
    return dim // block_size * of_block


class CoefficientNetwork(nn.Module):
    """Infers the coefficients t of the motion from z to z': an MLP with two hidden layers of GELU.

    Its input is, with ``pair``, both embeddings; with ``antisymmetric``, the products z_i z'_j - z_j z'_i over
    ||z|| ||z'|| for i < j, which change their sign with the direction of the motion. This hands the network the
    statistic that a rotation is read from, so it favours skew-symmetric generators; a chapter that uses it has to say
    so. With ``bound`` tau, t is tau tanh(t / tau).

    Shapes: [N, d] twice -> [N, K].
    Raises: ``ValueError`` for a bound that is not above 0, or embeddings of another dimension.
    """

    def __init__(
        self,
        dim: int,
        generators: int,
        *,
        hidden: int,
        reads: Input = "antisymmetric",
        bound: float | None = None,
    ) -> None:
        super().__init__()
        if bound is not None and not bound > 0:
            raise ValueError(f"bound = {bound}; use a number above 0, or None.")
        self.dim, self.reads, self.bound = dim, reads, bound
        if reads == "antisymmetric":
            rows, columns = torch.triu_indices(dim, dim, offset=1)
            self.register_buffer("rows", rows, persistent=False)
            self.register_buffer("columns", columns, persistent=False)
        inputs = dim * (dim - 1) // 2 if reads == "antisymmetric" else 2 * dim
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, generators)
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The coefficients of the motion from ``source`` to ``target``; computed in float32 at least."""
        if source.shape != target.shape or source.dim() != 2 or source.shape[1] != self.dim:
            raise ValueError(
                f"pairs of embeddings [N, {self.dim}] are wanted; got {list(source.shape)} and {list(target.shape)}."
            )
        with torch.autocast(source.device.type, enabled=False):
            found = self.layers(self._read(_full(source), _full(target)))
            return found if self.bound is None else self.bound * torch.tanh(found / self.bound)

    def _read(self, source: Tensor, target: Tensor) -> Tensor:
        if self.reads == "pair":
            return torch.cat([source, target], dim=1)
        products = source[:, self.rows] * target[:, self.columns] - source[:, self.columns] * target[:, self.rows]
        norms = source.norm(dim=1, keepdim=True) * target.norm(dim=1, keepdim=True)
        # products of d dimensions are of size 1 / d; layers expect inputs of size 1. The clamp keeps an embedding of 0
        # from giving NaN
        return self.dim * products / norms.clamp_min(1e-12)


class MLPOperator(nn.Module):
    """The control without a group: z + MLP([z, t]), with two hidden layers of GELU. The last layer starts at 0.

    Shapes: [N, d] and [N, K] -> [N, d].
    """

    def __init__(self, dim: int, codes: int, *, hidden: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.Linear(dim + codes, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), last
        )

    def forward(self, embeddings: Tensor, coefficients: Tensor) -> Tensor:
        """The transformed embeddings; computed in float32 at least, under autocast too."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings, coefficients = (_full(rows) for rows in (embeddings, coefficients))
            return embeddings + self.layers(torch.cat([embeddings, coefficients], dim=1))


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
