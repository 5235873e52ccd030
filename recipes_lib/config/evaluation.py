# SPDX-License-Identifier: Apache-2.0
"""The config group ``eval``: probes on frozen features, and what they are compared with."""

from dataclasses import dataclass
from typing import Literal, get_args

from recipes_lib.errors import Faults

ClassProbe = Literal["knn", "linear", "lowshot", "snn", "factors", "finetune"]
"""A way to ask features of labelled images what they tell. factors needs images whose true factors are known (``pantry``,
``digits``); finetune trains on, the others read."""

CLASS_PROBES: tuple[str, ...] = get_args(ClassProbe)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Probes on frozen features, and what they are compared with."""

    probes: tuple[ClassProbe, ...] = ("knn", "linear", "lowshot")
    """factors needs images whose true factors are known (``pantry``, ``digits``); finetune trains on, the others read."""
    baselines: Literal["all", "none"] = "none"
    """all: score random-init features, raw pixels and a supervised network of the same budget too."""
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
