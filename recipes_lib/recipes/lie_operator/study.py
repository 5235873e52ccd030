# SPDX-License-Identifier: Apache-2.0
"""What the chapter measures beyond a run: operators on features of a pretrained network, and a generator that is known.

``on_objects``: 3-D objects, features of a network that was trained on ImageNet with labels, and every control.
``known_generator``: embeddings that a hidden rotation moves, where the learned generator can be compared with the true one.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.data import posed
from recipes_lib.data.cache import cached
from recipes_lib.objectives.equivariance import generator_cosine, relative_error
from recipes_lib.recipes.lie_operator import learned, protocol
from recipes_lib.recipes.lie_operator.learned import Learned, Learning
from recipes_lib.recipes.lie_operator.protocol import Embedded

COUNTS = posed.PoseCounts(diverse=200, typical=50, unknown=50, poses=12, azimuth=60.0, elevation=40.0, roll=60.0)
SIZE = 64
"""Side of the objects' images in pixels."""
DIM = 32
"""Number of principal components of the features that an operator moves."""
WIDE = 256
"""Number of principal components from which the control ``positives`` learns its ``DIM`` dimensions."""
_OURS = Learning(skew=False)
ARMS: dict[str, Learning] = {
    "lie": _OURS,
    "mlp": replace(_OURS, kind="mlp"),
    "wide_mlp": replace(_OURS, kind="mlp", width=128),
    "random": replace(_OURS, kind="random"),
    "pair_input": replace(_OURS, reads="pair"),
    "skew": replace(_OURS, skew=True),
    "one_generator": replace(_OURS, generators=1),
}
"""The operators: ours, with general matrices as in the paper, which were better than skew-symmetric ones in the pilots; the
controls; and ablations of the network's input, of general matrices, and of the number of generators."""


def on_objects(seed: int) -> dict[str, Any]:
    """Accuracy on known objects in new poses and on unknown objects, of every arm; ``seed`` also draws the objects.

    Raises: ``DataError`` if pybullet or the pretrained weights are not installed.
    """
    return compare(features(seed, COUNTS), ARMS, seed=seed)


def compare(found: Embedded, arms: dict[str, Learning], *, seed: int) -> dict[str, Any]:
    """Scores ``still`` (t = 0), ``positives`` and every operator of ``arms`` on the same features.

    Operators learn from the diverse instances alone, as ``positives`` does.
    """
    rows = found.train.flatten(0, 1)
    small = found.map(learned.principal(rows, DIM))
    pairs = learned.pairs_of(small.train[: found.diverse])
    report: dict[str, Any] = {"still": _scores(small, None, seed)}
    wide = found.map(learned.principal(rows, min(WIDE, rows.shape[1])))
    count = wide.train.shape[-1]
    chosen = learned.positives(learned.pairs_of(wide.train[: found.diverse]), count, DIM, Learning(), seed=seed)
    report["positives"] = _scores(wide.map(chosen), None, seed)
    for name, how in arms.items():
        report[name] = _scores(small, learned.learn(pairs, DIM, how, seed=seed), seed)
    return report


def _scores(found: Embedded, operator: Learned | None, seed: int) -> dict[str, float]:
    if operator is None:
        chosen: tuple[Any, Any] = (None, None)
        errors = {}
    else:
        chosen = (protocol.motions(found, operator.infer), operator.move)
        explained = protocol.explained(found, operator.infer, operator.move)
        errors = {"relative_error": explained, "relative_error_in_training": operator.relative_error}
    accuracies = {
        "new_poses": protocol.new_poses(found, *chosen, seed=seed),
        "unknown": protocol.unknown(found, *chosen, seed=seed),
    }
    return accuracies | errors


def features(seed: int, counts: posed.PoseCounts) -> Embedded:
    """The 1,280 features of EfficientNet-Lite0, pretrained on ImageNet, of objects in several poses; cached on disk."""
    sets = posed.draw(posed.MeshObjects(), counts, size=SIZE, seed=seed)

    def make() -> dict[str, Tensor]:
        from recipes_lib.models.packaged import efficientnet_lite0

        network = efficientnet_lite0()

        @torch.no_grad()
        def embed(images: Tensor) -> Tensor:
            chunks = [(2 * chunk.float() / 255 - 1) for chunk in images.split(128)]
            return torch.cat([network.forward_head(network.forward_features(c), pre_logits=True) for c in chunks])

        found = Embedded.of(sets, embed)
        return {"train": found.train, "new_poses": found.new_poses, "unknown": found.unknown}

    key = {
        "features": "efficientnet lite0",
        "objects": repr(counts),
        "size": SIZE,
        "seed": seed,
        "version": posed.VERSION,
    }
    return Embedded(diverse=counts.diverse, **cached(make, key))


# The known generator: three planes of eight dimensions that turn with speeds 1, 1 and 2, in a random basis.
TRUE_DIM, SPEEDS, FARTHEST, NOISE = 8, (1.0, 1.0, 2.0), 0.8, 0.01
KNOWN, UNKNOWN, STARTS = 50, 500, 3
ON_KNOWN = Learning(generators=1, hidden=64, steps=600, batch=96, lr=2e-3, weight_decay=0.0)


