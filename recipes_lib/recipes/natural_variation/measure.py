# SPDX-License-Identifier: Apache-2.0
"""Measures models on controlled images: features of training images, lessons, then the answers for all images.

The work is cut into units, each a run of images of one view. A unit's images are made once and shown to all models, and
its result is stored in a file of its own. Ranks share the units, and a run that was stopped goes on after the last stored
one. Images are never stored, so that their number is bounded by time alone; only fine-tuning keeps its training images in
memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from recipes_lib import durable
from recipes_lib.distributed import collectives
from recipes_lib.distributed.world import World
from recipes_lib.errors import Interrupted
from recipes_lib.factors.gaps import CANONICAL, Varied, title
from recipes_lib.recipes.natural_variation import learners
from recipes_lib.recipes.natural_variation.catalogue import Network, ZeroShot
from recipes_lib.recipes.natural_variation.learners import Head
from recipes_lib.recipes.natural_variation.lessons import Lesson, rows
from recipes_lib.recipes.natural_variation.sources import Part, Shots, Source
from recipes_lib.training import checkpoint, stages
from recipes_lib.training.folder import RunFolder

Regime = Literal["probe", "finetune"]
CHUNK = 256
"""Number of images of a unit."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is measured."""

    source: Source
    models: Sequence[Network | ZeroShot]
    lessons: Sequence[Lesson]
    views: Sequence[Varied]
    """Sets of factors that vary in the test images, the canonical view first."""
    regime: Regime
    penalty: float
    """L2 penalty of the probe."""
    steps: int
    """Steps of fine-tuning; with its batch size and learning rate."""
    batch_size: int
    lr: float
    seed: int


@dataclass(frozen=True)
class Unit:
    """A run of shots of one view."""

    part: Part
    varied: Varied
    first: int
    last: int

    @property
    def name(self) -> str:
        """Name of the unit's file."""
        return f"{self.part}-{title(self.varied)}-{self.first:08d}"


@dataclass(frozen=True)
class Learned:
    """What each model learned from each lesson."""

    heads: Mapping[str, list[Head]]
    """Model -> one head per lesson; empty for fine-tuning."""
    tuned: Mapping[str, list[nn.Module]]
    """Model -> one network per lesson; empty for probes."""
    similarity: Mapping[str, Tensor]
    """Model -> float32 [C, C]: cosine of the classes' mean features of canonical training images, less their mean."""


