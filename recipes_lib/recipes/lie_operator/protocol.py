# SPDX-License-Identifier: Apache-2.0
"""Scores embeddings on known objects in new poses and on unknown objects, with and without an operator.

An operator that was learned from pairs of some objects moves the embedding of another object to where it might be in
another pose. So a classifier can be shown poses that it never saw of that object. Everything here takes embeddings, so
that any backbone, operator or control can be scored.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.data.posed import PoseSets
from recipes_lib.evaluation.linear import linear_probe
from recipes_lib.objectives.equivariance import relative_error

Infer = Callable[[Tensor, Tensor], Tensor]
"""The coefficients of the motions from embeddings [N, d] to embeddings [N, d]: [N, K]."""
Move = Callable[[Tensor, Tensor], Tensor]
"""Embeddings [N, d], moved by coefficients [N, K]: [N, d]."""

COPIES = 2
"""Number of moved embeddings that the linear probe learns from, for each one that was seen."""
MOTIONS = 24
"""Number of motions by which the one view of an unknown object is moved."""


@dataclass(frozen=True)
class Embedded:
    """The embeddings of :class:`recipes_lib.data.posed.PoseSets`; in each row, pose 0 is canonical but for new poses."""

    train: Tensor
    """[n, P, d]: the diverse instances, then those in typical poses."""
    diverse: int
    """Number of diverse instances."""
    new_poses: Tensor
    """[n - diverse, P, d]: the typical instances in new poses."""
    unknown: Tensor
    """[u, P, d]: unknown instances."""

    @classmethod
    def of(cls, sets: PoseSets, embed: Callable[[Tensor], Tensor]) -> "Embedded":
        """Embeds all images; ``embed`` maps uint8 images [N, 3, side, side] to embeddings [N, d]."""
        parts = (sets.train, sets.new_poses, sets.unknown)
        train, new, unknown = (
            embed(part.images).unflatten(0, (len(part.labels.unique()), -1)).contiguous() for part in parts
        )
        return cls(train, sets.diverse, new, unknown)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Embedded":
        """The same with ``function`` on every embedding: [N, d] -> [N, d']."""
        parts = (function(rows.flatten(0, 1)).unflatten(0, rows.shape[:2]) for rows in self._parts)
        train, new, unknown = parts
        return Embedded(train, self.diverse, new, unknown)

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.train, self.new_poses, self.unknown


@torch.no_grad()
def motions(embedded: Embedded, infer: Infer) -> Tensor:
    """The coefficients that ``infer`` finds from the canonical to each other pose of the diverse instances: [M, K]."""
    seen = embedded.train[: embedded.diverse]
    start = seen[:, :1].expand(-1, seen.shape[1] - 1, -1)
    return infer(start.flatten(0, 1), seen[:, 1:].flatten(0, 1))


@torch.no_grad()
def moved(embeddings: Tensor, coefficients: Tensor, move: Move, *, copies: int, seed: int) -> Tensor:
    """Each embedding, moved by ``copies`` of the ``coefficients`` [M, K], drawn at random: [N, d] -> [N, copies, d]."""
    draws = torch.randint(
        len(coefficients), (len(embeddings), copies), generator=randomness.generator(seed, 0, "motions")
    )
    found = [move(embeddings, coefficients[draws[:, copy].to(embeddings.device)]) for copy in range(copies)]
    return torch.stack(found, dim=1)


def new_poses(embedded: Embedded, coefficients: Tensor | None, move: Move | None, *, seed: int) -> float:
    """The accuracy in [0, 1] on typical instances in new poses, of a linear probe on the embeddings of ``train``.

    With an operator the probe also learns from ``COPIES`` moved embeddings of each training image, of all classes
    alike; without one it sees each training image as often instead, so that it takes as many steps.
    """
    count, poses = embedded.train.shape[:2]
    rows = embedded.train.flatten(0, 1)
    labels = torch.arange(count, device=rows.device).repeat_interleave(poses)
    if move is None or coefficients is None:
        more = rows[:, None].expand(-1, COPIES, -1)
    else:
        more = moved(rows, coefficients, move, copies=COPIES, seed=seed)
    tested = embedded.new_poses.flatten(0, 1)
    known = torch.arange(embedded.diverse, count, device=rows.device).repeat_interleave(embedded.new_poses.shape[1])
    return linear_probe(
        torch.cat([rows, more.flatten(0, 1)]),
        torch.cat([labels, labels.repeat_interleave(COPIES)]),
        tested,
        known,
        seed=seed,
    )


def unknown(embedded: Embedded, coefficients: Tensor | None, move: Move | None, *, seed: int) -> float:
    """The accuracy in [0, 1] on unknown instances in any pose, by the nearest class mean from one canonical view.

    A class's mean is that of its view, scaled to length 1, and with an operator of ``MOTIONS`` moved copies of it.
    """
    views = embedded.unknown[:, :1]  # [u, 1, d]
    if move is not None and coefficients is not None:
        more = moved(views[:, 0], coefficients, move, copies=MOTIONS, seed=seed)
        views = torch.cat([views, more], dim=1)
    means = F.normalize(F.normalize(views, dim=2).mean(dim=1), dim=1)  # [u, d]
    queries = F.normalize(embedded.unknown[:, 1:], dim=2)  # [u, P - 1, d]
    nearest = (queries @ means.T).argmax(dim=2)
    return nearest.eq(torch.arange(len(means), device=means.device)[:, None]).double().mean().item()


@torch.no_grad()
def explained(embedded: Embedded, infer: Infer, move: Move) -> float:
    """The relative error of the motions from each pose of the unknown instances to the next, inferred from these pairs.

    It says how well the operators can express motions of new objects, not how well motions carry over between objects.
    """
    start, end = embedded.unknown, embedded.unknown.roll(-1, dims=1)
    start, end = start.flatten(0, 1), end.flatten(0, 1)
    return relative_error(move(start, infer(start, end)), end, start).item()
