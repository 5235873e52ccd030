# SPDX-License-Identifier: Apache-2.0
"""What every recipe that pretrains a backbone does around its method: data, training, probes, report.

A recipe's ``run`` calls :func:`pretrain`; :func:`evaluate` and :func:`export` open its run folder again. What is used
of a recipe is its ``Config`` (with the groups that all share), its ``Method`` (``Method(config, steps)``, an
``nn.Module`` with ``backbone`` and ``views``, ``embed`` where its head's output is what classifies, ``finetune_layer``
and ``embedder`` where fine-tuning keeps a layer, or the embedding head, on top of the backbone) and its
``diagnostics``; of some, ``cautions`` (lines that a run opens with). A recipe that learns from labels too has
``hide_labels`` (which images keep theirs) and ``support`` (the
labelled images of each step). One that learns from images and texts has ``load`` (the pairs) and ``score`` in place of
ours, and its method ``encode_texts``. One whose workers may be simulated has ``fit`` in place of the loop's.
"""

import contextlib
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import nn

from recipes_lib import __version__, lowbit, randomness, recipes
from recipes_lib.config import from_dict, override
from recipes_lib.data import embedded, identity
from recipes_lib.data.images import ImageSet
from recipes_lib.data.load import Splits, check_scored, load
from recipes_lib.data.loader import StepBatches
from recipes_lib.distributed import collectives, world
from recipes_lib.errors import ConfigError, RunError, nearest
from recipes_lib.evaluation import finetune, probes
from recipes_lib.models import interchange
from recipes_lib.optim import build as optim
from recipes_lib.recipes import scoring
from recipes_lib.recipes.scoring import DATA_SEED
from recipes_lib.training import checkpoint, folder, limits, loop


@dataclass(frozen=True)
class Result:
    """A finished run."""

    folder: Path
    report: dict[str, Any]
    """What ``report.json`` holds: scores, diagnostics, seconds, steps, versions, seed, git."""