def true_generator(seed: int) -> Tensor:
    """The hidden generator, skew-symmetric float32 [8, 8]."""
    plane = torch.zeros(TRUE_DIM, TRUE_DIM)
    for number, speed in enumerate(SPEEDS):
        plane[2 * number, 2 * number + 1], plane[2 * number + 1, 2 * number] = -speed, speed
    basis, _ = torch.linalg.qr(torch.randn(TRUE_DIM, TRUE_DIM, generator=randomness.generator(seed, 0, "basis")))
    return basis @ plane @ basis.T


def known_generator(seed: int) -> dict[str, Any]:
    """Relative error on unknown instances, and the cosine with the true generator, of the operator and its controls.

    Motions are inferred on another, known instance with the same motion, and applied once and twice: twice is a motion
    beyond all that was seen. Each arm starts ``STARTS`` times. Of the starts, the one with the lowest error in training
    counts; for the MLP the one with the lowest error on unknown instances, which favours it.
    """
    truth = true_generator(seed)
    generator = randomness.generator(seed, 0, "instances")
    known = torch.randn(KNOWN, TRUE_DIM, generator=generator)
    fresh = torch.randn(UNKNOWN, TRUE_DIM, generator=generator)

    pairs = turned_pairs(known, truth)
    report = {}
    arms = {
        "lie": ON_KNOWN,
        # a single generator of eight dimensions has 64 numbers, too few for an MLP, so this one is larger
        "mlp": replace(ON_KNOWN, kind="mlp", width=64),
        "random": replace(ON_KNOWN, kind="random"),
        "pair_input": replace(ON_KNOWN, reads="pair"),
    }
    for name, how in arms.items():
        starts = [learned.learn(pairs, TRUE_DIM, how, seed=seed * STARTS + s) for s in range(STARTS)]
        scored = [transferred(each, known, fresh, truth, seed) | {"training": each.relative_error} for each in starts]
        best = min(scored, key=lambda each: each["once" if name == "mlp" else "training"])
        report[name] = best | {"stuck": float(sum(each["training"] > 0.5 for each in scored))}
    return report


def fingerprint() -> dict[str, Any]:
    """Errors and a cosine after eight steps of the operator and the MLP on the known generator; they change with the numerics."""
    truth = true_generator(0)
    known = torch.randn(KNOWN, TRUE_DIM, generator=randomness.generator(0, 0, "instances"))
    fresh = torch.randn(UNKNOWN, TRUE_DIM, generator=randomness.generator(1, 0, "instances"))
    arms = {"lie": replace(ON_KNOWN, steps=8), "mlp": replace(ON_KNOWN, kind="mlp", width=64, steps=8)}
    found = {
        name: transferred(learned.learn(turned_pairs(known, truth), TRUE_DIM, how, seed=0), known, fresh, truth, 0)
        for name, how in arms.items()
    }
    return {"errors": [found[name]["once"] for name in arms], "cosine": found["lie"]["cosine"]}


def turned_pairs(rows: Tensor, truth: Tensor) -> learned.Pairs:
    """Draws pairs that the true generator turns by up to ``FARTHEST`` in both directions."""

    def draw(source: torch.Generator, number: int) -> tuple[Tensor, Tensor]:
        start = rows[torch.randint(len(rows), (number,), generator=source)]
        angle = FARTHEST * (2 * torch.rand(number, 1, 1, generator=source) - 1)
        return start, _noisy(_apply(torch.linalg.matrix_exp(angle * truth), start), source)

    return draw


def _apply(matrices: Tensor, rows: Tensor) -> Tensor:
    """Each row times its matrix.  [n, d, d], [n, d] -> [n, d]"""
    return (matrices @ rows[..., None])[..., 0]


def transferred(found: Learned, known: Tensor, fresh: Tensor, truth: Tensor, seed: int) -> dict[str, float]:
    """The error of moving ``fresh`` points as pairs of ``known`` ones moved, by a true operator with generator ``truth``.

    ``once`` and ``twice``: the relative error after one and two motions; ``cosine``: that between the learned generator and
    the true one, of an operator with a generator.
    """
    source = randomness.generator(seed, 0, "scored")
    angle = FARTHEST * (2 * torch.rand(UNKNOWN, 1, 1, generator=source) - 1)
    true = torch.linalg.matrix_exp(angle * truth)
    teacher = known[torch.randint(KNOWN, (UNKNOWN,), generator=source)]
    t = found.infer(teacher, _noisy(_apply(true, teacher), source))
    once, twice = _apply(true, fresh), _apply(true, _apply(true, fresh))
    first = found.move(fresh, t)
    scores = {
        "once": relative_error(first, once, fresh).item(),
        "twice": relative_error(found.move(first, t), twice, fresh).item(),
    }
    if isinstance(found.move, learned.LieOperator):
        scores["cosine"] = generator_cosine(found.move.generators[0], truth).item()
    return scores


def _noisy(rows: Tensor, source: torch.Generator) -> Tensor:
    return rows + NOISE * torch.randn(rows.shape, generator=source)
