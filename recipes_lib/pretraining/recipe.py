# SPDX-License-Identifier: Apache-2.0
"""The contract between a recipe and the engine: the fields that every recipe has, and those with a default.

A chapter's ``recipes/NAME/recipe.py`` ends in ``RECIPE``. It is a :class:`Recipe` if the chapter trains a backbone: the
engine (:mod:`recipes_lib.pretraining.engine`) loads data, trains the :class:`Method`, scores it and reports. It is a
:class:`Job` if the chapter does something else, such as scoring a pool of image-text pairs. A recipe that extends
another is ``dataclasses.replace(clip.RECIPE, name=..., presets=...)``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from recipes_lib.config import PROBES
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
"""Shows the user one line, and appends it to the run's ``warnings.txt``."""


@dataclass(frozen=True)
class Teaching:
    """A method's teacher: a moving average of the student, from which the student's targets come."""

    teacher: nn.Module
    student: nn.Module
    """Has the same parameters as the teacher, in the same order."""
    momentum: float
    """Momentum of the average at the first step, in [0, 1]; 1 / (1 - momentum) steps are the teacher's memory."""


class Method(nn.Module):
    """A module that the engine can train and score.

    A subclass sets ``backbone`` (a property is fine: MSN's is the target's), cuts ``views``, and computes its loss in
    ``forward``. Optional parts that a method does not have stay ``None``.
    """

    backbone: nn.Module
    """The evaluated and exported network: images [batch, 3, side, side] -> features [batch, ``num_features``]."""
    crop_one: Crop
    """Cuts the views of one image file in a loader's worker process."""
    embed: Callable[[Tensor], Tensor] | None = None
    """Maps features [batch, ``num_features``] to embeddings [batch, dim], if probes compare embeddings too."""
    encode_texts: Callable[[Sequence[str]], Tensor] | None = None
    """Maps texts to tokens, int64 [n, context], if the method learns from texts."""
    finetune_layer: nn.Module | None = None
    """The part of the head that fine-tuning with cross-entropy keeps on top of the backbone."""
    teaching: Teaching | None = None
    """The teacher, if the targets come from a moving average of the network."""
    sinkhorn_prototypes: int = 0
    """Number of prototypes that Sinkhorn uses equally often in a micro-batch, less the queued images; 0: there is none."""
    embedder: nn.Module | None = None
    """The whole head as a module, for fine-tuning with SuNCEt, which trains the embeddings."""

    def views(self, batch: Batch, step: int) -> dict[str, Any]:
        """The input of ``forward``: tensors (or ``None``) by name.

        All random numbers derive from ``(seed, epoch, index)`` or ``(seed, step)``.
        """
        raise NotImplementedError

    def forward(self, views: dict[str, Any]) -> dict[str, Tensor]:
        """The scalar ``loss`` of one micro-batch, with its graph, and detached diagnostics; the same keys every step."""
        raise NotImplementedError

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups, with ``params`` and ``decays``. Default: weights decay; biases and norms do not."""
        return groups.decay_groups(self)

    def clipped_parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradient norm is clipped. Default: all parameters."""
        return list(self.parameters())

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Runs after each optimiser step, for instance to update a teacher. Default: does nothing."""


class Support(Protocol):
    """Makes the supports of a recipe that learns from few labels: the labelled images that come with each step."""

    def __call__(self, config: Any, train: Images, /, *, rank: int, world_size: int) -> SupportBatches:
        """The supports of one rank. Raises: ``DataError`` if there are too few labelled images."""
        ...


Fit = Callable[[loop.Training, RunFolder], Traffic]
"""Trains the method and returns how many bytes the ranks sent; the default is :func:`recipes_lib.training.loop.fit`."""


def load_images(config: Any, warn: Warn) -> Splits:
    """Loads the images that ``config.data`` names. Raises: ``DataError`` if they are missing or damaged."""
    return load_splits(config.data, DATA_SEED, warn=warn)


def keep_all_labels(config: Any, splits: Splits) -> Splits:
    """The images with all their labels: the default of ``hide_labels``."""
    return splits


def no_diagnostics(method: Method, features: tuple[Features, Features] | None, splits: Splits) -> dict[str, float]:
    """An empty dict: the default for methods without diagnostics of their own."""
    return {}


def no_cautions(config: Any) -> Sequence[str]:
    """No lines: the default for recipes without cautions."""
    return ()


def no_simulated_workers(config: Any) -> int:
    """Returns 0, the default: each process is one worker."""
    return 0


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[C]):
    """A recipe that trains a backbone, as the engine needs it; the first four fields have no default."""

    name: str
    """Name of the recipe's folder, chapter and tests."""
    config: type[C]
    """Class of the recipe's config."""
    presets: Mapping[str, C]
    """Configs by name: the smallest first, the paper's runs last."""
    method: Callable[[C, int], Method]
    """Builds the method from a config and the total number of steps, which schedules inside the method need."""
    load: Callable[[C, Warn], Splits] = load_images
    """Loads the training images (or pairs) and the test images."""
    hide_labels: Callable[[C, Splits], Splits] = keep_all_labels
    """Returns the same images, but only those have labels whose labels training may see."""
    support: Support | None = None
    """Makes the labelled images that come with each step; ``None`` if the method uses none."""
    needs_labels: bool = False
    """Whether diagnostics need features of the labelled training images even if no probe is asked for."""
    fit: Fit = loop.fit
    """Trains the method."""
    score: Callable[[Scored], Scores] = scoring.score
    """Scores a trained method, by probe and arm."""
    probes: tuple[str, ...] = PROBES
    """Names of all probes that ``score`` knows; the command line and the config allow only these."""
    diagnostics: Callable[[Any, tuple[Features, Features] | None, Splits], dict[str, float]] = no_diagnostics
    """Numbers to report beside the scores, from the method and its features of training and test images."""
    cautions: Callable[[C], Sequence[str]] = no_cautions
    """Lines shown at the start of a run, about settings that are allowed but perhaps not intended."""
    simulated_workers: Callable[[C], int] = no_simulated_workers
    """The number of workers that one process simulates; 0 if each process is one worker."""

    def run(self, config: C, out: Path | None = None) -> Result:
        """Trains, evaluates and reports; ``out`` is the run folder (default ``runs/NAME-DATE``).

        Raises: ``ConfigError``, ``DataError``, ``RunError``, ``Diverged`` or ``Interrupted``, with text of whole lines.
        """
        return engine.pretrain(self, config, out)


@dataclass(frozen=True, kw_only=True)
class Job(Generic[C]):
    """A recipe that trains no backbone, but scores, selects or analyses."""

    name: str
    """Name of the job's folder, chapter and tests."""
    config: type[C]
    """Class of the job's config."""
    presets: Mapping[str, C]
    """Configs by name: the smallest first, the paper's runs last."""
    run: Callable[[C, Path | None], Result]
    """Does the work in the run folder (default ``runs/NAME-DATE``) and reports."""
    fingerprint: Callable[[C], dict[str, Any]]
    """Quantities by name, computed within seconds; they change if the numerics of the job change."""
