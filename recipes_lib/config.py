# SPDX-License-Identifier: Apache-2.0
"""The config groups that every recipe shares, and how a config becomes a file and comes back.

A recipe's ``Config`` is a frozen dataclass with one field a group (``data``, ``views``, ``model``, ``loss``,
``optim``, ``sync``, ``train``, ``eval``) and a ``validate()`` that collects all faults before it raises. Defaults are
the full-scale values; presets change what they need with ``dataclasses.replace``. This module imports no torch.
"""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import dacite
import yaml

from recipes_lib.errors import ConfigError, Faults, nearest

C = TypeVar("C")


MOST_WORKERS = 256
"""Loading processes of a rank: more than a machine has cores for would fill its memory before the first batch."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, from where."""

    name: Literal["digits", "pantry", "npz", "cifar10", "stl10", "imagenet", "inat18", "places365"] = "imagenet"
    """``digits`` and ``pantry`` need nothing else; the others are read from ``root``."""
    root: Path | None = None
    """Folder of the data set as torchvision lays it out, or the ``.npz`` file. ``imagenet`` is any folder of images:
    ``train/CLASS`` and ``val/CLASS``; images in ``train`` itself or in ``train/unlabeled`` have no label; without a
    probe ``val`` may be missing, and images may lie in the folder itself."""
    on_damage: Literal["stop", "skip"] = "stop"
    """What to do about an image that cannot be read: stop with its name, or leave it out and say how many were."""
    changed: Literal["refuse", "accept"] = "refuse"
    """What to do where the images are no longer those that the run began with: stop, or go on with what is there now."""
    image_size: int = 224
    """Side in pixels at which images are drawn, or evaluated."""
    train_size: int = 6000
    """Images drawn for training; ``digits`` and ``pantry`` only."""
    test_size: int = 1000
    """Images drawn for testing; ``digits`` and ``pantry`` only."""
    scenes: Literal["natural", "controlled"] = "natural"
    """``pantry`` only. natural: each class has its usual materials, colours and places; controlled: no such ties."""
    labelled: Path | None = None
    """Text file that names the labelled images, a name a line (of images in memory: their numbers, from 0), for low-shot
    evaluation; none: splits are drawn."""
    tail: float = 0.0
    """Exponent of a power law of the classes' sizes in training: class r keeps r ** -tail of the first's; 0: all of them."""
    classes_per_batch: int | None = None
    """Every batch has images of this many random classes, equally many of each; none: images come in random order."""
    holdout: float = 0.0
    """Share of the training images kept apart and scored in place of the test set: for choosing hyper-parameters. With
    ``digits``, images of one scan stay together."""
    workers: int = 0
    """Processes that load batches, per rank, at most 256; 0 loads in the training process."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        if self.name in ("digits", "pantry"):
            need = f"data.name {self.name} draws its own images"
            if self.root is not None:
                faults.add(
                    f"data.root = {self.root} has no use here: {need}. Leave it out, or choose another data.name."
                )
        elif self.root is None:
            faults.add(
                f"data.root is missing: data.name {self.name} is read from disk. "
                f"Add --data.root {'FILE.npz' if self.name == 'npz' else 'FOLDER'}."
            )
        faults.need(self.image_size >= 8, "data.image_size", self.image_size, "of at least 8")
        faults.need(self.train_size >= 1, "data.train_size", self.train_size, "of at least 1")
        faults.need(self.test_size >= 1, "data.test_size", self.test_size, "of at least 1")
        faults.need(
            0 <= self.tail < float("inf"), "data.tail", self.tail, "of at least 0", "0 leaves the classes as they are."
        )
        classes = self.classes_per_batch
        faults.need(classes is None or classes >= 1, "data.classes_per_batch", classes, "of at least 1")
        faults.need(0 <= self.holdout < 1, "data.holdout", self.holdout, "in [0, 1)")
        faults.need(0 <= self.workers <= MOST_WORKERS, "data.workers", self.workers, f"of 0 to {MOST_WORKERS}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedules; the counter of a schedule is the optimiser step."""

    name: Literal["adamw", "adamw8bit", "lars", "sgd", "stable_adamw"] = "adamw"
    """adamw8bit: bitsandbytes' AdamW, whose running means take 8 bits (needs the extra ``lowbit``). sgd has Nesterov momentum
    0.9; fine-tuning uses it. stable_adamw takes smaller steps where gradients outgrow their running mean square."""
    lr: float = 1e-3
    """Peak learning rate, absolute: it is not scaled with the batch."""
    lr_start: float = 2e-4
    """Learning rate before the first step of the warm-up."""
    lr_final: float = 1e-6
    """Learning rate that the cosine ends in, after ``stretch`` times the run."""
    lr_drops: tuple[float, ...] = ()
    """Epochs after which the learning rate is a tenth of what it was, in place of the cosine; empty: the cosine."""
    warmup_epochs: float = 15.0
    """Epochs of linear warm-up; may be fractional."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; where it is given, ``warmup_epochs`` is not used."""
    weight_decay: float = 0.04
    """Decoupled weight decay at the start; weights only, neither biases nor norms nor prototypes."""
    weight_decay_final: float = 0.4
    """Weight decay that its cosine ends in, after ``stretch`` times the run."""
    stretch: float = 1.25
    """The cosines are laid out over this many times the run, so they stop before their end."""
    first_count: Literal[0, 1] = 1
    """What the schedules count the first step as: 1 in MSN's code, 0 in PAWS's."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square; ``adamw``, ``adamw8bit`` and ``stable_adamw`` only."""
    eps: float = 1e-8
    """Added to the root of the mean square; ``adamw``, ``adamw8bit`` and ``stable_adamw`` only."""
    clip_decay: bool = True
    """``stable_adamw`` only. Where a tensor's step is shortened its weight decay is too; if not, the decay keeps the
    scheduled learning rate, as in the code of the method's authors."""
    lr_in_momentum: bool = False
    """``lars`` only. The learning rate enters the momentum, as in PAWS; else it multiplies the momentum."""
    clip: float | None = 3.0
    """Largest norm of the encoder's gradient; none: no clipping."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        faults.need(self.lr > 0, "optim.lr", self.lr, "above 0")
        faults.need(0 <= self.lr_start <= self.lr, "optim.lr_start", self.lr_start, f"in [0, optim.lr = {self.lr}]")
        faults.need(0 <= self.lr_final <= self.lr, "optim.lr_final", self.lr_final, f"in [0, optim.lr = {self.lr}]")
        rising = all(earlier < later for earlier, later in pairwise((0.0, *self.lr_drops)))
        faults.need(rising, "optim.lr_drops", self.lr_drops, "of epochs above 0, each later than the one before")
        faults.need(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "of at least 0")
        steps = self.warmup_steps
        faults.need(steps is None or steps >= 0, "optim.warmup_steps", steps, "of at least 0")
        faults.need(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "of two numbers in [0, 1)")
        faults.need(self.eps > 0, "optim.eps", self.eps, "above 0")
        faults.need(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "of at least 0")
        faults.need(self.weight_decay_final >= 0, "optim.weight_decay_final", self.weight_decay_final, "of at least 0")
        faults.need(self.stretch >= 1, "optim.stretch", self.stretch, "of at least 1", "The paper's code uses 1.25.")
        faults.need(self.first_count in (0, 1), "optim.first_count", self.first_count, "of 0 or 1")
        faults.need(
            not self.lr_in_momentum or self.name == "lars",
            "optim.lr_in_momentum",
            self.lr_in_momentum,
            f"of False with optim.name {self.name}",
            "Only lars has this form.",
        )
        faults.need(self.clip is None or self.clip > 0, "optim.clip", self.clip, "above 0, or None for no clipping")


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """How the processes of one run agree on the weights: :mod:`recipes_lib.distributed.sync`."""

    name: Literal["ddp", "fsdp", "local_sgd", "post_local_sgd", "slowmo"] = "ddp"
    """ddp: gradients are averaged at every step. fsdp: likewise, each rank keeping a share of the weights. local_sgd: weights
    are, every ``period`` steps. post_local_sgd: so from step ``start`` on, ddp before. slowmo: that, with a slow momentum."""
    period: int = 48
    """Steps from one averaging of the weights to the next; not used by ``ddp`` and ``fsdp``."""
    start: int = 0
    """Steps in which gradients are still averaged; ``post_local_sgd`` and ``slowmo`` only."""
    momentum: float = 0.5
    """Slow momentum, in [0, 1); ``slowmo`` only. 0, at ``lr`` 1, is plain averaging."""
    lr: float = 1.0
    """Slow learning rate, a factor of the step that the workers' mean took; ``slowmo`` only."""
    buffers: Literal["maintain", "reset", "average"] = "maintain"
    """What becomes of the optimiser's running means when weights are averaged; ``average`` sends them too."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        faults.need(self.period >= 1, "sync.period", self.period, "of at least 1", "1 averages at every step.")
        later = self.name in ("post_local_sgd", "slowmo")
        allowed = "of at least 0" if later else f"of 0 with sync.name {self.name}"
        faults.need(self.start >= 0 if later else self.start == 0, "sync.start", self.start, allowed)
        faults.need(0 <= self.momentum < 1, "sync.momentum", self.momentum, "in [0, 1)")
        faults.need(self.lr > 0, "sync.lr", self.lr, "above 0", "1 goes where the workers' mean went.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how many at once, and what is kept."""

    epochs: float | None = 800.0
    """Passes over the training images; give this or ``steps``."""
    steps: int | None = None
    """Optimiser steps; where it is given, ``epochs`` is not used."""
    batch_size: int = 1024
    """Images per optimiser step, summed over processes and accumulated micro-batches."""
    accumulate: int = 1
    """Micro-batches per optimiser step; batch statistics (batch norm, Sinkhorn) are those of a micro-batch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products under autocast; losses stay in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    threads: int | None = None
    """CPU threads of torch; none: torch's own choice. One is bit-stable, and on a busy machine faster."""
    memory_limit: float | None = None
    """GB that a run may ask for, checked before it starts; none: what the device has."""
    seed: int = 0
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step is always kept."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on disk; two, so that a damaged one has another before it."""
    timeout: float = 1800.0
    """Seconds in which a process that trains with others must get on; where one does not, all end, naming it, and the run
    can be resumed. Longer than the slowest step."""
    tensorboard: bool = False
    """Write TensorBoard events beside ``metrics.jsonl`` (needs the extra ``track``)."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        if self.steps is None:
            some = self.epochs is not None and 0 < self.epochs < float("inf")
            faults.need(some, "train.epochs", self.epochs, "above 0, or give train.steps")
        else:
            faults.need(self.steps >= 1, "train.steps", self.steps, "of at least 1")
        faults.need(self.batch_size >= 2, "train.batch_size", self.batch_size, "of at least 2")
        faults.need(
            self.accumulate >= 1
            and self.batch_size % self.accumulate == 0
            and not self.batch_size == self.accumulate > 1,  # batch norm takes no statistics from one image
            "train.accumulate",
            self.accumulate,
            f"that divides train.batch_size = {self.batch_size} into micro-batches of at least 2",
        )
        faults.need(self.threads is None or 1 <= self.threads <= 1024, "train.threads", self.threads, "of 1 to 1024")
        faults.need(0 <= self.seed < 2**63, "train.seed", self.seed, "of at least 0 and below 2**63", most=2**63 - 1)
        limit = self.memory_limit
        faults.need(
            limit is None or limit > 0, "train.memory_limit", limit, "above 0, or None for the machine's memory"
        )
        faults.need(self.checkpoint_every >= 1, "train.checkpoint_every", self.checkpoint_every, "of at least 1")
        faults.need(self.keep_checkpoints >= 1, "train.keep_checkpoints", self.keep_checkpoints, "of at least 1")
        faults.need(1 <= self.timeout <= 10**7, "train.timeout", self.timeout, "from 1 to 10,000,000 seconds")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.steps if self.steps is not None else max(1, round(self.epochs * steps_per_epoch))


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Probes on frozen features, and what they are compared with."""

    probes: tuple[Literal["knn", "linear", "lowshot", "snn", "factors", "finetune"], ...] = ("knn", "linear", "lowshot")
    """factors needs images whose true factors are known (``pantry``, ``digits``); finetune trains on, the others read."""
    baselines: Literal["all", "none"] = "none"
    """all: score random-init features, raw pixels and a supervised net of the same budget too."""
    cooked: bool = False
    """With ``baselines`` all: also probe the network that ``recipes cook`` stored of this recipe, on the same images."""
    neighbours: int = 20
    """Neighbours of the weighted k-NN classifier."""
    neighbour_temperature: float = 0.07
    """Temperature of the neighbours' votes."""
    labels_per_class: int = 5
    """Labelled images per class of the low-shot probe."""
    lowshot_splits: int = 3
    """Random choices of the labelled images; the score is their mean."""
    lowshot_penalty: float = 0.0025
    """L2 penalty of the low-shot logistic regression, as the MSN paper's code counts it (0.075 for 1 % labels)."""
    finetune_objective: Literal["cross_entropy", "suncet"] = "cross_entropy"
    """cross_entropy: a linear layer on top; suncet: embeddings find their own class, and their neighbours classify."""
    finetune_epochs: float = 50.0
    """Passes of fine-tuning over the labelled images."""
    finetune_lr: float = 0.02
    """Learning rate of fine-tuning at its first step; a cosine takes it to 0, with suncet to a tenth."""
    finetune_batch_size: int = 1024
    """Images per step of fine-tuning, summed over processes; all labelled images where there are fewer."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        faults.need(self.neighbours >= 1, "eval.neighbours", self.neighbours, "of at least 1")
        temperature = self.neighbour_temperature
        faults.need(temperature > 0, "eval.neighbour_temperature", temperature, "above 0", "DINO's protocol uses 0.07.")
        faults.need(self.labels_per_class >= 1, "eval.labels_per_class", self.labels_per_class, "of at least 1")
        faults.need(self.lowshot_splits >= 1, "eval.lowshot_splits", self.lowshot_splits, "of at least 1")
        faults.need(self.lowshot_penalty > 0, "eval.lowshot_penalty", self.lowshot_penalty, "above 0")
        epochs, batch = self.finetune_epochs, self.finetune_batch_size
        faults.need(0 < epochs < float("inf"), "eval.finetune_epochs", epochs, "above 0")
        faults.need(self.finetune_lr > 0, "eval.finetune_lr", self.finetune_lr, "above 0")
        faults.need(batch >= 2, "eval.finetune_batch_size", batch, "of at least 2")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain values that YAML and JSON can hold."""

    def plain(value: Any) -> Any:
        match value:
            case dict():
                return {key: plain(item) for key, item in value.items()}
            case list() | tuple():
                return [plain(item) for item in value]
            case Path():
                return str(value)
        return value

    return plain(dataclasses.asdict(config))


