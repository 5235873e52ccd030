# SPDX-License-Identifier: Apache-2.0
"""The error of classifiers on corrupted test images, by corruption and severity.

Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
ICLR 2019, arXiv 1903.12261, section 4: mean corruption error (mCE) and relative mCE. AlexNet's errors are those that
the authors' later paper, AugMix, uses (``imagenet.py`` in github.com/google-research/augmix); each is the mean over the
five severities. AlexNet's error on clean images is that of torchvision's weights, which the authors used.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from recipes_lib import terminal
from recipes_lib.config.evaluation import CORRUPTIONS, SEVERITIES, Corruption, EvalConfig
from recipes_lib.data import corrupted
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.evaluation.features import Features, evaluating, read_chunks, sample
from recipes_lib.evaluation.linear import linear_classifier
from recipes_lib.views.corruptions import corrupt
from recipes_lib.views.multicrop import Normalize, Resize, eval_view

ALEXNET: dict[Corruption, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's error on ImageNet-C, in [0, 1], the mean over the severities."""
ALEXNET_CLEAN = 0.43478
"""AlexNet's error on ImageNet's validation images, in [0, 1]."""

_SYNSET = re.compile(r"n\d{8}")  # ImageNet's names of its classes

CLEAN = ("clean", 0)
"""How an image looks that is not corrupted."""
Look = tuple[str, int]
"""The name of a corruption and its severity, or ``CLEAN``."""

Predict = Callable[[Tensor], Tensor]
"""Maps evaluation views [B, 3, side, side] to the numbers of classes, int64 [B]."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which corrupted images a classifier is shown, and how it sees them."""

    corruptions: Sequence[Corruption]
    severities: Sequence[int]
    images: int
    """The number of test images, drawn without regard to their order; all if there are fewer."""
    root: Path | None
    """Folder of published corrupted images; None: the images are corrupted here."""
    seed: int
    """Seed of the corruptions' random numbers."""
    image_size: int
    normalize: Normalize
    resize: Resize = "bilinear"
    workers: int = 0
    """Number of processes that open image files."""
    device: torch.device | str = "cpu"
    """The device of the classifiers, on which images are corrupted too."""

    @property
    def looks(self) -> "list[Look]":
        """Each corruption at each severity, once."""
        return list(dict.fromkeys((name, severity) for name in self.corruptions for severity in self.severities))


@dataclass(frozen=True)
class CorruptionErrors:
    """The errors of one classifier, each the share of images, in [0, 1], whose class it gets wrong."""

    clean: float
    """The error on the same images without corruption."""
    errors: dict[Corruption, dict[int, float]]
    """By corruption and severity."""

    @property
    def by_corruption(self) -> dict[Corruption, float]:
        """The mean over the severities, for each corruption."""
        return {name: sum(errors.values()) / len(errors) for name, errors in self.errors.items()}

    @property
    def mean(self) -> float:
        """The mean corruption error, not normalised: the mean over all corruptions and severities."""
        return sum(self.by_corruption.values()) / len(self.errors)

    @property
    def normalised(self) -> dict[Corruption, float]:
        """The corruption error CE: each corruption's error in units of AlexNet's; 1 is as bad as AlexNet."""
        self._need_all()
        return {name: error / ALEXNET[name] for name, error in self.by_corruption.items()}

    @property
    def mce(self) -> float:
        """The mCE, in units of AlexNet's errors: the mean of the corruption errors; papers print it times 100.

        It says something only of ImageNet's classes at 224 pixels, of which AlexNet's errors are.
        Raises: ``ValueError`` unless all corruptions and severities were measured.
        """
        return sum(self.normalised.values()) / len(CORRUPTIONS)

    @property
    def relative_mce(self) -> float:
        """The relative mCE: as :attr:`mce`, of what each corruption adds to the error on clean images.

        Raises: ``ValueError`` unless all corruptions and severities were measured.
        """
        self._need_all()
        ratios = [(error - self.clean) / (ALEXNET[name] - ALEXNET_CLEAN) for name, error in self.by_corruption.items()]
        return sum(ratios) / len(ratios)

    def as_dict(self, *, in_units: bool) -> dict[str, Any]:
        """The errors for a report; ``in_units``: also those in units of AlexNet's errors."""
        found = {
            "clean_error": self.clean,
            "mean_error": self.mean,
            "added_error": self.mean - self.clean,
            "errors": {
                name: {str(severity): error for severity, error in row.items()} for name, row in self.errors.items()
            },
        }
        if in_units:
            found |= {"normalised": self.normalised, "mce": self.mce, "relative_mce": self.relative_mce}
        return found

    def _need_all(self) -> None:
        if set(self.errors) != set(CORRUPTIONS) or any(set(found) != set(SEVERITIES) for found in self.errors.values()):
            raise ValueError(
                "AlexNet's errors are means over all 15 corruptions and 5 severities: measure all of them."
            )


