# SPDX-License-Identifier: Apache-2.0
"""The pool that Sieve scores: shards from disk, or pairs of the Pantry, whose texts are known to be true or false."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recipes_lib.data.pairs import PairSet
from recipes_lib.data.pantry import alt_text
from recipes_lib.data.pools import score_files, selection, shards, uids
from recipes_lib.data.pools.score_files import Scores
from recipes_lib.distributed import collectives
from recipes_lib.errors import DataError, Faults
from recipes_lib.recipes.sieve import separation
from recipes_lib.training import stages
from recipes_lib.training.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class PoolData:
    """The pool: shards of image-text pairs in webdataset's layout, in which each pair has a uid."""

    name: Literal["pantry", "shards"] = "shards"
    """Name of the pool. ``shards`` are read from ``root``; ``pantry`` draws pairs and writes shards of them."""
    root: Path | None = None
    """``shards`` only. Folder of the shards, or a pattern such as ``/data/{00000..01287}.tar``."""
    on_damage: Literal["stop", "skip"] = "stop"
    """What happens if a pair cannot be read. stop: the run ends with the pair's name;
    skip: such pairs are left out and counted by reason."""
    image_size: int = 32
    """``pantry`` only. Side of the images in pixels, at least 16 and a multiple of 8."""
    pool_size: int = 1000
    """``pantry`` only. Number of pairs, at least 1."""
    per_shard: int = 200
    """``pantry`` only. Number of pairs per shard, at least 1."""
    draw: int = 0
    """``pantry`` only. Seed of the pairs, and of the images that the toy models learn from, at least 0."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        if (self.name == "shards") != (self.root is not None):
            fix = "add --data.root FOLDER" if self.name == "shards" else "leave it out"
            faults.add(f"data.root = {self.root} does not fit data.name = {self.name}: {fix}.")
        size = self.image_size
        faults.need(size >= 16 and size % 8 == 0, "data.image_size", size, "of at least 16 that 8 divides")
        for name in ("pool_size", "per_shard"):
            faults.need(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "of at least 1")
        faults.need(self.draw >= 0, "data.draw", self.draw, "of at least 0")


def pantry_pool(data: PoolData) -> PairSet:
    """The pairs of ``data.name`` pantry: images with alt-texts of all kinds; ``factors["kind"]`` is the kind."""
    return alt_text.pool(data.pool_size, size=data.image_size, seed=seed_of(data), mix=alt_text.Mix())


def seed_of(data: PoolData) -> int:
    """The seed of the pool. The next two numbers are the seeds of the toy captioner's and the toy CLIP's data."""
    return 3 * data.draw


def scores_of(folder: Path, pool: PairSet, *, clip: bool = True) -> Scores:
    """Reads all score files of a folder, in the order of the pool's pairs; ``clip``: whether they have that column."""
    every = score_files.join([score_files.read(path) for path in sorted(folder.glob("*.parquet"))], clip=clip)
    place = {uid: row for row, uid in enumerate(every.uids)}
    rows = [place[uid] for uid in pool.uids]
    texts = ([getattr(every, name)[row] for row in rows] for name in ("uids", "keys", "texts", "captions"))
    return Scores(*texts, sieve=every.sieve[rows], clip=every.clip[rows] if clip else None)


def scored_before(folder: Path) -> list[Path]:
    """The score files of an earlier run. Raises: ``DataError`` if there is none, or some shards have no score file."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise DataError(f"select.scores = {folder} holds no score file. Give a run's folder scores.")
    names, lacking = _shards_noted(folder)
    if lacking:
        raise DataError(
            f"select.scores = {folder} has scores of {len(names) - len(lacking)} of {len(names)} shards; {lacking[0]} is the "
            f"first without. Finish that run: recipes resume {folder.parent}"
        )
    return files


def take_up_again(path: Path) -> None:
    """Reopens a finished run if a score file was removed, so that its shard is scored again."""
    run = RunFolder(path)
    if (path / "config.yaml").is_file() and run.state()["status"] == "done":
        names, lacking = _shards_noted(path / "scores")
        if lacking:
            run.set_state("interrupted", len(names) - len(lacking))


def _shards_noted(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the shards that were to be scored into ``folder``, and of those that have no score file."""
    noted = folder / "shards.json"
    names = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else []
    return names, [name for name in names if not (folder / f"{name}.parquet").is_file()]


def shards_of(data: PoolData, run: RunFolder) -> list[Path]:
    """The shards of the pool. Those of the Pantry are written into the run folder once."""
    if data.name == "shards":
        return shards.find(data.root)
    place = run.path / "pool"

    def write() -> None:
        if not place.is_dir():  # the folder is complete or absent
            stages.keep(run)
            shards.write(pantry_pool(data), place, data.per_shard)

    collectives.from_main(write)
    return shards.find(place)


def quality(config: Any, files: list[Path], out: Path) -> dict[str, Any]:
    """How well each score separates true pairs from false ones (AUC; 0.5 is chance), if the truth is known.

    ``scores``: the AUC of each score over all kinds; ``kinds``: score -> kind of pair -> AUC; ``kept``: kind -> share
    of its pairs that was selected.
    """
    if config.data.name != "pantry" or config.select.scores is not None:
        return {"scores": {}}
    pool = pantry_pool(config.data)
    scores = scores_of(files[0].parent, pool, clip=config.clip.name != "none")
    kinds, signals = pool.factors["kind"].numpy(), {"sieve": scores.sieve}
    if scores.clip is not None:
        signals["clip"] = scores.clip
        signals["fused"] = selection.fuse(signals, {"sieve": 0.5, "clip": 0.5})
    found = separation.by_kind(signals, kinds, alt_text.KINDS, alt_text.ALIGNED)
    report: dict[str, Any] = {"scores": {f"auc_{name}": {"method": auc["all"]} for name, auc in found.items()}}
    report["kinds"] = found
    if config.stage == "select":
        kept = uids.times_kept(uids.verify_subset(out / "subset.npy"), uids.to_u8(pool.uids)) > 0
        report["kept"] = separation.kept_kinds(kept, kinds, alt_text.KINDS)
    return report
