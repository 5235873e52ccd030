# SPDX-License-Identifier: Apache-2.0
"""Makes the predictions of a model for all validation images of ImageNet, in batches, so that a run can be resumed.

Networks of timm and torchvision are classifiers, and are used with the preprocessing they were trained with. A run
folder has a backbone without a classifier, so weighted k-NN classifies, with the training images of ``data.root``.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from recipes_lib import durable
from recipes_lib.data import torchvision_sets
from recipes_lib.data.images import ImageFiles
from recipes_lib.data.loader import each, outlive_signals
from recipes_lib.distributed import collectives
from recipes_lib.distributed.world import World
from recipes_lib.errors import ConfigError, DamagedImage, DataError, Faults, Interrupted, printable
from recipes_lib.factors import predictions
from recipes_lib.models.published import Unknown
from recipes_lib.recipes.imagenet_x import networks
from recipes_lib.training import loop, stages
from recipes_lib.training.folder import RunFolder

KNOWN = ("timm", "torchvision")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Batch size, weights, threads and device of scoring."""

    batch_size: int = 64
    """Number of images per batch and process, at least 1; each batch is stored when it is finished."""
    weights: Path | None = None
    """File of weights (safetensors) for a network of timm or torchvision. None: the library's published weights.
    Without internet access timm tries for most of a minute;
    with HF_HUB_OFFLINE=1 in the environment it fails at once."""
    threads: int | None = None
    """Number of CPU threads of torch, at least 1; None: torch's own choice."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if the machine has one, otherwise the CPU."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(self.batch_size >= 1, "score.batch_size", self.batch_size, "of at least 1")
        faults.need(self.threads is None or self.threads >= 1, "score.threads", self.threads, "of at least 1")


class Classifier(Protocol):
    """A function that predicts the classes of images."""

    def __call__(self, images: ImageFiles, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Classes, int64 [n], and their probabilities, float32 [n], for each batch of positions in ``images``."""
        ...


def check_name(model: str, weights: Path | None, faults: Faults) -> None:
    """Adds a fault to ``faults`` if ``model`` is neither a network of a known library nor a run folder."""
    library, colon, name = model.partition(":")
    if colon and (library not in KNOWN or not name):
        faults.add(f"model = {model} is not allowed: use timm:NAME, torchvision:NAME, or a run folder.")
    elif not colon and not (Path(model) / "config.yaml").is_file():
        faults.add(f"model = {model} is no run folder, and names no library: use timm:NAME or torchvision:NAME.")
    elif not colon and weights is not None:
        faults.add(f"score.weights = {weights} has no use with a run folder, which has its own: leave it out.")


def score(config: Any, run: RunFolder, place: World) -> dict[str, Any]:
    """Writes ``NAME.csv`` into the run folder, and returns facts for the report. All ranks call it."""
    images = torchvision_sets.image_folder(config.data.root, "val")  # no training set is needed
    _warn_of_doubles(images, run)
    batches = torch.arange(len(images)).split(config.score.batch_size)
    parts = run.path / "batches"
    todo = [number for number in range(place.rank, len(batches), place.size) if not _part(parts, number).is_file()]
    run.set_state("running", 0)
    with (
        loop.stop_on_signal() as stopped,
        stages.tell_how_to_go_on("Scoring was stopped; complete batches are kept.", f"recipes resume {run.path}"),
    ):
        classify = _classifier(config, run, place, images)
        _score_batches(classify, images, batches, todo, parts, run, stopped.is_set)
    run.await_others()
    return collectives.from_main(lambda: _joined(config, run, images, batches, parts))