def require(config: EvalConfig, images: ImageSet | ImageFiles) -> None:
    """Checks, before training, that the published corrupted images are there, if ``config`` names their folder.

    Raises: ``DataError`` as :func:`recipes_lib.data.corrupted.check`.
    """
    if config.corruption_root is not None:
        chosen = images.select(sample(len(images), config.corruption_images))
        corrupted.check(config.corruption_root, config.corruptions, config.corruption_severities, chosen)


def frozen_classifier(backbone: nn.Module, train: Features, labels: Tensor, test_labels: Tensor, seed: int) -> Predict:
    """The linear probe as a classifier of images: it was fitted on the features of clean training images.

    Shapes: ``labels`` int64 [len(train)], of which those of unlabelled images are left out; ``test_labels`` int64 [M],
    which say how many classes there are.
    """
    device, known = next(backbone.parameters()).device, (labels != UNLABELLED).nonzero()[:, 0]
    rows, labels = train.before_norm[known].to(device), labels[known].to(device)
    classes = int(max(labels.max(), test_labels.max())) + 1
    logits = linear_classifier(rows, labels, classes=classes, seed=seed)

    def predict(views: Tensor) -> Tensor:
        with evaluating(backbone):
            return logits(backbone.before_norm(views)).argmax(dim=1)

    return predict


def comparable_with_alexnet(images: ImageSet | ImageFiles, asked: Asked) -> bool:
    """Whether AlexNet's errors are of the same task: ImageNet's 1,000 classes, 224 pixels, all looks of ImageNet-C."""
    complete = set(asked.corruptions) == set(CORRUPTIONS) and set(asked.severities) == set(SEVERITIES)
    synsets = [name for name in images.class_names if _SYNSET.fullmatch(name)]
    return complete and asked.image_size == 224 and len(images.class_names) == len(synsets) == 1000


def measure(
    predictors: Mapping[str, Predict], images: ImageSet | ImageFiles, asked: Asked
) -> dict[str, CorruptionErrors]:
    """The errors of each of ``predictors`` (by its name) on ``images``, clean and corrupted; all see the same images.

    Images are corrupted at the size at which they are stored, image files at ``asked.image_size`` after the central
    crop, as ImageNet-C's were; then follows the evaluation view. Each image passes ``corruptions * severities + 1``
    times through each classifier. A terminal shows a bar.

    Raises: ``DataError`` for image files that cannot be read, and as :func:`recipes_lib.data.corrupted.read`.
    """
    indices = sample(len(images), asked.images)
    chosen = images.select(indices)
    wrong: dict[str, Counter] = {arm: Counter() for arm in predictors}
    with torch.no_grad(), _bar() as bar:
        task = bar.add_task("corruptions", total=(1 + len(asked.looks)) * len(chosen))
        for look, rows, pictures in _looks(chosen, indices, asked):
            views = eval_view(pictures, asked.image_size, asked.normalize, asked.resize)
            for arm, predict in predictors.items():
                wrong[arm][look] += int((predict(views).cpu() != chosen.labels[rows]).sum())
            bar.advance(task, len(pictures))
    return {arm: _errors(counts, len(chosen), asked) for arm, counts in wrong.items()}


def _errors(wrong: Counter, count: int, asked: Asked) -> CorruptionErrors:
    errors = {name: {s: wrong[name, s] / count for s in asked.severities} for name in asked.corruptions}
    return CorruptionErrors(wrong[CLEAN] / count, errors)


def _looks(chosen: ImageSet | ImageFiles, indices: Tensor, asked: Asked) -> Iterator[tuple[Look, slice, Tensor]]:
    """Each look of each chunk of images: how it is corrupted, its rows of ``chosen``, and uint8 [B, 3, H, W]."""
    for rows, pictures in _chunks(chosen, asked):
        yield CLEAN, rows, pictures
        if asked.root is None:  # a file is opened once for all its corruptions
            for name, severity in asked.looks:
                yield (name, severity), rows, corrupt(pictures, name, severity, indices[rows], seed=asked.seed)
    if asked.root is not None:
        for name, severity in asked.looks:
            there = corrupted.read(asked.root, name, severity, chosen)
            yield from (((name, severity), *chunk) for chunk in _chunks(there, asked))


def _chunks(images: ImageSet | ImageFiles, asked: Asked) -> Iterator[tuple[slice, Tensor]]:
    first = 0
    with closing(read_chunks(images, asked.image_size, 256, asked.workers, asked.resize)) as chunks:
        for chunk in chunks:
            yield slice(first, first + len(chunk)), chunk.to(asked.device)
            first += len(chunk)


def _bar() -> Progress:
    """A bar of the images that were classified, in a terminal; nothing elsewhere."""
    console = terminal.aside()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