def build(recipe: ModuleType, config: Any, steps: int) -> nn.Module:
    """The method as every run of this config and seed starts; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.step_key(config.train.seed, 0, "initial weights"))
        method = recipe.Method(config, steps)
    if config.model.linear != "full":
        lowbit.convert(method, config.model.linear)
    return method


def pretrain(recipe: ModuleType, config: Any, out: Path | None) -> Result:
    """Trains the recipe's method into the run folder ``out`` (default ``runs/NAME-DATE``), scores it, and reports.

    A run that was interrupted goes on where it stopped. Under torchrun all ranks train, rank 0 writes.

    Raises: ``ConfigError``, ``DataError``, ``RunError``, ``Diverged`` or ``Interrupted``, each in whole lines.
    """
    config.validate()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    place = world.start(config.train.device, timeout=config.train.timeout)
    optim.check(config.optim, config.sync, place.device)
    limits.refuse_too_large(config, lambda: build(recipe, config, steps=1), world_size=place.size, device=place.device)
    cooked = _cooked(recipe, config)  # now, not after the training
    name = recipe.__name__.rpartition(".")[2]
    out = collectives.broadcast_object(out or folder.default_path(name))
    # that other images are accepted is said for one start, and not kept for those to come
    kept = replace(config, data=replace(config.data, changed="refuse"))
    with folder.RunFolder.create_or_continue(out, name, kept) as run:
        began = time.perf_counter()
        for line in recipe.cautions(config) if hasattr(recipe, "cautions") else ():
            run.warn(line)
        splits = load_data(recipe, config, run)
        _refuse_other_data(splits, config, run)
        method, batches, steps = _prepare(recipe, config, splits, place)
        collectives.from_main(lambda: check_scored(splits, config.data, run.warn))
        fit = recipe.fit if hasattr(recipe, "fit") else loop.fit
        how = {"train": config.train, "optim_config": config.optim, "workers": config.data.workers, "sync": config.sync}
        traffic = fit(method, batches, method.views, folder=run, steps=steps, world=place, **how)
        go_on = f"recipes resume {run.path}"
        finetuned = _finetuned(config, method, splits, config.eval.probes, run.path, place, go_on)

        def conclude() -> None:
            full = config.eval.baselines == "all" and bool(config.eval.probes)
            report = {"recipe": name, "data": splits.summary()}
            report |= score(recipe, config, method, splits, config.eval.probes, with_baselines=full, cooked=cooked)
            report["scores"] |= finetuned
            seconds = round(time.perf_counter() - began, 1)
            report |= {"seconds": seconds, "steps": steps, "seed": config.train.seed} | provenance()
            if traffic.rounds:
                report["sync"] = {"name": config.sync.name, "bytes": traffic.bytes_sent, "rounds": traffic.rounds}
            run.require_whole()
            checkpoint.write_weights(run.path / "model.safetensors", method.state_dict())
            run.write_report(report)

        collectives.from_main(conclude)  # the other ranks wait, and hear of its errors
        run.set_state("done", steps)
        return Result(run.path, run.read_report())


def load_data(recipe: ModuleType, config: Any, run: folder.RunFolder) -> Splits:
    """The images of a run, with the labels that the recipe may see."""
    if hasattr(recipe, "load"):
        return recipe.load(config, run.warn)
    splits = load(config.data, DATA_SEED, warn=run.warn)
    return recipe.hide_labels(config, splits) if hasattr(recipe, "hide_labels") else splits


def _refuse_other_data(splits: Splits, config: Any, run: folder.RunFolder) -> None:
    """Notes in the run's folder which images it learns from. All ranks call it.

    Raises: ``RunError`` on every rank where a run that goes on would learn from others, or where the ranks' differ.
    """
    now = identity.record(splits) | {"on_damage": config.data.on_damage}
    first, *others = collectives.gather_objects(now)
    for rank, other in enumerate(others, start=1):
        if told := identity.changes(first, other):
            raise RunError(f"Process {rank} has other images than process 0: {told}. Give all processes the same data.")

    def keep() -> None:
        before = run.read_data()
        told = identity.changes(before, now) if before else ""
        # to leave damaged images out from now on is such a change, and was asked for
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


def _prepare(recipe: ModuleType, config: Any, splits: Splits, place: world.World) -> tuple[nn.Module, StepBatches, int]:
    """The method on its device, its batches, and the number of steps."""
    if not hasattr(recipe, "score"):
        probes.require_labels(splits, config.eval, config.data.labelled)  # now, not after hours of training
    batches = StepBatches(
        splits.train,
        seed=config.train.seed,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        rank=place.rank,
        world_size=place.size,
        classes_per_batch=config.data.classes_per_batch,
    )
    if hasattr(recipe, "support"):
        batches.support = recipe.support(config, splits.train, rank=place.rank, world_size=place.size)
    steps = config.train.total_steps(batches.steps_per_epoch)
    method = build(recipe, config, steps).to(place.device)
    if not isinstance(splits.train, ImageSet):
        batches.crop = method.crop_one
    batches.encode = getattr(method, "encode_texts", None)
    return method, batches, steps


def score(
    recipe: ModuleType,
    config: Any,
    method: nn.Module,
    splits: Splits,
    names: Sequence[str],
    *,
    with_baselines: bool,
    cooked: tuple[Any, nn.Module] | None = None,
) -> dict[str, Any]:
    """The recipe's own ``score`` where it has one, or the probes of :func:`scoring.score`."""
    device = next(method.parameters()).device

    def untrained() -> nn.Module:  # a function, since a baseline may train what it is given
        return build(recipe, config, steps=1).to(device)

    build_untrained = untrained if with_baselines else None
    if hasattr(recipe, "score"):
        return recipe.score(config, method, splits, names, build_untrained)
    report = scoring.score(recipe, config, method, splits, names, build_untrained, cooked)
    return report | ({"cooked": {"steps": cooked[0].train.steps}} if cooked else {})


