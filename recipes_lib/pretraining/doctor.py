# SPDX-License-Identifier: Apache-2.0
"""Runs all diagnostics on a run folder, finished or not: takes the numbers, and asks :mod:`evaluation.diagnosis`.

A run of any recipe can be looked at. One that trains no backbone (a job), one without weights yet, and one whose images
are not at hand are checked as far as their folder goes; what could not be checked is ``unknown``, with the reason.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from recipes_lib import randomness
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.distributed.world import World
from recipes_lib.errors import DataError, RunError, UserError
from recipes_lib.evaluation import diagnosis
from recipes_lib.evaluation.diagnosis import Finding, unknown
from recipes_lib.pretraining import engine, monitor
from recipes_lib.training.folder import RunFolder

if TYPE_CHECKING:
    from recipes_lib.pretraining.recipe import Job, Method, Recipe

WATCHED = 2048
"""The number of training images whose features are compared, a quarter of which k-NN classifies."""
TESTED_FILES, TRAINED_FILES = 2_000, 200_000
"""The number of test files, at most, that are looked for among so many training files; images in memory all are."""
FROM_LOG = ("divergence", "gradient_spikes", "learning_rate", "slow_input")
"""The checks that need the log of the run alone."""
FROM_WEIGHTS = ("few_images", "teacher", "full_collapse", "dimensional_collapse", "lying_loss", "leaky_labels")
"""The checks that need weights, or images, too."""


def diagnose(recipe: "Recipe | Job", path: Path) -> list[Finding]:
    """All findings on the run folder ``path``, in a fixed order; it changes nothing there.

    Raises: ``RunError`` if ``path`` is no run folder, or its config cannot be read.
    """
    from recipes_lib.pretraining.recipe import Recipe

    run = RunFolder.open(path)
    state, log = run.state(), _rows(path / "metrics.jsonl")
    rows = [row for row in log if "loss" in row and "lr" in row and "step" in row]
    if not isinstance(recipe, Recipe):
        why = f"recipe {recipe.name} trains no backbone of its own"
        return [_ended(state), *(unknown(name, why) for name in (*FROM_LOG[1:], *FROM_WEIGHTS))]
    findings = _from_log(state, rows, _rows(path / "timing.jsonl"))
    try:
        config, method = engine.reopen(recipe, path)
    except RunError as error:
        return [_divergence(state, rows, None), *findings, *(unknown(name, str(error)) for name in FROM_WEIGHTS)]
    findings = [_divergence(state, rows, method), *findings]
    steps = len(rows) if state["status"] == "done" else (config.train.steps or len(rows))
    untrained = engine.build(recipe, config, steps=1).to(next(method.parameters()).device)
    findings += _from_method(config, method, untrained, max(1, steps), state["step"])
    return findings + _from_images(recipe, run, config, method, untrained, rows)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines; an incomplete line, such as the last one of a killed run, is left out."""
    found = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                found.append(row)
    return found


def _ended(state: dict[str, Any]) -> Finding:
    """The finding on a job, of which only the state tells."""
    return diagnosis.divergence([], failed=state["status"] == "failed", finite_weights=True)


def _divergence(state: dict[str, Any], rows: Sequence[dict[str, Any]], method: nn.Module | None) -> Finding:
    finite = method is None or all(bool(p.isfinite().all()) for p in method.parameters())
    losses = [row["loss"] for row in rows]
    return diagnosis.divergence(losses, failed=state["status"] == "failed", finite_weights=finite)


def _from_log(state: dict[str, Any], rows: Sequence[dict[str, Any]], times: Sequence[dict[str, Any]]) -> list[Finding]:
    norms = [row["grad_norm"] for row in rows if row.get("grad_norm") is not None]
    findings = [
        diagnosis.gradient_spikes(norms),
        diagnosis.learning_rate([row["lr"] for row in rows], done=state["status"] == "done"),
    ]
    if times:
        seconds, waited = (sum(row[name] for row in times) for name in ("seconds", "data_seconds"))
        return [*findings, diagnosis.slow_input(seconds, waited)]
    return [*findings, unknown("slow_input", "the run has no timing.jsonl, which is written with each checkpoint.")]


def _from_method(config: Any, method: "Method", untrained: "Method", steps: int, done: int) -> list[Finding]:
    batch = config.train.batch_size // config.train.accumulate
    findings = [diagnosis.few_images(batch, method.sinkhorn_prototypes)]
    now, before = method.teaching, untrained.teaching
    if now is None or before is None:
        return [*findings, unknown("teacher", "the method has no teacher.")]
    student = _distance(now.student, before.student)
    moved = _distance(now.teacher, before.teacher) / student if student else math.nan
    return [*findings, diagnosis.teacher(now.momentum, moved, steps=steps, done=done)]


