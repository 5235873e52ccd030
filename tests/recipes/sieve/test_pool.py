# SPDX-License-Identifier: Apache-2.0
"""The pool that Sieve scores, and what is known of the Pantry's."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")

from recipes_lib.data.pantry import alt_text
from recipes_lib.data.pools import score_files, selection, shards, uids
from recipes_lib.data.pools.score_files import Scores
from recipes_lib.errors import ConfigError, DataError, Faults
from recipes_lib.recipes.sieve.pool import PoolData, pantry_pool, quality, scored_before, scores_of, seed_of, shards_of

DATA = PoolData(name="pantry", pool_size=40, per_shard=16)


def folder(path: Path) -> SimpleNamespace:
    """As much of a run folder as is used."""
    path.mkdir()
    return SimpleNamespace(path=path)


def score(files: list[Path], place: Path, *, clip: bool = True) -> list[Path]:
    """Score files by shard: Sieve's score is a pair's number in the pool's, CLIP's the negative."""
    made = []
    for shard in files:
        pairs = list(shards.read(shard, on_damage="stop"))
        numbers = np.array([int(pair.key) for pair in pairs], np.float32)
        rows = Scores(
            [pair.uid for pair in pairs],
            [pair.key for pair in pairs],
            [pair.text for pair in pairs],
            [["a mug"]] * len(pairs),
            numbers,
            -numbers if clip else None,
        )
        place.mkdir(exist_ok=True)
        made.append(place / f"{shard.stem}.parquet")
        score_files.write(made[-1], rows, config_hash="abc", counts={})
    return made


@pytest.fixture(scope="module")
def pool():
    return pantry_pool(DATA)


def test_the_pantrys_shards_are_written_once_and_hold_the_pool(tmp_path, pool):
    run = folder(tmp_path / "run")
    files = shards_of(DATA, run)
    assert [path.name for path in files] == ["00000000.tar", "00000001.tar", "00000002.tar"]
    pairs = [pair for path in files for pair in shards.read(path, on_damage="stop")]
    assert tuple(pair.uid for pair in pairs) == pool.uids
    assert tuple(pair.text for pair in pairs) == pool.texts
    before = [path.stat().st_mtime_ns for path in files]
    assert shards_of(DATA, run) == files
    assert [path.stat().st_mtime_ns for path in files] == before


def test_shards_of_ones_own_are_found_and_nothing_is_written(tmp_path, pool):
    shards.write(pool, tmp_path / "mine", 20)
    run = folder(tmp_path / "run")
    found = shards_of(PoolData(root=tmp_path / "mine"), run)
    assert [path.parent for path in found] == [tmp_path / "mine"] * 2
    assert not list(run.path.iterdir())
    with pytest.raises(DataError, match=r"There is no shard .*nowhere"):
        shards_of(PoolData(root=tmp_path / "nowhere"), run)


def test_pools_of_two_draws_and_what_their_models_learn_from_have_no_pair_in_common(pool):
    seeds = [seed_of(PoolData(name="pantry", draw=draw)) + more for draw in range(3) for more in range(3)]
    assert len(set(seeds)) == 9
    other = alt_text.pool(40, size=32, seed=seeds[1], mix=alt_text.CLEAN)
    assert not set(other.uids) & set(pool.uids)


def test_scores_come_in_the_order_of_the_pool_whatever_that_of_the_files(tmp_path, pool):
    run = folder(tmp_path / "run")
    score(shards_of(DATA, run)[::-1], run.path / "scores")
    mixed = pool.select(torch.tensor([30, 2, 17]))
    found = scores_of(run.path / "scores", mixed)
    assert found.sieve.tolist() == [30, 2, 17]
    assert found.clip.tolist() == [-30, -2, -17]
    assert tuple(found.uids) == mixed.uids
    assert tuple(found.texts) == mixed.texts


@pytest.mark.parametrize("clip", ["toy", "none"])
def test_quality_is_told_where_the_truth_is_known(tmp_path, pool, clip):
    run = folder(tmp_path / "run")
    files = score(shards_of(DATA, run), run.path / "scores", clip=clip != "none")
    own = uids.to_u8(pool.uids)
    uids.save_subset(run.path / "subset.npy", own[selection.keep(np.arange(40), own, 0.25)])
    config = SimpleNamespace(
        data=DATA, clip=SimpleNamespace(name=clip), select=SimpleNamespace(scores=None), stage="select"
    )
    found = quality(config, files, run.path)
    kinds = pool.factors["kind"].numpy()
    good, bad = (np.flatnonzero(where) for where in (kinds < 2, kinds >= 2))
    wins = float((good[:, None] > bad[None]).mean())
    assert found["scores"]["auc_sieve"]["method"] == pytest.approx(wins)
    assert found["kept"]["caption"] == pytest.approx(float((np.flatnonzero(kinds == 0) >= 30).mean()))
    assert set(found["kinds"]["sieve"]) == {"all", *(alt_text.KINDS[kind] for kind in set(kinds.tolist()))}
    if clip == "none":
        assert set(found["scores"]) == {"auc_sieve"}
    else:
        assert found["scores"]["auc_clip"]["method"] == pytest.approx(1 - wins)
        assert found["scores"]["auc_fused"]["method"] == 0.5  # each undoes the other: all tie
    config.stage = "score"
    assert "kept" not in quality(config, files, run.path)


def test_of_shards_of_ones_own_no_quality_is_known(tmp_path):
    config = SimpleNamespace(data=PoolData(root=tmp_path), select=SimpleNamespace(scores=None))
    assert quality(config, [], tmp_path) == {"scores": {}}


def test_scores_of_an_earlier_run_must_be_those_of_all_its_shards(tmp_path, pool):
    with pytest.raises(DataError, match=r"select\.scores = .*scores holds no score file"):
        scored_before(tmp_path / "scores")
    files = score(shards.write(pool, tmp_path / "pool", 16), tmp_path / "scores")
    assert scored_before(tmp_path / "scores") == files  # of another tool, say
    (tmp_path / "scores" / "shards.json").write_text(json.dumps([path.stem for path in files]))
    assert scored_before(tmp_path / "scores") == files
    files[1].unlink()
    with pytest.raises(DataError, match=r"has scores of 2 of 3 shards; 00000001 is the first without.*recipes resume"):
        scored_before(tmp_path / "scores")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"root": Path("x")}, r"data\.root = x does not fit data\.name = pantry: leave it out"),
        ({"name": "shards"}, r"data\.root = None does not fit data\.name = shards: add --data\.root FOLDER"),
        ({"image_size": 20}, r"data\.image_size = 20 .*at least 16 that 8 divides"),
        ({"pool_size": 0}, r"data\.pool_size = 0 .*at least 1"),
        ({"per_shard": 0}, r"data\.per_shard = 0 .*at least 1"),
        ({"draw": -1}, r"data\.draw = -1 .*at least 0"),
    ],
)
def test_a_pool_that_is_not_allowed_is_one_line(changes, words):
    faults = Faults()
    PoolData(**{"name": "pantry", **changes}).check(faults)
    with pytest.raises(ConfigError, match=words) as error:
        faults.raise_any()
    assert "\n" not in str(error.value)