def _cooked(recipe: ModuleType, config: Any) -> tuple[Any, nn.Module] | None:
    """Config and network of what ``recipes cook`` stored of this recipe, where ``config`` asks for it beside its scores.

    Raises: ``ConfigError`` for a recipe with scores of its own, ``DataError`` where nothing is stored.
    """
    if not (config.eval.cooked and config.eval.baselines == "all" and config.eval.probes):
        return None
    name = recipe.__name__.rpartition(".")[2]
    if hasattr(recipe, "score"):
        raise ConfigError(
            f"eval.cooked = True is not allowed with {name}, which has scores of its own: it is for probes of features. "
            "Leave it out."
        )
    return reopen(embedded.path(f"cooked/{name}"))[1:]


def _finetuned(
    config: Any, method: nn.Module, splits: Splits, names: Sequence[str], run: Path, place: world.World, go_on: str
) -> dict[str, dict[str, float]]:
    """The score of fine-tuning where it is among the probes ``names``; all ranks train."""
    if "finetune" not in names:
        return {}
    name = "embedder" if config.eval.finetune_objective == "suncet" else "finetune_layer"
    layer = getattr(method, name) if hasattr(method, name) else None
    where = {"folder": run / "finetune", "place": place, "go_on": go_on}
    return {"finetune": {"method": finetune.finetune(method.backbone, layer, splits, config, **where)}}


def reopen(path: Path) -> tuple[ModuleType, Any, nn.Module]:
    """The recipe, config and trained method of a run folder: its final weights, or those of its newest checkpoint.

    Raises: ``RunError`` where it is no run folder or holds no weights yet.
    """
    run = folder.RunFolder.open(path)
    recipe, config = _read_config(run)
    if not hasattr(recipe, "Method"):
        raise RunError(f"{path} is a run of a recipe that trains no backbone: there is nothing to evaluate or export.")
    final = run.path / "model.safetensors"
    if final.exists():
        weights = checkpoint.read_weights(final)
    elif saved := checkpoint.latest(run.checkpoints, run.warn):
        weights = saved.model
    else:
        raise RunError(f"{path} holds no weights yet. Train it first: recipes resume {path}")
    # what a network is built from beside its weights may be gone since
    method = build(recipe, config, steps=1)
    interchange.fill(method, weights, f"the weights in {path}")
    return recipe, config, method.to(world.start(config.train.device).device)


def _read_config(run: folder.RunFolder) -> tuple[ModuleType, Any]:
    """The recipe and the config of a run. Raises: ``RunError`` naming the file and the field that does not fit."""
    values = run.read_config()
    try:
        recipe = recipes.module(values.pop("recipe"))
    except ConfigError as error:
        raise RunError(f"{run.path / 'config.yaml'}: {error}") from None
    try:
        return recipe, from_dict(recipe.Config, values)
    except ConfigError as error:
        name = recipe.__name__.rpartition(".")[2]
        lines = [f"{run.path / 'config.yaml'}: {line}" for line in str(error).splitlines()]
        advice = f"Correct it there, or start anew: recipes run {name} --preset {next(iter(recipe.PRESETS))} --out DIR"
        raise RunError("\n".join([*lines[:-1], f"{lines[-1]} {advice}"])) from None


