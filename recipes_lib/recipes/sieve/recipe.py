# SPDX-License-Identifier: Apache-2.0
"""Sieve: keeps the image-text pairs whose text is similar to the captions that a captioner generates for the image.

Mahmoud, Elhoushi, Abbas, Yang, Ardalani, Leather, Morcos, "Sieve: Multimodal Dataset Pruning Using Image Captioning
Models", CVPR 2024, arXiv 2310.02110. Chapter: ``notebooks/sieve.py``.

1. CLIPScore, the usual score, ranks web pairs by the cosine of image and text. Its CLIP learned from web pairs too,
   with all their noise.
2. Sieve uses a captioner that learned from few, clean pairs. It generates r captions per image by random sampling.
3. A sentence encoder compares the pair's text with these captions; the cosine of the nearest caption is Sieve's score.
4. Phrases about the medium ("a photo of") are removed from text and captions, because they do not say what is shown.
5. Both scores, each rescaled to [0, 1] over the pool, can be averaged. The pairs with the highest scores are kept.

This recipe reads shards, writes scores and selects. It trains only the small models that replace BLIP and CLIP at toy
scale.
"""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from recipes_lib import durable
from recipes_lib.config import to_dict
from recipes_lib.data.pools import pool_selection, score_files, shards, uids
from recipes_lib.distributed import collectives, world
from recipes_lib.errors import DamagedImage, DataError, Faults
from recipes_lib.models.sentence import load_encoder
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.engine import Result
from recipes_lib.pretraining.recipe import Job
from recipes_lib.recipes.sieve import models, pair_scores, pool
from recipes_lib.recipes.sieve.models import CaptionerConfig, ClipConfig
from recipes_lib.recipes.sieve.phrases import PHRASES
from recipes_lib.recipes.sieve.pool import PoolData
from recipes_lib.training import folder, loop, stages


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The sentence encoder that compares texts with captions."""

    name: str = "minilm"
    """minilm: all-MiniLM-L6-v2, as in the paper; ngrams: counts of letter and word n-grams;
    any other name: that model of sentence-transformers."""
    phrases: Literal["sieve", "none"] = "sieve"
    """sieve: the paper's phrases about the medium are removed from texts and captions; none: nothing is removed."""
    boundary: Literal["word", "substring"] = "word"
    """Where phrases are removed. word: only as whole words;
    substring: anywhere, as in the official code, which turns "photographer" into "grapher"."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Batch size, seed, threads and device of scoring."""

    batch_size: int = 64
    """Number of pairs per batch and process, at least 1. It does not change the scores."""
    seed: int = 0
    """Seed of the captions, together with each pair's uid. It does not change the pool."""
    threads: int | None = None
    """Number of CPU threads of torch, at least 1; None: torch's own choice."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if the machine has one, otherwise the CPU."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(self.batch_size >= 1, "score.batch_size", self.batch_size, "of at least 1")
        faults.need(0 <= self.seed < 2**63, "score.seed", self.seed, "of at least 0 and below 2**63", most=2**63 - 1)
        faults.need(self.threads is None or self.threads >= 1, "score.threads", self.threads, "of at least 1")


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which pairs of the pool are kept."""

    fraction: float = 0.2
    """Share of the scored pairs to keep, in (0, 1]."""
    fuse: Literal["none", "clip", "only_clip"] = "none"
    """The score that decides. none: only Sieve's; only_clip: only CLIPScore, which Sieve is compared with;
    clip: the mean of both, each rescaled to [0, 1] over the pool."""
    scores: Path | None = None
    """Folder of score files of an earlier run, to select from without scoring. None: this run scores."""

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each score in the decision."""
        match self.fuse:
            case "none":
                return {"sieve": 1.0}
            case "clip":
                return {"sieve": 0.5, "clip": 0.5}
            case "only_clip":
                return {"clip": 1.0}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sieve's config; the defaults are the paper's, for shards of your own."""

    stage: Literal["score", "select"] = "select"
    """The last stage of the run. score: the run ends with the score files; select: it also writes ``subset.npy``."""
    data: PoolData = field(default_factory=PoolData)
    captioner: CaptionerConfig = field(default_factory=CaptionerConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    select: SelectConfig = field(default_factory=SelectConfig)

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        select = self.select
        faults.need(0 < select.fraction <= 1, "select.fraction", select.fraction, "in (0, 1]", "The paper keeps 0.2.")
        if select.scores is None:
            for group in (self.data, self.captioner, self.clip, self.score):
                group.check(faults)
            if self.stage == "select" and "clip" in select.weights and self.clip.name == "none":
                faults.add(
                    f"select.fuse = {select.fuse} needs CLIPScores, but clip.name = none: name a CLIP, or leave it out."
                )
        elif self.stage == "score":
            faults.add(f"select.scores = {select.scores} has no use with stage = score: leave one of them out.")
        faults.raise_any()


def run(config: Config, out: Path | None = None) -> Result:
    """Scores the pool, selects from it, and reports; ``out`` is the run folder (default ``runs/sieve-DATE``).

    The folder holds ``scores/`` (one parquet file per shard), ``subset.npy`` (DataComp's uid file) and ``subset.json``.
    A run that was stopped or killed continues with the first shard without a score file, and so does a finished run if
    a score file was removed. Under torchrun the shards are divided among the ranks.

    Raises: ``ConfigError``, ``DataError``, ``RunError``, ``Diverged`` or ``Interrupted``, with text of whole lines.
    """
    config.validate()
    place = stages.start(config.score.device, config.score.threads)
    out = collectives.broadcast_object(out or folder.default_path("sieve"))
    collectives.from_main(lambda: pool.take_up_again(out))
    with folder.RunFolder.create_or_continue(out, "sieve", config) as run:
        began = time.perf_counter()
        files, report = _score(config, run, place)

        def conclude() -> None:
            if config.stage == "select":
                report["selection"] = _select(config, files, run.path)
            report.update(pool.quality(config, files, run.path))
            seconds = round(time.perf_counter() - began, 1)
            facts = {"recipe": "sieve", "seconds": seconds, "steps": len(files), "seed": config.score.seed}
            run.write_report({**facts, **report, **engine.provenance()})
            own = run.path / "captioner" / "model.safetensors"
            if own.exists():
                shutil.copyfile(own, run.path / "model.safetensors")

        collectives.from_main(conclude)
        run.set_state("done", len(files))
        return Result(run.path, run.read_report())


def fingerprint(config: Config) -> dict[str, Any]:
    """Three losses of each toy model and the mean score of 16 pairs, which change if the numerics change."""
    short = replace(
        config,
        stage="score",
        data=replace(config.data, pool_size=16, per_shard=16),
        captioner=replace(config.captioner, images=64, steps=3, count=2),
        clip=replace(config.clip, images=256, steps=3),
    )
    with TemporaryDirectory() as place:
        path = run(short, Path(place) / "run").folder
        logs = [path / "captioner" / "metrics.jsonl"] + [path / "clip" / "metrics.jsonl"] * (config.clip.name == "toy")
        lines = [line for log in logs for line in log.read_text().splitlines()]
        scores = score_files.read(next((path / "scores").glob("*.parquet")))
        return {"losses": [json.loads(line)["loss"] for line in lines], "mean_sieve_score": float(scores.sieve.mean())}


def _score(config: Config, run: folder.RunFolder, place: world.World) -> tuple[list[Path], dict[str, Any]]:
    """The score files, and facts for the report (numbers of pairs and remarks). All ranks call it."""
    if config.select.scores is not None:
        return pool.scored_before(config.select.scores), {}
    encoder = load_encoder(config.encoder.name)  # first, so that missing weights are reported at once
    paths = pool.shards_of(config.data, run)
    if config.data.on_damage == "stop":
        collectives.from_main(lambda: [shards.check(path) for path in paths])  # fails before models are trained
    scorer = pair_scores.SieveScorer(
        models.captioner_of(config, run, place),
        encoder,
        models.clip_of(config, run, place),
        count=config.captioner.count,
        phrases=PHRASES if config.encoder.phrases == "sieve" else (),
        boundary=config.encoder.boundary,
        seed=config.score.seed,
    )
    run.set_state("running", 0)
    collectives.from_main(lambda: _note_shards(run, paths))
    with (
        stages.Stage(run, "scoring", len(paths[place.rank :: place.size]), "shards") as stage,
        loop.stop_on_signal() as stopped,
        stages.tell_how_to_go_on("Scoring was stopped; complete shards are kept.", f"recipes resume {run.path}"),
        _damage_met_by_one_process(),
    ):
        pair_scores.score_shards(
            paths,
            scorer,
            run.path / "scores",
            batch_size=config.score.batch_size,
            config_hash=_digest(config),
            rank=place.rank,
            world_size=place.size,
            on_damage=config.data.on_damage,
            progress=_noting(stage, paths, place.size),
            stop=stopped.is_set,
        )
    run.await_others()
    collectives.from_main(lambda: _note_shards(run, paths))
    files = [pair_scores.score_file(shard, run.path / "scores") for shard in paths]
    counts = sum((Counter(score_files.facts(path).counts) for path in files), Counter())
    for reason, number in sorted(counts.items()):
        run.warn(f"{number:,} pairs: {reason}.")
    return files, {"pairs": sum(score_files.facts(path).rows for path in files), "counts": dict(counts)}


def _digest(config: Config) -> str:
    """Twelve hex digits of all fields that change the scores; selection, batch size and device are not among them."""
    parts = {name: to_dict(getattr(config, name)) for name in ("data", "captioner", "encoder", "clip")}
    return hashlib.sha256(json.dumps([parts, config.score.seed], sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def _damage_met_by_one_process() -> Iterator[None]:
    """Turns ``DataError`` into ``DamagedImage``, which any rank prints, since only one rank reads a damaged shard."""
    try:
        yield
    except DataError as error:
        raise DamagedImage(str(error)) from None


def _note_shards(run: folder.RunFolder, paths: list[Path]) -> None:
    """Makes ``metrics.jsonl`` have one line per shard with a score file, even if the run was killed before.

    Existing lines stay. A missing line is made from the score file and has no ``seconds``.
    """
    path, noted = run.path / "metrics.jsonl", {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError, KeyError, TypeError):  # an incomplete line of a killed run
            line = json.loads(text)
            noted.setdefault(line["shard"], line)
    lines = []
    for step, shard in enumerate(paths, start=1):
        scores = pair_scores.score_file(shard, run.path / "scores")
        if scores.exists():
            pairs = score_files.facts(scores).rows
            lines.append(
                {"step": step, "shard": shard.stem, "pairs": pairs} | noted.get(shard.stem, {}) | {"step": step}
            )
    durable.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _noting(stage: stages.Stage, paths: list[Path], size: int) -> Callable[[pair_scores.ShardsScored], None]:
    """A callback that shows progress, and writes a line for each shard that rank 0 of ``size`` ranks scores."""
    told, pairs = 0, 0

    def progress(done: pair_scores.ShardsScored) -> None:
        nonlocal told, pairs
        stage.show(done.shards_done, f"{done.pairs:,} pairs scored")
        if done.shards_done == told:
            return
        new, told, pairs = done.pairs - pairs, done.shards_done, done.pairs
        if new:  # shards that an earlier start scored already have their lines
            step = 1 + (told - 1) * size
            stage.note({"step": step, "shard": paths[step - 1].stem, "pairs": new, "seconds": round(stage.seconds, 3)})

    return progress


def _select(config: Config, files: list[Path], out: Path) -> dict[str, Any]:
    """Writes ``subset.npy`` and ``subset.json``, checks the former, and returns facts for the report."""
    made = pool_selection.select(files, config.select.fraction, config.select.weights, out)
    uids.verify_subset(out / "subset.npy")
    return {"pool": made.pool, "kept": made.kept, "threshold": made.threshold, "sha256": made.sha256}


# The Pantry with alt-texts as on the web, in 45 seconds of one CPU core. The captioner and the CLIP are trained in the
# run itself, with fewer captions per image (4) than the paper's 8, to save time.
_TOY = Config(
    data=PoolData(name="pantry", pool_size=300, per_shard=100),
    captioner=CaptionerConfig(name="toy", count=4, images=2000, steps=80),
    clip=ClipConfig(name="toy", images=2000, steps=40),
    score=ScoreConfig(threads=1, device="cpu"),
)

PRESETS: dict[str, Config] = {
    "toy": _TOY,
    # A larger pool, 8 captions per image and longer training; `recipes cook sieve` stores the result.
    "simmer": replace(
        _TOY,
        data=replace(_TOY.data, pool_size=2000, per_shard=200),
        captioner=replace(_TOY.captioner, count=8, images=6000, steps=1500),
        clip=replace(_TOY.clip, images=6000, steps=600),
    ),
    # Shards of your own with BLIP and OpenAI's ViT-B/32 on one GPU. It generates one caption per image instead of the
    # paper's 8, since the time grows with their number.
    "laptop": Config(
        data=PoolData(root=Path("shards")),
        captioner=CaptionerConfig(weights="Salesforce/blip-image-captioning-base", count=1),
        clip=ClipConfig(name="open_clip", weights="openai"),
    ),
    # DataComp's medium pool of 128 million pairs, with 8 captions per image; a fifth is kept by the mean of both
    # scores.
    "datacomp_medium": Config(
        data=PoolData(root=Path("shards"), on_damage="skip"),
        captioner=CaptionerConfig(weights="Salesforce/blip-image-captioning-base"),
        clip=ClipConfig(name="open_clip", weights="openai"),
        score=ScoreConfig(batch_size=256),
        select=SelectConfig(fuse="clip"),
    ),
}

RECIPE = Job(name="sieve", config=Config, presets=PRESETS, run=run, fingerprint=fingerprint)
