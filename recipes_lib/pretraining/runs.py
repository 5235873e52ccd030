# SPDX-License-Identifier: Apache-2.0
"""Works on an existing run folder: resumes its training, scores its weights, or exports its backbone.

The recipe is an argument, so this module does not depend on the recipes; ``recipes.of_run(folder)`` finds the recipe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from recipes_lib.config import override
from recipes_lib.config.views import CHANNELS
from recipes_lib.data import identity
from recipes_lib.data.load import Splits
from recipes_lib.distributed import world
from recipes_lib.errors import ConfigError, nearest
from recipes_lib.models import exports
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.engine import Result
from recipes_lib.training import folder

if TYPE_CHECKING:
    from recipes_lib.pretraining.recipe import Job, Recipe

OnDamage = Literal["stop", "skip"]


def resume(
    recipe: "Recipe | Job",
    path: Path,
    *,
    on_damage: OnDamage | None = None,
    changed: Literal["refuse", "accept"] | None = None,
) -> Result:
    """Continues an interrupted run with the config in its folder.

    ``on_damage`` replaces the config's value from now on, and ``changed`` for this start only. ``None`` keeps the
    config's value.

    Raises: ``RunError`` if ``path`` is no run folder, the run is finished, or its images changed and this is refused.
    """
    config = engine.read_config(recipe, folder.RunFolder.open(path))
    return recipe.run(_with_data(config, on_damage=on_damage, changed=changed), path)


def _with_data(config: Any, **fields: str | None) -> Any:
    """``config`` with those ``fields`` of its group ``data`` replaced that are not ``None``."""
    return override(config, {f"data.{name}": value for name, value in fields.items() if value is not None})


def evaluate(
    recipe: "Recipe",
    path: Path,
    names: Sequence[str] | None = None,
    *,
    on_damage: OnDamage | None = None,
    corruptions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores the weights of a run folder by the probes ``names``, or by those of its config; see :func:`engine.score`.

    Only the probe ``finetune`` writes anything: it trains in the sub-folder ``finetune``, continues an interrupted
    fine-tuning there, or reads an earlier result. ``on_damage`` replaces the config's value if it is given, and
    ``corruptions`` (dotted field -> value) those of the probe of that name, such as ``eval.corruption_images``.

    Raises: ``DataError`` naming classes of the images that the run did not learn; ``ConfigError`` if there are fields in
    ``corruptions`` and it is not among the probes; also as :func:`engine.reopen`.
    """
    config, method = engine.reopen(recipe, path)
    config = override(_with_data(config, on_damage=on_damage), dict(corruptions or {}))
    names = tuple(names or config.eval.probes)
    if corruptions and "corruptions" not in names:
        raise ConfigError(f"{next(iter(corruptions))} is of the probe corruptions. Add it: --probe corruptions")
    _allow(recipe, config, names)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    run = folder.RunFolder.open(path)
    splits = _as_learned(engine.load_data(recipe, config, run), run)
    engine.require_labels(config, splits, names)
    place, go_on = world.start(config.train.device), f"recipes evaluate {path} --probe finetune"
    finetuned = engine.finetuned_score(config, method, splits, names, path, place, go_on)
    report = engine.score(recipe, config, method, splits, names, with_baselines=False)
    report["scores"] |= finetuned
    return report


def _as_learned(splits: Splits, run: folder.RunFolder) -> Splits:
    """The images with their classes numbered as in training; warns the user if the images are not those of training."""
    if not (before := run.read_data()):
        return splits
    now = identity.record(splits)
    splits = identity.by_name(splits, before.get("classes") or now["classes"])
    if told := identity.changes(before, now):
        run.warn(f"The images are not those that the run began with: {told}.")
    return splits


def _allow(recipe: "Recipe", config: Any, names: tuple[str, ...]) -> None:
    """Raises ``ConfigError`` naming a probe that this recipe does not have, or that its data cannot serve."""
    for name in names:
        if name not in recipe.probes:
            raise ConfigError(f"There is no probe {name!r} for this recipe. {nearest(name, recipe.probes)}")
    replace(config, eval=replace(config.eval, probes=names)).validate()


def export(recipe: "Recipe", path: Path, layout: Literal["timm", "hf"], out: Path) -> Path:
    """Writes the run's backbone into the new folder ``out``, in the layout that ``timm`` or ``transformers`` loads.

    A warning says so if that library cannot use the network as it was trained;
    :func:`recipes_lib.models.interchange.load` always reads the folder.

    Raises: ``RunError`` if the folder exists, or the backbone has no such layout.
    """
    config, method = engine.reopen(recipe, path)
    run, views = folder.RunFolder.open(path), config.views
    data, normalize = run.read_data() or {}, views.normalize
    exports.write(
        method.backbone,
        out,
        layout,
        normalize=normalize,
        resize=views.resize,
        classes=data.get("classes", ()),
    )
    if layout == "timm" and (reason := exports.beyond_timm(method.backbone, normalize)):
        run.warn(f"timm will refuse {out}: {reason}. Read it with recipes_lib.models.interchange.load.")
    if layout == "hf" and normalize not in CHANNELS:
        run.warn(
            f"{out} has no preprocessor: transformers has none that normalises as views.normalize {normalize} does."
        )
    return out
