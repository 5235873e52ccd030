# SPDX-License-Identifier: Apache-2.0
"""ImageNet-X: explains a model's errors by what is unusual about the images on which it errs.

Youbi Idrissi, Bouchacourt, Balestriero, Evtimov, Hazirbas, Ballas, Vincent, Drozdzal, Lopez-Paz, Ibrahim, "ImageNet-X:
Understanding Model Mistakes with Factor of Variation Annotations", ICLR 2023, arXiv 2211.01866. Chapter:
``notebooks/imagenet_x.py``.

1. People compared each validation image of ImageNet with three typical images of its class, and marked which of sixteen
   factors make it different: pose, background, texture, ...
2. A model's error ratio for a factor is its error rate on images with the factor, divided by its error rate on all
   images.
3. The ratios of one model rank its weaknesses; the ratios of many models show which weaknesses they share.
4. Rare factors have few images, so every ratio has an interval, and every claim an adjusted p-value.

Stage ``score`` makes the predictions of a model; stage ``report`` analyses those of any number of models. Preset
``toy`` needs no files: it trains small models on Pantry-X, where factors are set and not annotated.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from recipes_lib import terminal
from recipes_lib.config import MOST_WORKERS
from recipes_lib.distributed import collectives
from recipes_lib.errors import ConfigError, Faults, printable
from recipes_lib.factors import imagenet_x_files, predictions
from recipes_lib.factors.report import FactorReport, factor_report
from recipes_lib.factors.report_json import as_json
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.engine import Result
from recipes_lib.pretraining.recipe import Job
from recipes_lib.recipes.imagenet_x import drawn, pantry_run, report, score
from recipes_lib.recipes.imagenet_x.pantry_run import NetsConfig
from recipes_lib.recipes.imagenet_x.score import ScoreConfig
from recipes_lib.training import folder, stages


@dataclass(frozen=True, kw_only=True)
class FactorData:
    """Where images, annotations and predictions come from."""

    name: Literal["files", "pantry", "drawn"] = "files"
    """files: from the files that ``predictions`` and ``annotations`` name;
    pantry: small models are trained and tested on Pantry-X;
    drawn: annotations and predictions are drawn at random, with known effects of the factors."""
    root: Path | None = None
    """Stage ``score`` only. Folder of ImageNet, of which val/CLASS/*.JPEG are scored."""
    images: int = 4000
    """``pantry`` and ``drawn`` only. Number of images that the report is about, at least 10."""
    workers: int = 0
    """Stage ``score`` only. Number of processes per rank that load images, at most 256; 0: no extra process."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Intervals of the error ratios, and the images that count."""

    interval: Literal["bootstrap", "wilson"] = "bootstrap"
    """Kind of interval for the error ratios in ``report.json``; ``factors.csv`` always has Wilson intervals too."""
    level: float = 0.95
    """Confidence level of the intervals, in (0, 1)."""
    resamples: int = 1000
    """Number of bootstrap resamples, at least 100."""
    scope: Literal["toolkit", "decided"] = "toolkit"
    """Which images count.
    toolkit: all, as in the official toolkit; images without ReaL labels count as errors, and all classes outside the
    sixteen metaclasses are one metaclass. decided: such images do not count."""
    seed: int = 0
    """Seed of the bootstrap, of the permutation tests, and of what ``pantry`` and ``drawn`` make."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(0 < self.level < 1, "report.level", self.level, "in (0, 1)", "0.95 is usual.")
        faults.need(self.resamples >= 100, "report.resamples", self.resamples, "of at least 100")
        faults.need(0 <= self.seed < 2**63, "report.seed", self.seed, "of at least 0 and below 2**63", most=2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """ImageNet-X's config: the stage, its files, and the groups of options."""

    stage: Literal["report", "score"] = "report"
    """report: analyses predictions; score: makes the predictions of a model."""
    predictions: tuple[Path, ...] = ()
    """CSV files (columns file_name, predicted_class, predicted_probability) or .npz files, of any number of models."""
    annotations: Path | None = None
    """Folder of the official package's annotations, or the compact file ``imagenet_x_val.npz``."""
    groups: Path | None = None
    """CSV file with a column model, and columns by which models are compared, such as architecture or procedure."""
    model: str | None = None
    """Stage ``score`` only. timm:NAME, torchvision:NAME, or a run folder of a recipe that trains a backbone."""
    data: FactorData = field(default_factory=FactorData)
    nets: NetsConfig = field(default_factory=NetsConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults, made, scores = Faults(), self.data.name != "files", self.stage == "score"
        self.report.check(faults)
        self.nets.check(faults)
        self.score.check(faults)
        faults.need(self.data.images >= 10, "data.images", self.data.images, "of at least 10")
        workers = self.data.workers
        faults.need(0 <= workers <= MOST_WORKERS, "data.workers", workers, f"of 0 to {MOST_WORKERS}")
        if scores and made:
            faults.add(f"data.name = {self.data.name} has no images to score: leave it out, or choose stage = report.")
        obtain = "--annotations FOLDER (pip install --no-deps imagenet-x==0.0.7 has it: imagenet_x/annotations)"
        for name, value, wanted, fix in (
            ("predictions", self.predictions, not scores and not made, "--predictions A.csv B.npz"),
            ("annotations", self.annotations, not scores and not made, obtain),
            ("model", self.model, scores, "--model timm:NAME"),
            ("data.root", self.data.root, scores, "--data.root IMAGENET"),
        ):
            if wanted and not value:
                faults.add(f"{name} is missing: stage {self.stage} needs it. Add {fix}.")
            elif value and not wanted:
                said = ", ".join(map(str, value)) if isinstance(value, tuple) else value
                what = f"data.name = {self.data.name}" if made else f"stage = {self.stage}"
                faults.add(f"{name} = {said} has no use with {what}: leave it out.")
        if self.groups and (scores or made):
            faults.add(f"groups = {self.groups} has no use here: it compares the models of a report on files.")
        if self.model and scores:
            score.check_name(self.model, self.score.weights, faults)
        faults.raise_any()


def run(config: Config, out: Path | None = None) -> Result:
    """Makes predictions, or reports on them; ``out`` is the run folder (default ``runs/imagenet_x-DATE``).

    A report consists of ``report.json``, CSV tables, ``plots/`` and ``index.html``. Scoring writes one CSV file, which
    a report reads; if it is stopped or killed, it continues after the last finished batch. Under torchrun the batches
    are divided among the ranks.

    Raises: ``ConfigError``, ``DataError``, ``RunError`` or ``Interrupted``, with text of whole lines.
    """
    config.validate()
    place = stages.start(config.score.device, config.score.threads)
    if config.data.name == "pantry" and place.size > 1:
        raise ConfigError(f"data.name = pantry trains in one process, not in {place.size}: start it without torchrun.")
    out = collectives.broadcast_object(out or folder.default_path("imagenet_x"))
    with folder.RunFolder.create_or_continue(out, "imagenet_x", config) as run:
        began = time.perf_counter()
        scored = score.score(config, run, place) if config.stage == "score" else None

        def conclude() -> None:
            report = _report(config, run) if scored is None else scored
            seconds = round(time.perf_counter() - began, 1)
            facts = {"recipe": "imagenet_x", "scores": {}, "seconds": seconds, "steps": 0, "seed": config.report.seed}
            run.write_report({**facts, **report, **engine.provenance()})

        collectives.from_main(conclude)
        report = run.read_report()
        run.set_state("done", report["steps"])
        return Result(run.path, report)


def analyse(config: Config, run: folder.RunFolder) -> FactorReport:
    """The factor report of a config's files, or of data that it makes; trained models go to the folder of ``run``."""
    options = config.report
    how = {"scope": options.scope, "interval": options.interval, "level": options.level}
    how |= {"resamples": options.resamples, "seed": options.seed}
    match config.data.name:
        case "pantry":
            (val, train), given, groups = pantry_run.make(config, run)
        case "drawn":
            (val, train), given, groups = drawn.draw(config.data.images, options.seed)
        case _:
            val, train = imagenet_x_files.read(config.annotations)
            given = predictions.read(config.predictions, val)
            groups = report.read_groups(config.groups, given.models) if config.groups else None
    return factor_report(val, given, train=train, groups=groups, **how)


def fingerprint(config: Config) -> dict[str, Any]:
    """Error ratios with bounds and an accuracy after three training steps; they change if the numerics change."""
    nets = replace(config.nets, images=256, steps=3, clip_steps=min(3, config.nets.clip_steps))
    short = replace(config, data=replace(config.data, images=500), nets=nets)
    with TemporaryDirectory() as place:
        report = run(short, Path(place) / "run").report
    model = next(iter(report["models"]))
    cells = report["models"][model]["multi"]["class"].values()
    return {
        "error_ratios_and_bounds": [cell[key] for cell in cells for key in ("low", "error_ratio", "high")],
        "accuracy": report["average"][model]["class"],
    }


def _report(config: Config, run: folder.RunFolder) -> dict[str, Any]:
    found = analyse(config, run)
    plain = as_json(found)
    page = report.write(found, plain, run.path)
    for note in found.notes:
        run.warn(printable(note))
    terminal.aside().print(printable(f"page: {page}"), markup=False, highlight=False, soft_wrap=True)
    return plain


# Four classifiers on Pantry-X, trained with labels: without augmentation, and with each of three augmentations.
_TOY = Config(
    data=FactorData(name="pantry", images=1200),
    nets=NetsConfig(images=1200, steps=120),
    score=ScoreConfig(threads=1, device="cpu"),
)

PRESETS: dict[str, Config] = {
    "toy": _TOY,
    # More images and steps, and four CLIPs that learn with captions instead of labels.
    "simmer": replace(
        _TOY, data=replace(_TOY.data, images=6000), nets=NetsConfig(images=6000, steps=800, clip_steps=600)
    ),
    # The predictions of a model on ImageNet's validation set: --model timm:NAME --data.root IMAGENET
    "score": Config(stage="score"),
    # The paper's analysis: --predictions A.csv B.npz --annotations FOLDER
    "report": Config(),
}

RECIPE = Job(name="imagenet_x", config=Config, presets=PRESETS, run=run, fingerprint=fingerprint)
