# SPDX-License-Identifier: Apache-2.0
"""Scores a classifier that was trained with labels: by its own accuracy, and by probes on its features."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recipes_lib.config import CLASS_PROBES, ClassProbe, EvalConfig, LabelFreeProbe
from recipes_lib.data.load import Images, Splits
from recipes_lib.data.load import load as load_images
from recipes_lib.errors import DataError
from recipes_lib.evaluation import probes
from recipes_lib.evaluation.features import read_chunks
from recipes_lib.pretraining import scoring
from recipes_lib.pretraining.scoring import Scored, Scores
from recipes_lib.views.multicrop import eval_view


@dataclass(frozen=True, kw_only=True)
class ClassEval(EvalConfig):
    """The accuracy of the trained classifier, and the probes on its features that all recipes have."""

    probes: tuple[Literal["accuracy", ClassProbe, LabelFreeProbe], ...] = ("accuracy",)
    """The probes to score with. accuracy: the share of test images that the trained classifier gets right;
    corruptions: the same, of corrupted test images."""


def load(config: Any, warn: Callable[[str], None]) -> Splits:
    """Loads the training and test images, all of which have labels.

    Raises: ``DataError`` if labels are missing that the probes need, or there are more than ``config.model.classes``.
    """
    return checked(config, load_images(config.data, scoring.DATA_SEED, warn=warn))


def checked(config: Any, splits: Splits) -> Splits:
    """The same images, without those for training that have no label. Raises: as :func:`load`."""
    splits = replace(splits, train=splits.labelled_train)
    if config.eval.probes:
        others = tuple(name for name in config.eval.probes if name in CLASS_PROBES)
        probes.require_labels(splits, replace(config.eval, probes=others or ("linear",)), config.data.labelled)
    found, allowed = int(splits.train.labels.max()) + 1, config.model.classes
    if found > allowed:
        raise DataError(
            f"The images are of {found} classes, but model.classes = {allowed}. Add --model.classes {found}."
        )
    return splits


def score(scored: Scored) -> Scores:
    """Scores by ``accuracy`` and ``corruptions`` the trained classifier, and the untrained one if baselines are asked for.

    All other probes are those of :func:`scoring.score`.
    """
    own = [name for name in ("accuracy", "corruptions") if name in scored.probes]
    others = tuple(name for name in scored.probes if name not in own)
    if others:
        report = scoring.score(replace(scored, probes=others))
    else:
        diagnostics = scored.diagnostics(scored.method, None, scored.splits)
        report = {"scores": {}, "spread": {}, "diagnostics": diagnostics}
    arms = {"method": scored.method.eval()}
    if own and scored.untrained:
        arms["random_init"] = scoring.random_init(scored.config, scored.untrained(), scored.splits.train)
    config, test = scored.config, scored.splits.test
    if "accuracy" in own:
        found = {"accuracy": {arm: accuracy(each, config, test) for arm, each in arms.items()}}
        report["scores"] = found | report["scores"]
    if "corruptions" in own:
        answers = {arm: partial(_answers, each) for arm, each in arms.items()}
        scoring.add_corruptions(report, config, answers, test, next(scored.method.parameters()).device)
    return report


def _answers(method: nn.Module, views: Tensor) -> Tensor:
    """The classes that the trained classifier finds in evaluation views [B, 3, side, side]: int64 [B]."""
    return method.classify(views).argmax(dim=1)


@torch.no_grad()
def accuracy(method: nn.Module, config: Any, images: Images) -> float:
    """The share of ``images``, in [0, 1], that ``method.classify`` assigns to their class; no augmentation."""
    method.eval()
    device = next(method.parameters()).device
    side, look = config.data.image_size, config.views
    chunks = read_chunks(images, side, 256, config.data.workers, look.resize)
    views = (eval_view(chunk.to(device), side, look.normalize, look.resize) for chunk in chunks)
    found = torch.cat([method.classify(view).argmax(dim=1).cpu() for view in views])  # [N]
    return found.eq(images.labels).double().mean().item()
