# SPDX-License-Identifier: Apache-2.0
"""The contract between a recipe and what runs it: what every recipe has, and what it may leave as it is.

A chapter's ``recipes/NAME/recipe.py`` ends in ``RECIPE``. It is a :class:`Recipe` where the chapter trains a backbone:
the engine (:mod:`recipes_lib.pretraining.engine`) loads data, trains the :class:`Method`, scores it and reports. It is
a :class:`Job` where the chapter does something else, such as scoring a pool of image-text pairs. A recipe that extends another
is ``dataclasses.replace(clip.RECIPE, name=..., presets=...)``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from recipes_lib.config import CLASS_PROBES
from recipes_lib.data.load import Images, Splits
from recipes_lib.data.load import load as load_splits
from recipes_lib.data.loader import Batch, Crop
from recipes_lib.data.support import SupportBatches
from recipes_lib.distributed.sync import Traffic
from recipes_lib.evaluation.features import Features
from recipes_lib.optim import groups
from recipes_lib.pretraining import engine, scoring
from recipes_lib.pretraining.engine import Result
from recipes_lib.pretraining.scoring import DATA_SEED, Scored, Scores
from recipes_lib.training import loop
from recipes_lib.training.folder import RunFolder

C = TypeVar("C")
"""A recipe's ``Config``: a frozen dataclass with the groups that all recipes share, and ``validate()``."""

Warn = Callable[[str], None]
"""Tells the user a line, and keeps it in the run's ``warnings.txt``."""


class Method(nn.Module):
    """A method as the engine trains and scores it.

    A subclass sets ``backbone`` (a property is fine: MSN's is the target's), cuts ``views``, and computes its loss in
    ``forward``. Parts that a method does not have are ``None``, never absent.
    """

    backbone: nn.Module
    """What is evaluated and exported: images [batch, 3, side, side] -> features [batch, ``num_features``]."""
    crop_one: Crop
    """Cuts the views of one image file in a loader's worker."""
    embed: Callable[[Tensor], Tensor] | None = None
    """Where the head's output is what classifies: features [batch, ``num_features``] -> embeddings [batch, dim]."""
    encode_texts: Callable[[Sequence[str]], Tensor] | None = None
    """Where texts are learned from: texts -> tokens, int64 [n, context]."""
    finetune_layer: nn.Module | None = None
    """The part of the head that fine-tuning with cross-entropy keeps on top of the backbone."""
    embedder: nn.Module | None = None
    """The whole head, as a module, where fine-tuning with SuNCEt trains the embeddings themselves."""

    def views(self, batch: Batch, step: int) -> dict[str, Any]:
        """What ``forward`` takes: tensors (or ``None``) by name. Draws come from ``(seed, epoch, index)`` or ``(seed, step)``."""
        raise NotImplementedError

    def forward(self, views: dict[str, Any]) -> dict[str, Tensor]:
        """The scalar ``loss`` of one micro-batch, with its graph, and detached diagnostics; the same keys every step."""
        raise NotImplementedError

    def param_groups(self) -> list[dict[str, Any]]:
        """What the optimiser updates: groups with ``params`` and ``decays``. Default: weights decay; biases and norms do not."""
        return groups.decay_groups(self)

    def clipped_parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradient's norm is clipped. Default: all of them."""
        return list(self.parameters())

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """What follows an optimiser step, such as the update of a teacher. Default: nothing."""


class Support(Protocol):
    """Makes the labelled images that come with each step of a recipe that learns from a few labels."""

    def __call__(self, config: Any, train: Images, /, *, rank: int, world_size: int) -> SupportBatches:
        """Raises: ``DataError`` where the labelled images are too few."""
        ...


Fit = Callable[[loop.Training, RunFolder], Traffic]
"""Trains, and returns what the processes sent each other: :func:`recipes_lib.training.loop.fit`."""


def load_images(config: Any, warn: Warn) -> Splits:
    """The images that ``config.data`` names. Raises: ``DataError`` where they are missing or damaged."""
    return load_splits(config.data, DATA_SEED, warn=warn)


def keep_all_labels(config: Any, splits: Splits) -> Splits:
    """The images as they are."""
    return splits


def no_diagnostics(method: Method, features: tuple[Features, Features] | None, splits: Splits) -> dict[str, float]:
    """Nothing: the scores say it all."""
    return {}


def no_cautions(config: Any) -> Sequence[str]:
    """Nothing: what the config's ``validate`` lets pass is meant as it is."""
    return ()


def no_simulated_workers(config: Any) -> int:
    """0: each process is one worker."""
    return 0


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[C]):
    """What the engine asks of a recipe that trains a backbone; the first four have no default."""

    name: str
    """Name of the recipe's folder, chapter and tests."""
    config: type[C]
    presets: Mapping[str, C]
    """Smallest first; the paper's runs last."""
    method: Callable[[C, int], Method]
    """Builds the method from a config and the number of all steps, which schedules inside the method need."""
    load: Callable[[C, Warn], Splits] = load_images
    """The images (or pairs) to train on, and those to be scored on."""
    hide_labels: Callable[[C, Splits], Splits] = keep_all_labels
    """The same images, of which only those that training may see as labelled have a label."""
    support: Support | None = None
    """The labelled images that come with each step; ``None`` where none do."""
    needs_labels: bool = False
    """Whether diagnostics need features of the labelled training images, also where no probe is asked for."""
    fit: Fit = loop.fit
    score: Callable[[Scored], Scores] = scoring.score
    """Scores of a trained method, by probe and arm."""
    probes: tuple[str, ...] = CLASS_PROBES
    """The probes that there are: the one list that the command line, the config and ``score`` go by."""
    diagnostics: Callable[[Any, tuple[Features, Features] | None, Splits], dict[str, float]] = no_diagnostics
    """What to report of a trained method beside scores, from its features of training and test images."""
    cautions: Callable[[C], Sequence[str]] = no_cautions
    """Lines that a run opens with: what is allowed and yet may not be meant."""
    simulated_workers: Callable[[C], int] = no_simulated_workers
    """How many workers one process simulates; 0 where each process is one."""

    def run(self, config: C, out: Path | None = None) -> Result:
        """Trains, evaluates and reports; ``out`` is the run folder (default ``runs/NAME-DATE``).

        Raises: ``ConfigError``, ``DataError``, ``RunError``, ``Diverged`` or ``Interrupted``, each in whole lines.
        """
        return engine.pretrain(self, config, out)


@dataclass(frozen=True, kw_only=True)
class Job(Generic[C]):
    """A recipe that trains no backbone: it scores, selects or analyses."""

    name: str
    """Name of the job's folder, chapter and tests."""
    config: type[C]
    presets: Mapping[str, C]
    """Smallest first; the paper's runs last."""
    run: Callable[[C, Path | None], Result]
    """Does the work in the run folder (default ``runs/NAME-DATE``) and reports."""
    fingerprint: Callable[[C], dict[str, Any]]
    """Quantities of a run of seconds that tell whether the numerics moved, by name."""
