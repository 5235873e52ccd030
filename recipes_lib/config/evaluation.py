# SPDX-License-Identifier: Apache-2.0
"""The config group ``eval``: the probes that score a trained network, and the baselines it is compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from recipes_lib.errors import Faults

ClassProbe = Literal["knn", "linear", "linear_sweep", "mlp", "lowshot", "snn", "factors", "corruptions", "finetune"]
"""A probe that scores a network with labelled images. ``factors`` needs images whose true factors are known
(``pantry``, ``digits``); ``corruptions`` scores on corrupted test images; ``finetune`` trains the network further, while
all others use frozen features."""

LabelFreeProbe = Literal["rankme", "alpha_req", "lidar", "uniformity", "alignment", "std", "rotation"]
"""A probe that needs no labels: a property of the features of training images, and no accuracy of their classes."""

Corruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
"""A common corruption of ImageNet-C, in the order of its paper: noise, blur, weather, digital."""

CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
SEVERITIES = (1, 2, 3, 4, 5)
CLASS_PROBES: tuple[str, ...] = get_args(ClassProbe)
LABEL_FREE_PROBES: tuple[str, ...] = get_args(LabelFreeProbe)
PROBES: tuple[str, ...] = (*CLASS_PROBES, *LABEL_FREE_PROBES)
"""The probes that every recipe has which trains a backbone."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The probes that score the trained network, and the baselines it is compared with."""

    probes: tuple[ClassProbe | LabelFreeProbe, ...] = ("knn", "linear", "lowshot")
    """The probes to score with. ``linear_sweep`` and ``mlp`` choose their learning rate on held-out training images.
    ``factors`` needs images whose true factors are known (``pantry``, ``digits``).
    ``corruptions`` passes the test images 75 times through the network, under 15 corruptions at 5 severities.
    ``finetune`` trains the network further; all others use frozen features.
    ``rankme``, ``alpha_req``, ``lidar``, ``uniformity``, ``alignment``, ``std`` and ``rotation`` need no labels."""
    baselines: Literal["all", "none"] = "none"
    """all: also score an untrained network, raw pixels, and a supervised network trained for as many steps."""
    cooked: bool = False
    """With ``baselines`` all: also score the network that ``recipes cook`` stored for this recipe."""
    watch: tuple[Literal["rankme", "alpha_req", "uniformity", "std", "knn"], ...] = ()
    """What is measured on training images while the run trains, and written into ``metrics.jsonl`` as ``watch_NAME``.
    At the default interval it took 2 % of the time of SimCLR's toy and 3 % of MAE's. Not with ``fsdp`` on several
    processes."""
    watch_every: int = 100
    """Number of steps between two such measurements, at least 1; the first and the last step are always measured."""
    neighbours: int = 20
    """Number of neighbours of the weighted k-NN classifier, at least 1."""
    neighbour_temperature: float = 0.07
    """Temperature of the neighbours' votes, above 0."""
    labels_per_class: int = 5
    """Number of labelled images per class that the low-shot probe uses, at least 1."""
    lowshot_splits: int = 3
    """Number of random choices of the labelled images, at least 1; the score is the mean over them."""
    lowshot_penalty: float = 0.0025
    """L2 penalty of the low-shot logistic regression, above 0, in the unit of the MSN paper's code, which uses 0.075
    for 1 % of the labels."""
    corruptions: tuple[Corruption, ...] = CORRUPTIONS
    """The corruptions of the probe of that name, those of ImageNet-C."""
    corruption_severities: tuple[int, ...] = SEVERITIES
    """Severities of each corruption, from 1 to 5."""
    corruption_images: int = 1000
    """Number of test images that are corrupted, at least 1, drawn without regard to their order; all if there are fewer.
    The published scores of ImageNet-C and CIFAR-10-C are means over all, 50,000 and 10,000."""
    corruption_root: Path | None = None
    """Folder of published corrupted test images: of ``imagenet`` in the layout of ImageNet-C, ``fog/3/CLASS/*.JPEG``;
    of ``cifar10`` in that of CIFAR-10-C, ``fog.npy`` and ``labels.npy``.
    None: the test images are corrupted when they are scored."""
    finetune_objective: Literal["cross_entropy", "suncet"] = "cross_entropy"
    """cross_entropy: trains a linear classifier on top of the network;
    suncet: trains embeddings to lie close to others of their class, and classifies by nearest neighbours."""
    finetune_epochs: float = 50.0
    """Number of fine-tuning passes over the labelled images; may be fractional."""
    finetune_lr: float = 0.02
    """Learning rate of the first fine-tuning step. A cosine lowers it to 0, or to a tenth with suncet."""
    finetune_batch_size: int = 1024
    """Images per fine-tuning step, summed over processes, at least 2; all labelled images if there are fewer."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(self.watch_every >= 1, "eval.watch_every", self.watch_every, "of at least 1")
        faults.need(self.neighbours >= 1, "eval.neighbours", self.neighbours, "of at least 1")
        temperature = self.neighbour_temperature
        faults.need(temperature > 0, "eval.neighbour_temperature", temperature, "above 0", "DINO's protocol uses 0.07.")
        faults.need(self.labels_per_class >= 1, "eval.labels_per_class", self.labels_per_class, "of at least 1")
        faults.need(self.lowshot_splits >= 1, "eval.lowshot_splits", self.lowshot_splits, "of at least 1")
        faults.need(self.lowshot_penalty > 0, "eval.lowshot_penalty", self.lowshot_penalty, "above 0")
        names, severities = self.corruptions, self.corruption_severities
        faults.need(bool(names), "eval.corruptions", names, "with at least one name", "Leave it out for all 15.")
        fits = bool(severities) and set(severities) <= set(SEVERITIES)
        faults.need(fits, "eval.corruption_severities", severities, "of 1 to 5", "Leave it out for all five.")
        faults.need(self.corruption_images >= 1, "eval.corruption_images", self.corruption_images, "of at least 1")
        epochs, batch = self.finetune_epochs, self.finetune_batch_size
        faults.need(0 < epochs < float("inf"), "eval.finetune_epochs", epochs, "above 0")
        faults.need(self.finetune_lr > 0, "eval.finetune_lr", self.finetune_lr, "above 0")
        faults.need(batch >= 2, "eval.finetune_batch_size", batch, "of at least 2")