def _distance(first: nn.Module, second: nn.Module) -> float:
    """The Euclidean distance between the parameters of two modules of one kind."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return math.sqrt(sum(float((a - b).detach().double().square().sum()) for a, b in pairs))


def _from_images(
    recipe: "Recipe",
    run: RunFolder,
    config: Any,
    method: "Method",
    untrained: "Method",
    rows: Sequence[dict[str, Any]],
) -> list[Finding]:
    names = FROM_WEIGHTS[2:]
    if not all(bool(p.isfinite().all()) for p in method.parameters()):
        return [unknown(name, "the weights hold NaN or Inf.") for name in names]
    try:
        splits = engine.load_data(recipe, config, run)
    except UserError as error:
        return [unknown(name, f"the images cannot be read: {str(error).splitlines()[0]}") for name in names]
    trained, fresh, queries = _features(config, splits, method, untrained)
    steps, losses = len(rows), [row["loss"] for row in rows if row["loss"] is not None]
    ceiling = min(len(splits.train), int(method.backbone.num_features))  # type: ignore[arg-type]
    rank, before = (_defined(numbers["watch_rankme"]) or 0.0 for numbers in (trained, fresh))
    collapse = diagnosis.full_collapse(
        trained.get("watch_std_embedding"),
        trained["watch_std"],
        fresh["watch_std"],
        kept_rank=rank / before if before else 1.0,
        steps=steps,
    )
    of_embeddings = _defined(trained.get("watch_rankme_embedding"))
    narrow = diagnosis.dimensional_collapse(of_embeddings, rank, before, ceiling=ceiling, steps=steps)
    lie = unknown("lying_loss", "the training images have too few labels for k-NN.")
    if queries:
        classes, gone = len(splits.train.class_names), collapse.status == "found"
        knn = trained["watch_knn"], fresh["watch_knn"]
        lie = diagnosis.lying_loss(losses, *knn, classes=classes, images=queries, collapsed=gone)
    return [collapse, narrow, lie, _leak(splits)]


def _defined(number: float | None) -> float | None:
    """The number; 0 for a rank that is not defined, because all rows are equal."""
    return 0.0 if number is not None and math.isnan(number) else number


def _features(
    config: Any, splits: Splits, method: "Method", untrained: "Method"
) -> tuple[dict[str, float], dict[str, float], int]:
    """What :mod:`monitor` measures of the trained and of the untrained network, and the number of images of k-NN."""
    alone = World(0, 1, next(method.parameters()).device)
    labels = splits.train.labels
    known = 0 if labels is None else int((labels != UNLABELLED).sum())
    for watch in (("std", "rankme", "knn"), ("std", "rankme")):
        asked = replace(config, eval=replace(config.eval, watch=watch), sync=replace(config.sync, name="ddp"))
        try:
            watching: Any = monitor.of(asked, splits, method, alone, fewest=WATCHED)
        except DataError:  # too few labels
            continue
        queries = min(known, len(watching.labelled)) // monitor.ASKED if "knn" in watch else 0
        return watching(method), watching(untrained), queries
    raise RunError("the images cannot be watched")


def _leak(splits: Splits) -> Finding:
    """How many of the test images are training images: of the same pixels in memory, or of the same bytes on disk."""
    train, test = splits.train, splits.test
    if test.labels is None:
        return unknown("leaky_labels", "the test images have no labels.")
    if isinstance(train, ImageSet) and isinstance(test, ImageSet):
        known = set(_hashes(train.images[index].numpy().tobytes() for index in range(len(train))))
        tested = list(_hashes(test.images[index].numpy().tobytes() for index in range(len(test))))
        return diagnosis.leaky_labels(sum(one in known for one in tested), len(tested))
    if not (isinstance(train, ImageFiles) and isinstance(test, ImageFiles)):
        return unknown("leaky_labels", "images that lie in shards are not compared.")
    asked, others = _sizes(test, TESTED_FILES), _sizes(train, TRAINED_FILES)
    sizes = set(asked.values())
    alike = [path for path, size in others.items() if size in sizes]  # the rest need not be read
    known = set(_hashes(path.read_bytes() for path in alike))
    return diagnosis.leaky_labels(sum(one in known for one in _hashes(path.read_bytes() for path in asked)), len(asked))


def _sizes(files: ImageFiles, most: int) -> dict[Path, int]:
    """The size in bytes of at most ``most`` of the files."""
    chosen = randomness.permutation(0, 0, len(files))[:most].tolist()
    return {path: path.stat().st_size for path in map(files.path, chosen)}


def _hashes(contents: Iterable[bytes]) -> Iterator[bytes]:
    return (blake2b(content, digest_size=16).digest() for content in contents)
