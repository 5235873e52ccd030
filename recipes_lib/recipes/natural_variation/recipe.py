# SPDX-License-Identifier: Apache-2.0
"""Natural variation: what one physical factor of an image does to a classifier.

Ibrahim, Garrido, Morcos, Bouchacourt, "The Robustness Limits of SoTA Vision Models to Natural Variation", TMLR 2023, arXiv
2210.13604. Chapter: ``notebooks/natural_variation.py``.

1. Each instance has a canonical view, and views in which pose, position, background, lighting or size are varied alone or
   in pairs; all else is equal.
2. A model learns the classes from canonical images, and loses accuracy where a factor varies: the gap.
3. Then a growing share of the training instances is seen varying: how much is needed?
4. Then only some classes are seen varying: do the others profit, or their near twins?

Sources are the Pantry, 3-D objects (extra ``objects``), or a folder with a table of factors. The paper's renderer, classes
and settings could not be read; those of the presets are ours.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib import terminal
from recipes_lib.data import objects3d
from recipes_lib.distributed import collectives
from recipes_lib.distributed.world import World
from recipes_lib.errors import ConfigError, DataError, Faults, printable
from recipes_lib.factors.gaps import CANONICAL, Varied, title
from recipes_lib.models import sentence
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.engine import Result
from recipes_lib.pretraining.recipe import Job
from recipes_lib.recipes.natural_variation import catalogue, lessons, measure, report, scenes, table
from recipes_lib.recipes.natural_variation.measure import Regime, Study
from recipes_lib.recipes.natural_variation.sources import FACTORS, Drawn, Source, singles_and_pairs
from recipes_lib.recipes.natural_variation.summary import Summary
from recipes_lib.training import folder, loop, stages


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where images come from."""

    name: Literal["pantry", "pantry_twins", "objects", "folder"] = "pantry"
    """pantry: twelve kinds of kitchen objects; pantry_twins: six kinds, each wide and narrow;
    objects: 3-D objects in pairs of near twins (extra objects); folder: images with a table of factors."""
    root: Path | None = None
    """``folder`` only. The folder of the images."""
    table: Path | None = None
    """``folder`` only. CSV file with the columns file_name, class, instance, perhaps split, and one for each factor."""
    canonical: tuple[str, ...] = ()
    """``folder`` only. Canonical values, like camera_yaw=0, beside empty cells and the word canonical."""
    image_size: int = 32
    """Side of the images in pixels, 8 to 512."""
    pairs: int = 12
    """``objects`` only. Number of pairs of near twins, each of two classes: 1 to 30."""
    train_instances: int = 16
    """Number of training instances per class, at least 1; a folder has its own."""
    test_instances: int = 16
    """Number of test instances per class, at least 2; a folder has its own."""
    values: int = 4
    """Number of values drawn for each instance and set of factors, at least 1; a folder has its own."""
    seed: int = 0
    """Seed of instances and values."""


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """How models learn the classes."""

    regime: Regime = "finetune"
    """probe: logistic regression on frozen features; finetune: all weights are trained (``convnet``: from scratch)."""
    penalty: float = 1.0
    """L2 penalty of the probe, above 0."""
    steps: int = 300
    """Number of steps of fine-tuning, at least 1."""
    batch_size: int = 64
    """Images per step of fine-tuning, at least 2."""
    lr: float = 3e-3
    """Peak learning rate of fine-tuning (AdamW, cosine), above 0."""
    network_size: int = 32
    """Side to which images are scaled for ``convnet`` and ``lite0``, 32 to 512; other networks have their own."""
    threads: int | None = None
    """Number of CPU threads of torch, at least 1; None: torch's own choice."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if the machine has one, otherwise the CPU."""
    seed: int = 0
    """Seed of initial weights, batches, and of who varies."""