class Network:
    """A network that classifies, with its preprocessing of an image."""

    def __init__(
        self, network: nn.Module, prepare: Callable[[Image], Tensor], device: torch.device, *, model: str, workers: int
    ) -> None:
        self.network, self.prepare, self.device = network.to(device).eval(), prepare, device
        self.model, self.workers = model, workers

    def __call__(self, images: ImageFiles, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Predicts as :class:`Classifier` says. Raises: ``DataError`` if the network has another number of classes."""
        loader = DataLoader(
            _Prepared(images, self.prepare),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.workers,
            collate_fn=_collate,
            worker_init_fn=outlive_signals,
        )
        with closing(each(loader)) as source:
            for batch in source:
                if isinstance(batch, DataError):
                    raise batch
                with torch.inference_mode():
                    logits = self.network(batch.to(self.device)).float()
                if logits.shape[1:] != (len(images.class_names),):
                    raise DataError(
                        f"model = {self.model} gives values of shape {list(logits.shape[1:])}, but {images.root} has "
                        f"{len(images.class_names)} class folders. Their numbers must be equal for class ids to fit."
                    )
                probability, answer = logits.softmax(dim=1).max(dim=1)
                yield answer.cpu(), probability.cpu()


class _Prepared(Dataset):
    """The preprocessed images; an item is a ``DataError`` if its file cannot be read."""

    def __init__(self, images: ImageFiles, prepare: Callable[[Image], Tensor]) -> None:
        self.images, self.prepare = images, prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            image = self.images.open(index)
        except DamagedImage as error:  # returned, since a worker's exception would come back inside a traceback
            reason = str(error).partition(". ")[0]
            return DamagedImage(f"{reason}. Mend it: a report needs every validation image.")
        return self.prepare(image)


def _collate(items: list[Tensor | DataError]) -> Tensor | DataError:
    return next((item for item in items if isinstance(item, DataError)), None) or torch.stack(items)


def _classifier(config: Any, run: RunFolder, place: World, images: ImageFiles) -> Classifier:
    library, colon, name = config.model.partition(":")
    if not colon:
        train, _ = torchvision_sets.imagenet(config.data.root)
        bank = run.path / "neighbours.safetensors"
        classify = networks.neighbours(Path(config.model), train, bank, config.data.workers)
        stages.keep(run)  # the folder now has the features of all training images
        return classify
    try:
        open_network = networks.of_timm if library == "timm" else networks.of_torchvision
        network, prepare = open_network(name, config.score.weights, len(images.class_names))
    except Unknown as error:
        raise ConfigError(f"model = {config.model}: {error}") from None
    return Network(network, prepare, place.device, model=config.model, workers=config.data.workers)


def _warn_of_doubles(images: ImageFiles, run: RunFolder) -> None:
    names = Counter(Path(name).name for name in images.names.tolist())
    if twice := [name for name, count in names.items() if count > 1]:
        line = f"{images.root} has {len(twice):,} file names more than once ({twice[0]}): a report will refuse them."
        run.warn(printable(line))


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.npz"


def _score_batches(
    classify: Classifier,
    images: ImageFiles,
    batches: Sequence[Tensor],
    todo: Sequence[int],
    parts: Path,
    run: RunFolder,
    stop: Callable[[], bool],
) -> None:
    """Scores the batches ``todo``; stores each, and writes a line for it into ``metrics.jsonl``.

    Raises: ``Interrupted`` if ``stop`` returns True.
    """
    with (
        stages.Stage(run, "scoring", len(todo), "batches") as stage,
        closing(classify(images, [batches[n] for n in todo])) as scored,
    ):
        for done, (number, (answers, probabilities)) in enumerate(zip(todo, scored, strict=True), start=1):
            stages.keep(run)
            parts.mkdir(exist_ok=True)  # not before there is a batch to store
            with durable.whole(_part(parts, number)) as partial, partial.open("wb") as file:
                np.savez(file, classes=answers.numpy().astype(np.int16), probabilities=probabilities.numpy())
            stage.show(done)
            stage.note({"step": number + 1, "images": len(answers), "seconds": round(stage.seconds, 3)})
            if stop():
                raise Interrupted(f"Scoring was stopped after {done} of {len(todo)} batches.")


def _joined(config: Any, run: RunFolder, images: ImageFiles, batches: Sequence[Tensor], parts: Path) -> dict[str, Any]:
    """Writes the CSV file from all stored batches. Raises: ``DataError`` if a batch belongs to other images."""
    columns: dict[str, list[np.ndarray]] = {"classes": [], "probabilities": []}
    for number, batch in enumerate(batches):
        with np.load(_part(parts, number), allow_pickle=False) as part:
            if len(part["classes"]) != len(batch):
                raise DataError(
                    f"{_part(parts, number)} is of other images than {images.root} has now. Remove {parts}."
                )
            for name, column in columns.items():
                column.append(part[name])
    classes, probabilities = map(np.concatenate, columns.values())
    model = "-".join(config.model.rstrip("/").replace(":", "/").split("/")[-2:]).lstrip(".-")
    path = run.path / f"{model}.csv"
    with durable.whole(path) as partial:
        predictions.write(partial, [Path(name).name for name in images.names.tolist()], classes, probabilities)
    right = float((classes == images.labels.numpy()).mean())
    facts = {"predictions": path.name, "model": config.model, "images": len(images), "classes": len(images.class_names)}
    return {"scores": {"top1": {"method": right}}, "steps": len(batches), **facts}
