# SPDX-License-Identifier: Apache-2.0
"""The steps around a method that all pretraining recipes share: load data, train, score, report.

:mod:`recipes_lib.pretraining.recipe` defines what the engine asks of a recipe. :func:`assemble` is the one place that
reads the config; :mod:`recipes_lib.pretraining.runs` resumes, evaluates and exports an existing run folder.
"""

import contextlib
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recipes_lib import __version__, lowbit, randomness
from recipes_lib.config import CLASS_PROBES, LABEL_FREE_PROBES, from_dict
from recipes_lib.data import embedded, identity
from recipes_lib.data.images import ImageSet
from recipes_lib.data.load import Splits, check_scored
from recipes_lib.data.loader import StepBatches
from recipes_lib.distributed import collectives, world
from recipes_lib.errors import ConfigError, RunError
from recipes_lib.evaluation import corruptions, finetune, probes
from recipes_lib.models import interchange
from recipes_lib.optim import build as optim
from recipes_lib.pretraining import monitor, scoring
from recipes_lib.pretraining.scoring import Cooked, Scored, Scores
from recipes_lib.training import checkpoint, folder, limits, loop

if TYPE_CHECKING:
    from recipes_lib.pretraining.recipe import Job, Method, Recipe


@dataclass(frozen=True)
class Result:
    """The folder and the report of a finished run."""

    folder: Path
    report: dict[str, Any]
    """The contents of ``report.json``: scores, diagnostics, seconds, steps, versions, seed, git commit."""


@dataclass(frozen=True)
class Assembled:
    """All that a run needs, built from its config: the images, the method, and the training loop's arguments."""

    splits: Splits
    method: "Method"
    training: loop.Training
    """Arguments of the training loop. They hold the same method, of which the loop uses only what training needs."""