@dataclass(frozen=True, kw_only=True)
class DiversityConfig:
    """The share of training instances that are seen varying."""

    factors: tuple[str, ...] = ("pose",)
    """Factors for which shares are tried; none: the part is left out."""
    shares: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Shares of the instances of every class, in [0, 1]. 0 is measured anyway."""


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Classes that are seen varying, and classes that are not."""

    factors: tuple[str, ...] = ("pose",)
    """Factors for which transfer is tried; none: the part is left out."""
    classes: float = 0.5
    """Share of the classes that are seen varying, in (0, 1)."""
    draws: int = 5
    """Number of random choices of classes; 0 leaves the part out."""
    twins: bool = False
    """Whether to try, as often, one near twin of half of the families."""
    names: Literal["none", "ngrams", "minilm"] = "none"
    """Encoder of the classes' names, by whose similarity transfer is compared; ngrams knows spelling alone."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Intervals."""

    pairs: bool = False
    """Whether pairs of factors are varied too."""
    level: float = 0.95
    """Confidence level, in (0, 1)."""
    resamples: int = 1000
    """Number of bootstrap resamples, at least 100."""
    seed: int = 0
    """Seed of the resamples."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The study's config: models, and the groups of options."""

    models: tuple[str, ...] = ("convnet",)
    """Models: timm:NAME, torchvision:NAME, lite0, convnet, pixels, untrained:NAME, a run folder, cooked/NAME, or clip:RUN,
    which classifies by the classes' names."""
    data: SourceConfig = field(default_factory=SourceConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    diversity: DiversityConfig = field(default_factory=DiversityConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        _check_models(self.models, self.learn.regime, faults)
        _check_data(self.data, faults)
        _check_learning(self.learn, faults)
        _check_factors(self, faults)
        faults.need(0 < self.report.level < 1, "report.level", self.report.level, "in (0, 1)", "0.95 is usual.")
        faults.need(self.report.resamples >= 100, "report.resamples", self.report.resamples, "of at least 100")
        for name, seed in (("data", self.data.seed), ("learn", self.learn.seed), ("report", self.report.seed)):
            faults.need(0 <= seed < 2**31, f"{name}.seed", seed, "of at least 0 and below 2**31")
        faults.raise_any()


def _check_models(models: tuple[str, ...], regime: Regime, faults: Faults) -> None:
    if not models:
        faults.add("models is empty: name at least one, such as --models lite0.")
    if twice := [name for place, name in enumerate(models) if name in models[:place]]:
        faults.add(f"models has {twice[0]} twice: leave one.")
    for name in models:
        if line := catalogue.check(name):
            faults.add(line)
        elif name == catalogue.PIXELS and regime == "finetune":
            faults.add("models has pixels, which has nothing to fine-tune: use --learn.regime probe, or leave it out.")


def _check_data(data: SourceConfig, faults: Faults) -> None:
    own = data.name == "folder"
    for name, value in (("data.root", data.root), ("data.table", data.table)):
        if own and value is None:
            faults.add(f"{name} is missing: data.name folder needs it.")
        elif value is not None and not own:
            faults.add(f"{name} = {value} has no use with data.name = {data.name}: leave it out.")
    if data.canonical and not own:
        faults.add(f"data.canonical has no use with data.name = {data.name}: leave it out.")
    faults.need(8 <= data.image_size <= 512, "data.image_size", data.image_size, "of 8 to 512")
    most = len(scenes.TWINS)
    faults.need(1 <= data.pairs <= most, "data.pairs", data.pairs, f"of 1 to {most}")
    faults.need(data.train_instances >= 1, "data.train_instances", data.train_instances, "of at least 1")
    faults.need(data.test_instances >= 2, "data.test_instances", data.test_instances, "of at least 2")
    faults.need(1 <= data.values < 2**20, "data.values", data.values, "of 1 to 1,048,575")


def _check_learning(learn: LearnConfig, faults: Faults) -> None:
    faults.need(learn.penalty > 0, "learn.penalty", learn.penalty, "above 0")
    faults.need(learn.steps >= 1, "learn.steps", learn.steps, "of at least 1")
    faults.need(learn.batch_size >= 2, "learn.batch_size", learn.batch_size, "of at least 2")
    faults.need(learn.lr > 0, "learn.lr", learn.lr, "above 0")
    faults.need(32 <= learn.network_size <= 512, "learn.network_size", learn.network_size, "of 32 to 512")
    faults.need(learn.threads is None or learn.threads >= 1, "learn.threads", learn.threads, "of at least 1")


def _check_factors(config: Config, faults: Faults) -> None:
    for name, factors in (("diversity", config.diversity.factors), ("transfer", config.transfer.factors)):
        if config.data.name != "folder" and (odd := [factor for factor in factors if factor not in FACTORS]):
            faults.add(f"{name}.factors has {odd[0]}: there are {', '.join(FACTORS)}.")
        if len(set(factors)) < len(factors):
            faults.add(f"{name}.factors names a factor twice: leave one.")
    shares = config.diversity.shares
    if config.data.name != "folder" and config.diversity.factors:
        for share in shares:
            try:
                lessons.varying(share, config.data.train_instances)
            except ConfigError as error:
                faults.add(str(error))
    transfer = config.transfer
    faults.need(0 < transfer.classes < 1, "transfer.classes", transfer.classes, "in (0, 1)")
    faults.need(0 <= transfer.draws <= 1000, "transfer.draws", transfer.draws, "of 0 to 1,000")
    if transfer.twins and config.data.name in ("pantry", "folder"):
        faults.add(
            f"transfer.twins: the classes of data.name = {config.data.name} have no known near twins. Leave it off, or use "
            "pantry_twins or objects."
        )


def open_source(config: SourceConfig) -> Source:
    """The source of images that a config names.

    Raises: ``DataError`` for a folder or table that cannot be used, and for objects without the extra ``objects``.
    """
    if config.name == "folder":
        return table.read(
            config.root, config.table, canonical=config.canonical, side=config.image_size, seed=config.seed
        )
    if config.name == "objects":
        if (reason := objects3d.missing()) is not None:
            raise DataError(f"data.name = objects: {reason}")
        made: scenes.Pantry | scenes.Objects = scenes.Objects(config.seed, pairs=config.pairs)
    else:
        made = scenes.Pantry(config.seed, twins=config.name == "pantry_twins")
    return Drawn(
        made,
        train=config.train_instances,
        test=config.test_instances,
        values=config.values,
        side=config.image_size,
        seed=config.seed,
    )


def prepare(config: Config, place: World) -> tuple[Study, list[Varied]]:
    """The study that a config asks for, and the pairs of factors of which the source has no images.

    Raises: ``ConfigError``, ``DataError`` or ``RunError`` naming what does not fit.
    """
    source, learn = open_source(config.data), config.learn
    wanted = singles_and_pairs(source.factors, pairs=config.report.pairs)
    if lacking := [view for view in wanted if len(view) == 1 and not source.has(view)]:
        raise DataError(
            f"{config.data.table} has no image in which {title(lacking[0])} alone varies: remove that column."
        )
    _, classes = measure.instances_of(source.shots("train", CANONICAL))
    taught = lessons.plan(
        classes,
        source.families,
        shares=config.diversity.shares,
        share_factors=config.diversity.factors,
        class_factors=config.transfer.factors,
        class_share=config.transfer.classes,
        draws=config.transfer.draws,
        twins=config.transfer.twins,
        seed=learn.seed,
    )
    how = {"class_names": source.class_names, "side": learn.network_size, "device": place.device, "seed": learn.seed}
    study = Study(
        source=source,
        models=[catalogue.load(name, **how) for name in config.models],
        lessons=taught,
        views=[CANONICAL, *(view for view in wanted if source.has(view))],
        regime=learn.regime,
        penalty=learn.penalty,
        steps=learn.steps,
        batch_size=learn.batch_size,
        lr=learn.lr,
        seed=learn.seed,
    )
    return study, [view for view in wanted if not source.has(view)]


def run(config: Config, out: Path | None = None) -> Result:
    """Runs the study in the folder ``out`` (default ``runs/natural_variation-DATE``), and writes its report.

    Under torchrun the work is divided among the ranks. If it is stopped or killed, it goes on after the last complete
    part.

    Raises: ``ConfigError``, ``DataError``, ``RunError`` or ``Interrupted``, with text of whole lines.
    """
    config.validate()
    place = stages.start(config.learn.device, config.learn.threads)
    out = collectives.broadcast_object(out or folder.default_path("natural_variation"))
    with folder.RunFolder.create_or_continue(out, "natural_variation", config) as run:
        began = time.perf_counter()
        study, lacking = prepare(config, place)
        run.set_state("running", 0)
        with (
            loop.stop_on_signal() as stopped,
            stages.tell_how_to_go_on("The study was stopped; complete parts are kept.", f"recipes resume {run.path}"),
        ):
            learned = measure.measure(study, run, place, stopped.is_set)
        collectives.from_main(lambda: _conclude(config, study, lacking, learned, run, began))
        found = run.read_report()
        run.set_state("done", found["steps"])
        return Result(run.path, found)


def _conclude(
    config: Config, study: Study, lacking: list[Varied], learned: measure.Learned, run: folder.RunFolder, began: float
) -> None:
    options = config.report
    how = {"resamples": options.resamples, "level": options.level, "seed": options.seed}
    results = Summary(study, run.path, learned, names=_name_similarity(config, study.source), **how).results()
    if lacking:
        results["notes"].append(f"There are no images of {', '.join(map(title, lacking))}: these pairs are left out.")
    counts = {
        f"{part}_instances": len(study.source.shots(part, CANONICAL).instances.unique()) for part in ("train", "test")
    }
    results["source"] = {"name": config.data.name, "classes": len(study.source.class_names), **counts}
    page = report.write(results, study.source, run.path)
    for note in results["notes"]:
        run.warn(printable(note))
    scores = {name: {"method": row["canonical"]} for name, row in results["models"].items()}
    seconds = round(time.perf_counter() - began, 1)
    facts = {"recipe": "natural_variation", "scores": scores, "seconds": seconds, "steps": len(study.lessons)}
    run.write_report({**facts, "seed": config.learn.seed, **results, **engine.provenance()})
    terminal.aside().print(printable(f"page: {page}"), markup=False, highlight=False, soft_wrap=True)


def _name_similarity(config: Config, source: Source) -> Tensor | None:
    if config.transfer.names == "none":
        return None
    encoded = F.normalize(sentence.load_encoder(config.transfer.names).encode(list(source.class_names)), dim=1)
    return encoded @ encoded.T


def fingerprint(config: Config) -> dict[str, Any]:
    """Gaps and an accuracy of a small study; they change if the numerics change."""
    data = replace(config.data, train_instances=2, test_instances=2, values=1)
    learn = replace(config.learn, steps=3, threads=1, device="cpu")
    short = replace(config, data=data, learn=learn, diversity=DiversityConfig(factors=("pose",), shares=(1.0,)))
    short = replace(short, models=config.models[:1], transfer=replace(config.transfer, draws=0, twins=False))
    with TemporaryDirectory() as place, torch.random.fork_rng(devices=[]):
        found = run(short, Path(place) / "run").report
    row = next(iter(found["models"].values()))
    return {"gaps": [cell["gap"] for cell in row["gaps"].values()], "canonical": row["canonical"]}


# A small network, trained on canonical pictures of the Pantry, and again with growing shares of instances in varied poses.
_TOY = Config(
    data=SourceConfig(train_instances=8, test_instances=8, values=2),
    learn=LearnConfig(steps=120, threads=1, device="cpu"),
    diversity=DiversityConfig(shares=(0.5, 1.0)),
    transfer=TransferConfig(draws=0),
)

PRESETS: dict[str, Config] = {
    "toy": _TOY,
    # With pairs of factors, near twins, and five choices of the classes that vary.
    "simmer": replace(
        _TOY,
        data=SourceConfig(name="pantry_twins", train_instances=24, test_instances=24, values=4),
        learn=replace(_TOY.learn, steps=300),
        diversity=DiversityConfig(shares=(0.1, 0.25, 0.5, 0.75, 1.0)),
        transfer=TransferConfig(draws=5, twins=True),
        report=ReportConfig(pairs=True),
    ),
    # A network that was trained on ImageNet, frozen, on 24 classes of 3-D objects: an hour on a laptop at most.
    "laptop": Config(
        models=("lite0", "untrained:lite0", "pixels"),
        data=SourceConfig(name="objects", image_size=64, train_instances=16, test_instances=16),
        learn=LearnConfig(regime="probe", network_size=64),
        diversity=DiversityConfig(factors=FACTORS, shares=(0.1, 0.25, 0.5, 0.75, 1.0)),
        transfer=TransferConfig(factors=FACTORS, draws=10, twins=True),
        report=ReportConfig(pairs=True),
    ),
    # The paper's question at its size: 60 classes of 200 instances, of which half are for testing, with 60 values of each of 15
    # sets of factors; the others, for training, have 60 values of each factor: 7.2 million images.
    # The abstract names ViT, MAE and CLIP; which weights, classes and settings they had could not be read, so that the
    # models are timm's nearest and all numbers are ours. Weights come from the hub.
    "seven_million": Config(
        models=(
            "timm:vit_base_patch16_224.augreg_in1k",
            "timm:vit_base_patch16_224.mae",
            "timm:vit_base_patch16_clip_224.openai",
        ),
        data=SourceConfig(name="objects", image_size=224, pairs=30, train_instances=100, test_instances=100, values=60),
        learn=LearnConfig(regime="probe", network_size=224),
        diversity=DiversityConfig(factors=FACTORS, shares=(0.1, 0.25, 0.5, 0.75, 1.0)),
        transfer=TransferConfig(factors=FACTORS, draws=10, twins=True),
        report=ReportConfig(pairs=True),
    ),
}

RECIPE = Job(name="natural_variation", config=Config, presets=PRESETS, run=run, fingerprint=fingerprint)