def units(source: Source, wanted: Sequence[tuple[Part, Varied]]) -> list[Unit]:
    """All units of the wanted views."""
    found = []
    for part, varied in wanted:
        count = len(source.shots(part, varied))
        found += [Unit(part, varied, first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    return found


def trained_on(study: Study) -> list[Varied]:
    """The views of training images that the lessons show: the canonical one, and each factor that varies in a lesson."""
    return list(dict.fromkeys([CANONICAL, *(lesson.varied for lesson in study.lessons)]))


def asked(study: Study, lesson: Lesson, part: Part, varied: Varied) -> bool:
    """Whether a lesson is scored on a view: the canonical one on all, others on the canonical view and on their factor.

    Training images are scored only for shares, on instances that were not seen varying.
    """
    if part == "train":
        return bool(varied) and (lesson.kind == "canonical" or (lesson.kind, lesson.varied) == ("share", varied))
    return lesson.kind == "canonical" or varied in (CANONICAL, lesson.varied)


def measure(study: Study, run: RunFolder, place: World, stop: Callable[[], bool]) -> Learned:
    """Writes the answers for all units into the run's folder ``answers``. All ranks call it.

    Raises: ``Interrupted`` if ``stop`` returns True; what is complete is kept.
    """
    views: list[tuple[Part, Varied]] = [("train", varied) for varied in trained_on(study)]
    if study.regime == "probe":
        todo = units(study.source, views)
        _each("features", todo, run, place, stop, lambda unit: _features(study, unit))
    learned = _learn(study, run, place, stop)
    views = [view for view in views if view[1]] + [("test", varied) for varied in study.views]
    _each("answers", units(study.source, views), run, place, stop, lambda unit: _answers(study, learned, unit))
    return learned


def read(study: Study, run: Path, model: str, lesson: Lesson, part: Part, varied: Varied) -> np.ndarray:
    """The answers of a model after a lesson for all shots of a view: int16 [N]."""
    place = [one.name for one in study.models].index(model)
    key = f"{place}-{lesson.name}"
    found = []
    for unit in units(study.source, [(part, varied)]):
        with np.load(run / "answers" / f"{unit.name}.npz", allow_pickle=False) as stored:
            found.append(stored[key])
    return np.concatenate(found)


def _each(
    kind: str,
    todo: Sequence[Unit],
    run: RunFolder,
    place: World,
    stop: Callable[[], bool],
    make: Callable[[Unit], Mapping[str, np.ndarray]],
) -> None:
    """Makes and stores those units of this rank that are not stored yet, then waits for the other ranks."""
    folder = run.path / kind
    mine = [unit for unit in todo[place.rank :: place.size] if not (folder / f"{unit.name}.npz").is_file()]
    with stages.Stage(run, kind, len(mine), "units") as stage:
        for done, unit in enumerate(mine, start=1):
            arrays = make(unit)
            stages.keep(run)
            folder.mkdir(exist_ok=True)
            with durable.whole(folder / f"{unit.name}.npz") as partial, partial.open("wb") as file:
                np.savez(file, **arrays)
            stage.show(done)
            stage.note({"stage": kind, "step": done, "unit": unit.name, "seconds": round(stage.seconds, 3)})
            if stop():
                raise Interrupted(f"The study was stopped after {done} of {len(mine)} units of {kind}.")
    run.await_others()


def _shots(study: Study, unit: Unit) -> Shots:
    return study.source.shots(unit.part, unit.varied).select(slice(unit.first, unit.last))


def _features(study: Study, unit: Unit) -> dict[str, np.ndarray]:
    images = study.source.images(_shots(study, unit))
    return {
        str(place): model.features(images).numpy()
        for place, model in enumerate(study.models)
        if isinstance(model, Network)
    }


def _answers(study: Study, learned: Learned, unit: Unit) -> dict[str, np.ndarray]:
    images = study.source.images(_shots(study, unit))
    found = {}
    for place, model in enumerate(study.models):
        for lesson, answers in _of_model(study, learned, model, unit, images):
            found[f"{place}-{lesson.name}"] = answers.to(torch.int16).numpy()
    return found


@torch.no_grad()
def _of_model(
    study: Study, learned: Learned, model: Network | ZeroShot, unit: Unit, images: Tensor
) -> Iterator[tuple[Lesson, Tensor]]:
    """The answers of a model for a unit's images, after each lesson that is asked there."""
    if isinstance(model, ZeroShot):
        yield study.lessons[0], model.answers(images)
        return
    features = model.features(images) if study.regime == "probe" else None
    for place, lesson in enumerate(study.lessons):
        if not asked(study, lesson, unit.part, unit.varied):
            continue
        if features is not None:
            yield lesson, learned.heads[model.name][place].answers(features)
        else:
            network = learned.tuned[model.name][place]
            prepared = model.prepare(images.to(next(network.parameters()).device))
            yield lesson, network(prepared).argmax(dim=1).cpu()


def _learn(study: Study, run: RunFolder, place: World, stop: Callable[[], bool]) -> Learned:
    if study.regime == "probe":
        return _probes(study, run)
    shots = {varied: study.source.shots("train", varied) for varied in trained_on(study)}
    _finetune(study, shots, run, place, stop)
    return _tuned(study, shots, run)


def _lesson_rows(lesson: Lesson, shots: Mapping[Varied, Shots]) -> Tensor:
    """The lesson's rows in the canonical training images followed by those in which its factor varies."""
    canonical = shots[CANONICAL].instances
    return rows(lesson, canonical, shots[lesson.varied].instances, instances_of(shots[CANONICAL])[0])


def instances_of(shots: Shots) -> tuple[Tensor, Tensor]:
    """The instances of shots, each once in ascending order, and their classes: int64 [I], int64 [I]."""
    instances, place = shots.instances.unique(return_inverse=True)
    classes = torch.zeros_like(instances)
    classes[place] = shots.labels
    return instances, classes


def _probes(study: Study, run: RunFolder) -> Learned:
    """Fits the probes on the main rank, and stores them."""
    path = run.path / "heads.safetensors"
    names = [(place, model) for place, model in enumerate(study.models) if isinstance(model, Network)]

    def fit() -> None:
        if path.is_file():
            return
        tensors: dict[str, Tensor] = {}
        with stages.Stage(run, "probes", len(names) * len(study.lessons), "lessons") as stage:
            for done, (place, _) in enumerate(names):
                for name, tensor in _fitted(study, run.path, place, done, stage).items():
                    tensors[f"{place}-{name}"] = tensor
        checkpoint.write_weights(path, tensors)

    collectives.from_main(fit)
    stored = checkpoint.read_weights(path)
    heads = {
        model.name: [
            Head(stored[f"{place}-{lesson.name}-weight"], stored[f"{place}-{lesson.name}-bias"])
            for lesson in study.lessons
        ]
        for place, model in names
    }
    return Learned(heads, {}, {model.name: stored[f"{place}-similarity"] for place, model in names})


def _fitted(study: Study, run: Path, place: int, done: int, stage: stages.Stage) -> dict[str, Tensor]:
    """The tensors of one model's probes."""
    shots = {varied: study.source.shots("train", varied) for varied in trained_on(study)}
    features = {varied: _stored_features(study, run, place, varied) for varied in shots}
    found = {"similarity": similarity(features[CANONICAL], shots[CANONICAL].labels)}
    for number, lesson in enumerate(study.lessons, start=1):
        chosen = _lesson_rows(lesson, shots)
        table = torch.cat([features[CANONICAL], features[lesson.varied]])[chosen]
        labels = torch.cat([shots[CANONICAL].labels, shots[lesson.varied].labels])[chosen]
        head = learners.probe(table, labels, penalty=study.penalty)
        found |= {f"{lesson.name}-weight": head.weight.contiguous(), f"{lesson.name}-bias": head.bias.contiguous()}
        stage.show(done * len(study.lessons) + number)
    return found


def _stored_features(study: Study, run: Path, place: int, varied: Varied) -> Tensor:
    parts = []
    for unit in units(study.source, [("train", varied)]):
        with np.load(run / "features" / f"{unit.name}.npz", allow_pickle=False) as stored:
            parts.append(torch.from_numpy(stored[str(place)]))
    return torch.cat(parts)


def similarity(features: Tensor, labels: Tensor) -> Tensor:
    """Cosine of the classes' mean features, less the mean over classes: [n, D], int64 [n] -> float32 [C, C]."""
    means = torch.stack([features[labels == label].mean(dim=0) for label in labels.unique()])
    means = torch.nn.functional.normalize(means - means.mean(dim=0), dim=1)
    return means @ means.T


def _weights(run: Path, place: int, lesson: Lesson) -> Path:
    return run / "networks" / f"{place}-{lesson.name}.safetensors"


def _finetune(
    study: Study, shots: Mapping[Varied, Shots], run: RunFolder, place: World, stop: Callable[[], bool]
) -> None:
    """Trains and stores this rank's share of the networks, one per model and lesson."""
    todo = [
        (number, model, lesson)
        for number, model in enumerate(study.models)
        if isinstance(model, Network)
        for lesson in study.lessons
    ][place.rank :: place.size]
    todo = [
        (number, model, lesson) for number, model, lesson in todo if not _weights(run.path, number, lesson).is_file()
    ]
    images: dict[Varied, Tensor] = {}
    with stages.Stage(run, "networks", len(todo), "networks") as stage:
        for done, (number, model, lesson) in enumerate(todo, start=1):
            for varied in (CANONICAL, lesson.varied):
                if varied not in images:
                    images[varied] = torch.cat(
                        [
                            study.source.images(shots[varied].select(part))
                            for part in torch.arange(len(shots[varied])).split(CHUNK)
                        ]
                    )
            network = learners.finetune(
                model,
                torch.cat([images[CANONICAL], images[lesson.varied]]),
                torch.cat([shots[CANONICAL].labels, shots[lesson.varied].labels]),
                _lesson_rows(lesson, shots),
                classes=len(study.source.class_names),
                steps=study.steps,
                batch_size=study.batch_size,
                lr=study.lr,
                seed=study.seed,
            )
            stages.keep(run)
            _weights(run.path, number, lesson).parent.mkdir(exist_ok=True)
            checkpoint.write_weights(_weights(run.path, number, lesson), network.state_dict())
            stage.show(done)
            stage.note(
                {
                    "stage": "networks",
                    "step": done,
                    "network": f"{model.name} {lesson.name}",
                    "seconds": round(stage.seconds, 3),
                }
            )
            if stop():
                raise Interrupted(f"The study was stopped after {done} of {len(todo)} networks.")
    run.await_others()


def _tuned(study: Study, shots: Mapping[Varied, Shots], run: RunFolder) -> Learned:
    """Loads all networks, and compares classes by the features of the canonical lesson's network."""
    tuned, alike = {}, {}
    canonical = shots[CANONICAL]
    for number, model in enumerate(study.models):
        if not isinstance(model, Network):
            continue
        tuned[model.name] = [_loaded(study, model, _weights(run.path, number, lesson)) for lesson in study.lessons]
        own = Network(model.name, tuned[model.name][0][0], model.prepare)
        parts = torch.arange(len(canonical)).split(CHUNK)
        features = torch.cat([own.features(study.source.images(canonical.select(part))) for part in parts])
        alike[model.name] = similarity(features, canonical.labels)
    return Learned({}, tuned, alike)


def _loaded(study: Study, model: Network, path: Path) -> nn.Module:
    weights = checkpoint.read_weights(path)
    classes = len(study.source.class_names)
    device = next(model.body.parameters()).device
    network = learners.untrained_classifier(model, width=weights["1.weight"].shape[1], classes=classes)
    network.load_state_dict(weights)
    return network.to(device)