def build(recipe: "Recipe", config: Any, steps: int) -> "Method":
    """Builds the method with the initial weights that ``train.seed`` draws; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.step_key(config.train.seed, 0, "initial weights"))
        method = recipe.method(config, steps)
    if config.model.linear != "full":
        lowbit.convert(method, config.model.linear)
    return method


def load_data(recipe: "Recipe", config: Any, run: folder.RunFolder) -> Splits:
    """Loads the images of a run and hides the labels that the recipe may not see."""
    return recipe.hide_labels(config, recipe.load(config, run.warn))


def assemble(recipe: "Recipe", config: Any, run: folder.RunFolder, place: world.World) -> Assembled:
    """Loads the images and builds the method on its device, batches, optimiser, schedule and strategy, on every rank.

    Raises: ``DataError`` if images or labels are missing; ``RunError`` if the images of a resumed run are not those it
    began with; ``ConfigError`` if the numbers of the config do not fit the images.
    """
    splits = load_data(recipe, config, run)
    _refuse_other_data(splits, config, run)
    require_labels(config, splits, config.eval.probes)  # fails now, not after hours of training
    batches = StepBatches(
        splits.train,
        seed=config.train.seed,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        rank=place.rank,
        world_size=place.size,
        classes_per_batch=config.data.classes_per_batch,
        repeats=config.data.repeats,
    )
    if recipe.support is not None:
        batches.support = recipe.support(config, splits.train, rank=place.rank, world_size=place.size)
    steps = config.train.total_steps(batches.steps_per_epoch)
    method = build(recipe, config, steps).to(place.device)
    if not isinstance(splits.train, ImageSet):
        batches.crop = method.crop_one
    batches.encode = method.encode_texts
    collectives.from_main(lambda: check_scored(splits, config.data, run.warn))
    how = {"train": config.train, "optim_config": config.optim, "sync": config.sync, "workers": config.data.workers}
    training = loop.training(method, batches, world=place, **how)
    watching = monitor.of(config, splits, method, place)
    return Assembled(splits, method, replace(training, monitor=watching, monitor_every=config.eval.watch_every))


def pretrain(recipe: "Recipe", config: Any, out: Path | None) -> Result:
    """Trains the recipe's method in the run folder ``out`` (default ``runs/NAME-DATE``), scores it and reports.

    An interrupted run continues from its newest checkpoint. Under torchrun all ranks train, and rank 0 writes.

    Raises: ``ConfigError``, ``DataError``, ``RunError``, ``Diverged`` or ``Interrupted``; their text is whole lines.
    """
    config.validate()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    place = world.start(config.train.device, timeout=config.train.timeout)
    optim.check(config.optim, config.sync, place.device)
    limits.refuse_too_large(config, lambda: build(recipe, config, steps=1), world_size=place.size, device=place.device)
    cooked = _cooked(recipe, config)  # fails now, not after hours of training
    out = collectives.broadcast_object(out or folder.default_path(recipe.name))
    # `changed = accept` counts for this start only, so the stored config refuses changed images again
    kept = replace(config, data=replace(config.data, changed="refuse"))
    with folder.RunFolder.create_or_continue(out, recipe.name, kept) as run:
        began = time.perf_counter()
        for line in recipe.cautions(config):
            run.warn(line)
        assembled = assemble(recipe, config, run, place)
        splits, method, training = assembled.splits, assembled.method, assembled.training
        traffic = recipe.fit(training, run)
        go_on = f"recipes resume {run.path}"
        finetuned = finetuned_score(config, method, splits, config.eval.probes, run.path, place, go_on)

        sent = traffic.bytes_sent  # counted over all ranks, of which conclude sees one

        def conclude() -> None:
            full = config.eval.baselines == "all" and bool(config.eval.probes)
            report: dict[str, Any] = {"recipe": recipe.name, "data": splits.summary()}
            asked = config.eval.probes
            report |= score(recipe, config, method, splits, asked, with_baselines=full, cooked=cooked)
            report["scores"] |= finetuned
            seconds = round(time.perf_counter() - began, 1)
            report |= {"seconds": seconds, "steps": training.steps, "seed": config.train.seed} | provenance()
            if traffic.rounds:
                report["sync"] = {"name": config.sync.name, "bytes": sent, "rounds": traffic.rounds}
            run.require_whole()
            checkpoint.write_weights(run.path / "model.safetensors", method.state_dict())
            run.write_report(report)

        collectives.from_main(conclude)  # the other ranks wait, and raise an error if rank 0 does
        run.set_state("done", training.steps)
        return Result(run.path, run.read_report())


def score(
    recipe: "Recipe",
    config: Any,
    method: "Method",
    splits: Splits,
    names: Sequence[str],
    *,
    with_baselines: bool,
    cooked: Cooked | None = None,
) -> Scores:
    """The recipe's scores by the probes ``names``, except fine-tuning, in which all ranks have to take part.

    Probes that need no labels are the same for all recipes, and stand under ``label_free`` (probe -> arm -> number).
    """
    device = next(method.parameters()).device
    with_labels = tuple(name for name in names if name not in ("finetune", *LABEL_FREE_PROBES))

    def untrained() -> "Method":
        return build(recipe, config, steps=1).to(device)

    scored = Scored(
        config=config,
        method=method,
        splits=splits,
        probes=with_labels,
        untrained=untrained if with_baselines and with_labels else None,
        cooked=cooked,
        needs_labels=recipe.needs_labels,
        diagnostics=recipe.diagnostics,
    )
    report = recipe.score(scored)
    free = tuple(name for name in names if name in LABEL_FREE_PROBES)
    if free:
        report["label_free"] = scoring.without_labels(config, method, untrained(), splits.train, free)
    return report


def require_labels(config: Any, splits: Splits, names: Sequence[str]) -> None:
    """Raises ``DataError`` if labels or corrupted images are missing that the class probes among ``names`` need."""
    asked = tuple(name for name in names if name in CLASS_PROBES)
    if asked:
        probes.require_labels(splits, replace(config.eval, probes=asked), config.data.labelled)
    if "corruptions" in names:
        corruptions.require(config.eval, splits.test)


def finetuned_score(
    config: Any, method: "Method", splits: Splits, names: Sequence[str], run: Path, place: world.World, go_on: str
) -> dict[str, dict[str, float]]:
    """The score of fine-tuning if it is among the probes ``names``, else an empty dict; all ranks train."""
    if "finetune" not in names:
        return {}
    layer = method.embedder if config.eval.finetune_objective == "suncet" else method.finetune_layer
    found = finetune.finetune(method.backbone, layer, splits, config, folder=run / "finetune", place=place, go_on=go_on)
    return {"finetune": {"method": found}}


def _cooked(recipe: "Recipe", config: Any) -> Cooked | None:
    """The network that ``recipes cook`` stored for this recipe, with its config; ``None`` if it is not asked for.

    Raises: ``ConfigError`` for a recipe that does not score by probes alone; ``DataError`` if no network is stored.
    """
    if not (config.eval.cooked and config.eval.baselines == "all" and config.eval.probes):
        return None
    if recipe.score is not scoring.score:
        raise ConfigError(
            f"eval.cooked = True is not allowed with {recipe.name}, which has scores of its own: it is for probes of features. "
            "Leave it out."
        )
    return Cooked(*reopen(recipe, embedded.path(f"cooked/{recipe.name}")))


def reopen(recipe: "Recipe", path: Path) -> tuple[Any, "Method"]:
    """The config and the trained method of a run folder, with its final weights or those of its newest checkpoint.

    Raises: ``RunError`` if ``path`` is no run folder, belongs to another recipe, or holds no weights yet.
    """
    run = folder.RunFolder.open(path)
    config = read_config(recipe, run)
    final = run.path / "model.safetensors"
    if final.exists():
        weights = checkpoint.read_weights(final)
    elif saved := checkpoint.latest(run.checkpoints, run.warn):
        weights = saved.model
    else:
        raise RunError(f"{path} holds no weights yet. Train it first: recipes resume {path}")
    # built from the config alone: other files that the first start read may be gone by now
    method = build(recipe, config, steps=1)
    interchange.fill(method, weights, f"the weights in {path}")
    return config, method.to(world.start(config.train.device).device)


def read_config(recipe: "Recipe | Job", run: folder.RunFolder) -> Any:
    """The config of a run. Raises: ``RunError`` naming the file and the field that does not fit, or a wrong recipe."""
    values = run.read_config()
    file = run.path / "config.yaml"
    if (found := values.pop("recipe")) != recipe.name:
        raise RunError(f"{file} is of recipe {found}, not of {recipe.name}.")
    try:
        return from_dict(recipe.config, values)
    except ConfigError as error:
        lines = [f"{file}: {line}" for line in str(error).splitlines()]
        preset = next(iter(recipe.presets))
        advice = f"Correct it there, or start anew: recipes run {recipe.name} --preset {preset} --out DIR"
        raise RunError("\n".join([*lines[:-1], f"{lines[-1]} {advice}"])) from None


def _refuse_other_data(splits: Splits, config: Any, run: folder.RunFolder) -> None:
    """Writes into the run folder which images the run learns from, and compares them with those of earlier starts.

    All ranks call it.

    Raises: ``RunError`` on every rank if a resumed run has other images than before, or if the ranks' images differ.
    """
    now = identity.record(splits) | {"on_damage": config.data.on_damage}
    first, *others = collectives.gather_objects(now)
    for rank, other in enumerate(others, start=1):
        if told := identity.changes(first, other):
            raise RunError(f"Process {rank} has other images than process 0: {told}. Give all processes the same data.")

    def keep() -> None:
        before = run.read_data()
        told = identity.changes(before, now) if before else ""
        # another `on_damage` also changes the images, and the user asked for it
        asked = config.data.changed == "accept" or (before and before.get("on_damage") != config.data.on_damage)
        if told and not asked:
            raise RunError(
                f"The images changed since {run.path} began: {told}. Put them back as they were, or go on with those "
                f"that are there now: recipes resume {run.path} --data.changed accept"
            )
        if told:
            run.warn(f"The images changed since the run began, and it goes on with those that are there now: {told}.")
        if before is None or before != now:
            run.write_data(now)

    collectives.from_main(keep)


def provenance() -> dict[str, Any]:
    """The origin of a report: versions of Python and of the libraries, and the git commit if this is a checkout."""
    versions = {"python": platform.python_version(), "ssl-cookbook": __version__}
    for name in ("torch", "torchvision", "timm"):
        with contextlib.suppress(PackageNotFoundError):  # a package on the path that was never installed
            versions[name] = version(name)
    root = Path(__file__).parents[2]
    commit = None
    if (root / ".git").exists():  # an installed package may lie inside somebody else's repository
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # git is missing, or it hangs
            asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
            commit = asked.stdout.strip() or None
    return {"versions": versions, "git": commit}
