# SPDX-License-Identifier: Apache-2.0
"""The pool that :mod:`recipes_lib.recipes.sieve.recipe` scores: shards from disk, or the Pantry's, whose truth is known."""

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
    """The pool: shards of image-text pairs in webdataset's layout, each pair with a uid."""

    name: Literal["pantry", "shards"] = "shards"
    """``shards`` are read from ``root``; ``pantry`` writes shards of its own into the run folder first."""
    root: Path | None = None
    """Folder of the shards, or a pattern such as ``/data/{00000..01287}.tar``."""
    on_damage: Literal["stop", "skip"] = "stop"
    """What to do about a pair that cannot be read: stop with its name, or pass it over and count it by reason."""
    image_size: int = 32
    """``pantry`` only: side in pixels."""
    pool_size: int = 1000
    """``pantry`` only: pairs."""
    per_shard: int = 200
    """``pantry`` only: pairs in a shard."""
    draw: int = 0
    """``pantry`` only. Which pairs, and which pictures the toy models learn from; another number gives others."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        if (self.name == "shards") != (self.root is not None):
            fix = "add --data.root FOLDER" if self.name == "shards" else "leave it out"
            faults.add(f"data.root = {self.root} does not fit data.name = {self.name}: {fix}.")
        size = self.image_size
        faults.need(size >= 16 and size % 8 == 0, "data.image_size", size, "of at least 16 that 8 divides")
        for name in ("pool_size", "per_shard"):
            faults.need(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "of at least 1")
        faults.need(self.draw >= 0, "data.draw", self.draw, "of at least 0")


def pantry_pool(data: PoolData) -> PairSet:
    """The pairs of ``data.name`` pantry: pictures with alt-texts of every kind; ``factors["kind"]`` says which."""
    return alt_text.pool(data.pool_size, size=data.image_size, seed=seed_of(data), mix=alt_text.Mix())


def seed_of(data: PoolData) -> int:
    """What draws the pool; the two numbers after it draw what the toy captioner and the toy CLIP learn from."""
    return 3 * data.draw


def scores_of(folder: Path, pool: PairSet, *, clip: bool = True) -> Scores:
    """All score files of a folder as one, in the order of the pool's pairs; ``clip``: whether they have that column."""
    every = score_files.join([score_files.read(path) for path in sorted(folder.glob("*.parquet"))], clip=clip)
    place = {uid: row for row, uid in enumerate(every.uids)}
    rows = [place[uid] for uid in pool.uids]
    texts = ([getattr(every, name)[row] for row in rows] for name in ("uids", "keys", "texts", "captions"))
    return Scores(*texts, sieve=every.sieve[rows], clip=every.clip[rows] if clip else None)


def scored_before(folder: Path) -> list[Path]:
    """The score files of an earlier run. Raises: ``DataError`` where there is none, or those of some shards are lacking."""
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
    """Has a finished run of which a score file was removed go on, as its shard was changed and is to be scored again."""
    run = RunFolder(path)
    if (path / "config.yaml").is_file() and run.state()["status"] == "done":
        names, lacking = _shards_noted(path / "scores")
        if lacking:
            run.set_state("interrupted", len(names) - len(lacking))


def _shards_noted(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the shards that scoring into ``folder`` began with, and those of them that have no score file."""
    noted = folder / "shards.json"
    names = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else []
    return names, [name for name in names if not (folder / f"{name}.parquet").is_file()]


def shards_of(data: PoolData, run: RunFolder) -> list[Path]:
    """The shards of the pool; the Pantry's are written into the run folder, once."""
    if data.name == "shards":
        return shards.find(data.root)
    place = run.path / "pool"

    def write() -> None:
        if not place.is_dir():  # it is there whole, or not at all
            stages.keep(run)
            shards.write(pantry_pool(data), place, data.per_shard)

    collectives.from_main(write)
    return shards.find(place)


def quality(config: Any, files: list[Path], out: Path) -> dict[str, Any]:
    """How well each signal tells right pairs from wrong ones (AUC; of guessing, 0.5), where the truth is known.

    ``scores`` has each signal's AUC over all kinds, ``kinds`` signal -> kind -> AUC, ``kept`` kind -> share selected.
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