def provenance() -> dict[str, Any]:
    """What a report says of its origin: versions of what computed it, and the commit where this is a checkout."""
    versions = {"python": platform.python_version(), "ssl-cookbook": __version__}
    for name in ("torch", "torchvision", "timm"):
        with contextlib.suppress(PackageNotFoundError):  # on the path, and never installed
            versions[name] = version(name)
    root = Path(__file__).parents[2]
    commit = None
    if (root / ".git").exists():  # installed into somebody's environment, it may lie in a repository that is not ours
        command = ["git", "-C", root, "rev-parse", "HEAD"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git here, or one that hangs
            asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
            commit = asked.stdout.strip() or None
    return {"versions": versions, "git": commit}


OnDamage = Literal["stop", "skip"]


def resume(
    path: Path, *, on_damage: OnDamage | None = None, changed: Literal["refuse", "accept"] | None = None
) -> Result:
    """Goes on with an interrupted run, under the config in its folder.

    ``on_damage`` and ``changed``: what to do from now on about damaged images, and now about other images than the run
    began with; where they are not given, what the run's config says.

    Raises: ``RunError`` where it is no run folder, the run is finished, or its images are others and not accepted.
    """
    recipe, config = _read_config(folder.RunFolder.open(path))
    return recipe.run(_with_data(config, on_damage=on_damage, changed=changed), path)


def _with_data(config: Any, **fields: str | None) -> Any:
    """``config`` with those ``fields`` of its group ``data`` replaced that are given."""
    return override(config, {f"data.{name}": value for name, value in fields.items() if value is not None})


def evaluate(path: Path, names: Sequence[str] | None = None, *, on_damage: OnDamage | None = None) -> dict[str, Any]:
    """Scores of a run folder's weights, by its config's own probes where no ``names`` are given; see :func:`score`.

    Nothing is written, but by the probe ``finetune``: it trains in the sub-folder ``finetune``, or goes on there, or
    reads what it found before. ``on_damage``: what to do about damaged images, where it is not what the run's config says.

    Raises: ``DataError`` naming classes of the images that the run did not learn; as :func:`reopen`.
    """
    recipe, config, method = reopen(path)
    config = _with_data(config, on_damage=on_damage)
    names = tuple(names or config.eval.probes)
    _allow(config, names)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    run = folder.RunFolder.open(path)
    splits = _as_learned(load_data(recipe, config, run), run)
    if not hasattr(recipe, "score"):
        probes.require_labels(splits, replace(config.eval, probes=names), config.data.labelled)
    place = world.start(config.train.device)
    finetuned = _finetuned(config, method, splits, names, path, place, f"recipes evaluate {path} --probe finetune")
    report = score(recipe, config, method, splits, names, with_baselines=False)
    report["scores"] |= finetuned
    return report


def _as_learned(splits: Splits, run: folder.RunFolder) -> Splits:
    """The images with their classes numbered as the run learned them; tells the user where they are not all the same."""
    if not (before := run.read_data()):
        return splits
    now = identity.record(splits)
    splits = identity.by_name(splits, before.get("classes") or now["classes"])
    if told := identity.changes(before, now):
        run.warn(f"The images are not those that the run began with: {told}.")
    return splits


def _allow(config: Any, names: tuple[str, ...]) -> None:
    """Raises ``ConfigError`` naming a probe that this recipe has not, or that its data cannot serve."""
    (choices, _) = get_args(get_type_hints(type(config.eval))["probes"])  # tuple[Literal[...], ...]
    for name in names:
        if name not in get_args(choices):
            raise ConfigError(f"There is no probe {name!r} for this recipe. {nearest(name, get_args(choices))}")
    replace(config, eval=replace(config.eval, probes=names)).validate()


def export(path: Path, layout: Literal["timm", "hf"], out: Path) -> Path:
    """Writes the run's backbone into the new folder ``out``, as ``timm`` or ``transformers`` load it.

    Where one of these cannot use the network as it was trained, a warning says so; our own
    :func:`recipes_lib.models.interchange.load` reads the folder in any case.

    Raises: ``RunError`` where the folder exists, or the backbone has no such layout.
    """
    _, config, method = reopen(path)
    run, views = folder.RunFolder.open(path), config.views
    data, normalize = run.read_data() or {}, views.normalize
    interchange.export(
        method.backbone,
        out,
        layout,
        normalize=normalize,
        resize=views.resize,
        classes=data.get("classes", ()),
    )
    if layout == "timm" and (reason := interchange.beyond_timm(method.backbone, normalize)):
        run.warn(f"timm will refuse {out}: {reason}. Read it with recipes_lib.models.interchange.load.")
    if layout == "hf" and normalize not in interchange.CHANNELS:
        run.warn(
            f"{out} has no preprocessor: transformers has none that normalises as views.normalize {normalize} does."
        )
    return out