def from_dict(kind: type[C], values: dict[str, Any]) -> C:
    """The config that :func:`to_dict` wrote, checked field by field.

    Raises: ``ConfigError`` naming a field that is unknown, missing or of the wrong type.
    """
    try:
        config = dacite.from_dict(kind, values, dacite.Config(cast=[tuple, Path], strict=True))
    except (dacite.DaciteError, TypeError, ValueError, RecursionError) as error:  # what its casts raise, it lets pass
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(f"This config does not fit {kind.__name__}: {reason}.") from None
    refuse_unordered(config)
    return config


def refuse_unordered(config: Any) -> None:
    """Raises ``ConfigError`` naming a field that is not a number (nan), which no comparison finds and no run resumes."""
    faults = Faults()

    def look(value: Any, name: str) -> None:
        match value:
            case float() if value != value:
                faults.add(f"{name} = nan is not a number. Give one, or leave it out.")
            case dict():
                for key, item in value.items():
                    look(item, f"{name}.{key}" if name else str(key))
            case list() | tuple():
                for item in value:
                    look(item, name)

    look(dataclasses.asdict(config), "")
    faults.raise_any()


def override(config: C, changes: dict[str, Any]) -> C:
    """``config`` with dotted fields replaced: ``override(config, {"loss.temperature": 0.2})``.

    Raises: ``ConfigError`` naming a field that does not exist, with the nearest one that does.
    """
    values = to_dict(config)
    for dotted, value in changes.items():
        *groups, field = dotted.split(".")
        place = values
        for group in groups:
            place = place.get(group, {})
        if field not in place:
            known = [f"{group}.{name}" for group, part in values.items() if isinstance(part, dict) for name in part]
            raise ConfigError(f"There is no field {dotted}. {nearest(dotted, known)}")
        place[field] = value
    return from_dict(type(config), values)


def to_yaml(recipe: str, config: Any) -> str:
    """The text of a run folder's ``config.yaml``: the recipe's name, then its groups."""
    return yaml.safe_dump({"recipe": recipe, **to_dict(config)}, sort_keys=False, allow_unicode=True)


def dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups as one level.

    >>> dotted({"optim": {"lr": 1}})
    {'optim.lr': 1}
    """
    flat = {}
    for key, value in values.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
