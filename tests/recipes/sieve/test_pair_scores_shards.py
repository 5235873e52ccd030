# SPDX-License-Identifier: Apache-2.0
"""Scores of shards. Called as a program, this file scores a folder slowly, for the test that kills it."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import count as count_up
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pyarrow")

from recipes_lib.data.pairs import Pair
from recipes_lib.data.pools import pool_selection, score_files
from recipes_lib.data.pools import shards as shard_files
from recipes_lib.data.pools.uids import times_kept, to_u8, verify_subset
from recipes_lib.errors import DataError, Interrupted, RunError
from recipes_lib.models.sentence import HashedNgrams
from recipes_lib.recipes.sieve.pair_scores import SieveScorer, caption_seeds, score_file, score_shards

WORDS = ("mug", "jug", "bowl", "plate", "kettle", "spoon", "on a table", "beside a window")


class DrawnCaptions:
    """Words drawn from each image's seed; the image's colour is the first."""

    def generate(self, images, count, seeds):
        found = []
        for image, seed in zip(images, seeds.tolist(), strict=True):
            draws = np.random.default_rng(seed).integers(0, len(WORDS), (count, 2))
            found.append([f"a photo of a {image.getpixel((0, 0))[0]} {WORDS[a]} {WORDS[b]}" for a, b in draws])
        return found


class Colours:
    """In place of CLIP: how red an image is."""

    def similarity(self, images, texts):
        return torch.tensor([image.getpixel((0, 0))[0] / 255 for image in images], dtype=torch.float64)


def pair(number: int, text: str = "a mug on a table") -> Pair:
    uid = hashlib.md5(str(number).encode()).hexdigest()
    return Pair(uid, f"{number:06d}", text, Image.new("RGB", (4, 4), (number % 256, 0, 0)))


def read(path: Path, *, on_damage: str, counts: Counter) -> Iterator[Pair]:
    """A synthetic shard: its name is its number, and it has 11 pairs and one image that cannot be read."""
    start = 100 * int(path.stem)
    for number in range(start, start + 11):
        yield pair(number, f"a {number} {WORDS[number % 8]}" if number % 5 else "image")
    counts["image"] += 1


def scorer(**how) -> SieveScorer:
    return SieveScorer(DrawnCaptions(), HashedNgrams(64), Colours(), count=3, **how)


def shards(count: int) -> list[Path]:
    return [Path(f"{number:05d}.tar") for number in range(count)]


def score(folder: Path, count: int = 5, **how):
    how = {"read": read, "batch_size": 4, "config_hash": "abc", **how}
    return score_shards(shards(count), how.pop("scorer", None) or scorer(), folder, **how)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_captions_follow_from_the_uid_and_the_seed_alone():
    pairs = [pair(number) for number in range(20)]
    whole, alone = scorer().score(pairs), [scorer().score([one]) for one in pairs[::-1]]
    assert whole.captions == [one.captions[0] for one in alone[::-1]]
    np.testing.assert_allclose(whole.sieve, [one.sieve[0] for one in alone[::-1]], atol=1e-6)
    assert scorer(seed=1).score(pairs).captions != whole.captions
    seeds = caption_seeds([one.uid for one in pairs], 0)
    assert seeds.dtype == torch.int64
    assert (seeds >= 0).all()
    assert len(set(seeds.tolist())) == 20
    assert caption_seeds([pairs[0].uid.upper()], 0)[0] == seeds[0]


def test_each_pair_of_a_shard_has_its_row(tmp_path):
    done = score(tmp_path)
    assert (done.shards, done.shards_done, done.pairs, done.counts) == (5, 5, 55, {"image": 5})
    for shard in shards(5):
        found = score_files.read(score_file(shard, tmp_path))
        wanted = list(read(shard, on_damage="stop", counts=Counter()))
        assert found.uids == [one.uid for one in wanted]
        assert found.keys == [one.key for one in wanted]
        assert found.texts == [one.text for one in wanted]
        np.testing.assert_allclose(found.sieve, scorer().score(wanted).sieve, atol=1e-6)
        assert score_files.facts(score_file(shard, tmp_path)).counts == {"image": 1}


def test_three_processes_write_the_bytes_of_one(tmp_path):
    score(tmp_path / "one", 7)
    for rank in (2, 0, 1):
        score(tmp_path / "three", 7, rank=rank, world_size=3)
    assert content(tmp_path / "one") == content(tmp_path / "three")


def test_more_processes_than_shards_leave_some_idle(tmp_path):
    assert score(tmp_path, 2, rank=4, world_size=5).shards == 0


def test_what_is_scored_is_not_scored_again(tmp_path):
    score(tmp_path, 3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    done = score(tmp_path, 3)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert (done.shards_done, done.pairs, done.counts) == (3, 0, {"image": 3})
    assert score(tmp_path, 4).pairs == 11  # the pool has grown


@pytest.mark.parametrize("asked", range(1, 12, 3))
def test_a_run_that_was_stopped_anywhere_goes_on_to_the_same_bytes(tmp_path, asked):
    score(tmp_path / "whole")
    calls = count_up(1)
    with pytest.raises(Interrupted, match=rf"stopped after {(asked - 1) // 3} of 5 shards of process 0"):
        score(tmp_path / "parts", stop=lambda: next(calls) == asked)
    assert len(list((tmp_path / "parts").glob("*.parquet"))) == (asked - 1) // 3
    assert score(tmp_path / "parts").pairs == 55 - 11 * ((asked - 1) // 3)
    assert content(tmp_path / "whole") == content(tmp_path / "parts")


def test_progress_counts_pairs_and_shards(tmp_path):
    seen = []
    score(tmp_path, 2, progress=lambda done: seen.append((done.shards_done, done.pairs)))
    assert seen == [(0, 4), (0, 8), (0, 11), (1, 11), (1, 15), (1, 19), (1, 22), (2, 22)]


def test_memory_does_not_grow_with_the_pool(tmp_path):
    def long(path, *, on_damage, counts):
        return (pair(1000 * int(path.stem) + row) for row in range(200))

    class Says:
        def generate(self, images, count, seeds):
            return [["a mug", "a jug"]] * len(images)

    cheap = SieveScorer(Says(), HashedNgrams(64), count=2)
    peaks = []
    for shards_ in (2, 2, 10):  # the first run fills caches
        tracemalloc.start()
        score(tmp_path / str(len(peaks)), shards_, read=long, scorer=cheap, batch_size=50)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]


def test_shards_on_disk_are_scored_selected_from_and_found_by_the_resharder(tmp_path):
    pairs = [pair(number, f"a {number} {WORDS[number % 8]}") for number in range(20)]
    paths = shard_files.write(pairs, tmp_path / "pool", 8)
    archive = paths[1].read_bytes()
    paths[1].write_bytes(archive[: len(archive) // 2])
    how = {"batch_size": 3, "config_hash": "abc"}
    with pytest.raises(DataError, match=paths[1].name):
        score_shards(paths, scorer(), tmp_path / "scores", **how)
    done = score_shards(paths, scorer(), tmp_path / "scores", on_damage="skip", **how)
    assert 8 + 4 < done.pairs + 8 < 20
    assert sum(done.counts.values()) > 0
    files = [score_file(path, tmp_path / "scores") for path in paths]
    uids = [uid for path in files for uid in score_files.read(path).uids]
    assert uids[:8] == [one.uid for one in pairs[:8]]
    assert uids[-4:] == [one.uid for one in pairs[-4:]]
    manifest = pool_selection.select(files, 0.5, {"sieve": 0.5, "clip": 0.5}, tmp_path)
    subset = verify_subset(tmp_path / "subset.npy", to_u8(uids))
    assert times_kept(subset, to_u8([one.uid for one in pairs])).sum() == manifest.kept == len(uids) // 2
    assert manifest.counts == dict(done.counts)


def test_damage_stops_the_run_and_keeps_what_was_done(tmp_path):
    def damaged(path, *, on_damage, counts):
        for row, one in enumerate(read(path, on_damage=on_damage, counts=counts)):
            if path.stem == "00002" and row == 6:
                if on_damage == "stop":
                    raise DataError("shard 00002.tar ends early")
                counts["truncated"] += 1
                return
            yield one

    with pytest.raises(DataError, match=r"00002\.tar ends early"):
        score(tmp_path, read=damaged)
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == ["00000.parquet", "00001.parquet"]
    done = score(tmp_path, read=damaged, on_damage="skip")
    assert done.counts == {"image": 4, "truncated": 1}
    assert score_files.facts(tmp_path / "00002.parquet").rows == 6


def test_a_shard_of_which_nothing_can_be_read_has_an_empty_file(tmp_path):
    score(tmp_path, 1, read=lambda path, *, on_damage, counts: iter(()))
    assert len(score_files.read(tmp_path / "00000.parquet")) == 0
    assert score_files.facts(tmp_path / "00000.parquet").signals == ("sieve", "clip")


def test_scores_of_another_config_are_neither_kept_nor_replaced(tmp_path):
    score(tmp_path, 2)
    before = content(tmp_path)
    with pytest.raises(RunError, match="config abc, and this run's is def"):
        score(tmp_path, 2, config_hash="def")
    assert content(tmp_path) == before


def test_a_damaged_score_file_is_named(tmp_path):
    score(tmp_path, 2)
    path = tmp_path / "00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"00001\.parquet is truncated"):
        score(tmp_path, 2)


def test_a_shard_that_has_gone_is_named(tmp_path):
    with pytest.raises(Interrupted):
        score(tmp_path, 3, stop=lambda: True)
    for rank in (0, 1):
        with pytest.raises(DataError, match=r"1 shards that scoring into .* began with have gone, the first '00002'"):
            score(tmp_path, 2, rank=rank, world_size=2)


def test_two_shards_of_one_name_are_refused(tmp_path):
    twins = [Path("a/0.tar"), Path("b/0.tar")]
    with pytest.raises(DataError, match=r"a/0\.tar and b/0\.tar have one name"):
        score_shards(twins, scorer(), tmp_path, read=read, batch_size=4, config_hash="abc")


def test_a_run_that_is_killed_twice_goes_on_to_the_same_bytes(tmp_path):
    score(tmp_path / "whole", 6)
    parts = tmp_path / "parts"
    subprocess.run([sys.executable, __file__, str(parts)], check=True, timeout=120)
    assert 3 <= len(list(parts.glob("*.parquet"))) < 6
    score(parts, 6)
    assert content(tmp_path / "whole") == content(parts)


def score_and_be_killed(folder: Path, finished: int) -> None:
    """Scores slowly in a process of its own, and kills that inside the shard after the ``finished``-th."""
    child = os.fork()
    if not child:
        score(folder, 6, progress=lambda done: time.sleep(0.05))
        os._exit(0)
    while len(list(folder.glob("*.parquet"))) < finished:
        time.sleep(0.005)
    time.sleep(0.06)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError("it ended before it was killed")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for finished in (1, 3):
        score_and_be_killed(Path(sys.argv[1]), finished)
