# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from recipes_lib.data.pools import pool_selection, score_files, selection
from recipes_lib.data.pools.pool_selection import select
from recipes_lib.data.pools.score_files import Scores
from recipes_lib.data.pools.uids import save_subset, to_u8, verify_subset
from recipes_lib.errors import DataError

HALVES = {"sieve": 0.5, "clip": 0.5}


def write(path: Path, uids, sieve, clip=None, *, config_hash="abc", counts=None) -> Path:
    columns = [list(uids), ["k"] * len(uids), ["t"] * len(uids), [[]] * len(uids)]
    clip = None if clip is None else np.asarray(clip, np.float32)
    rows = Scores(*columns, sieve=np.asarray(sieve, np.float32), clip=clip)
    score_files.write(path, rows, config_hash=config_hash, counts=counts or {})
    return path


def pool(folder: Path, sizes=(40, 0, 1, 300, 159), *, values: int | None = None, seed: int = 0):
    """Files of these sizes, and all their rows: uids, sieve, clip. ``values``: how many different scores there are."""
    draws = np.random.default_rng(seed)
    total = sum(sizes)
    uids = [row.tobytes().hex() for row in draws.integers(0, 256, (total, 16), np.uint8)]
    signals = draws.normal(size=(2, total)).astype(np.float32)
    if values:
        signals = np.floor(draws.random((2, total)) * values).astype(np.float32)
    starts = np.cumsum([0, *sizes])
    files = [
        write(folder / f"{number}.parquet", uids[a:b], signals[0, a:b], signals[1, a:b], counts={"image": number})
        for number, (a, b) in enumerate(pairwise(starts))
    ]
    return files, uids, *signals


def kept_in_memory(uids, sieve, clip, fraction, weights=HALVES) -> np.ndarray:
    fused = selection.fuse({"sieve": sieve, "clip": clip}, weights)
    return np.sort(to_u8(uids)[selection.keep(fused, to_u8(uids), fraction)])


@pytest.mark.parametrize("few", [1 << 16, 3])
@pytest.mark.parametrize("values", [None, 4, 1], ids=["all different", "ties", "all equal"])
@pytest.mark.parametrize("fraction", [0.002, 0.2, 0.5, 1.0])
def test_streaming_keeps_what_selection_in_memory_keeps(tmp_path, monkeypatch, fraction, values, few):
    monkeypatch.setattr(pool_selection, "_FEW", few)
    monkeypatch.setattr(score_files, "BATCH", 64)
    files, uids, sieve, clip = pool(tmp_path, values=values)
    manifest = select(files, fraction, HALVES, tmp_path / "out", memory_rows=100)
    subset = verify_subset(tmp_path / "out" / "subset.npy", to_u8(uids))
    np.testing.assert_array_equal(subset, kept_in_memory(uids, sieve, clip, fraction))
    assert manifest.kept == len(subset) == int(500 * fraction)


def test_ties_that_differ_in_the_last_bits_of_the_uid_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_selection, "_FEW", 1)
    uids = [f"{row:032x}" for row in (5, 3, 4, 1, 2, 0)]
    files = [write(tmp_path / "a", uids[:3], [0.5] * 3), write(tmp_path / "b", uids[3:], [0.5, 0.5, 0.9])]
    select(files, 0.5, {"sieve": 1.0}, tmp_path / "out")
    assert verify_subset(tmp_path / "out" / "subset.npy").tolist() == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("weights", [{"sieve": 1.0}, {"clip": 1.0, "sieve": 0.0}, {"clip": 0.7, "sieve": 0.3}])
def test_weights_choose_the_signals(tmp_path, weights):
    files, uids, sieve, clip = pool(tmp_path)
    manifest = select(files, 0.3, weights, tmp_path / "out")
    subset = verify_subset(tmp_path / "out" / "subset.npy")
    np.testing.assert_array_equal(subset, kept_in_memory(uids, sieve, clip, 0.3, weights))
    assert set(manifest.ranges) == {name for name, weight in weights.items() if weight}


def test_neither_the_order_of_files_nor_memory_changes_a_byte(tmp_path):
    files, uids, sieve, clip = pool(tmp_path, values=7)
    ours = [
        select(order, 0.4, HALVES, tmp_path / f"out{rows}", memory_rows=rows).sha256
        for order, rows in ((files, 1 << 24), (files[::-1], 50))
    ]
    save_subset(tmp_path / "whole.npy", kept_in_memory(uids, sieve, clip, 0.4))
    assert {*ours} == {hashlib.sha256((tmp_path / "whole.npy").read_bytes()).hexdigest()}


def test_the_manifest_says_what_the_subset_is(tmp_path):
    files, _, sieve, clip = pool(tmp_path)
    manifest = select(files, 0.25, HALVES, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "subset.json").read_text())
    assert said["config_hash"] == "abc"
    assert (said["files"], said["pool"], said["kept"], said["fraction"]) == (5, 500, 125, 0.25)
    assert said["counts"] == {"image": 0 + 1 + 2 + 3 + 4}
    assert said["weights"] == HALVES
    assert said["ranges"]["clip"] == [float(clip.min()), float(clip.max())]
    assert said["constant"] == []
    assert said["sha256"] == hashlib.sha256((tmp_path / "out" / "subset.npy").read_bytes()).hexdigest()
    assert said["threshold"] == manifest.threshold
    fused = selection.fuse({"sieve": sieve, "clip": clip}, HALVES)
    assert manifest.threshold == np.sort(fused)[::-1][124]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["subset.json", "subset.npy"]


def test_a_constant_signal_is_told(tmp_path):
    uids = [f"{row:032x}" for row in range(4)]
    path = write(tmp_path / "a.parquet", uids, [0.1, 0.4, 0.3, 0.2], [0.7] * 4)
    assert select([path], 0.5, HALVES, tmp_path / "out").constant == ["clip"]
    assert verify_subset(tmp_path / "out" / "subset.npy").tolist() == [(0, 1), (0, 2)]


@pytest.mark.parametrize("better", [0.0, 1.0], ids=["neither kept", "kept"])
def test_a_uid_in_two_shards_is_named_with_both(tmp_path, better):
    files, uids, *_ = pool(tmp_path)
    files.append(write(tmp_path / "twin.parquet", [uids[250]], [better * 9], [better * 9]))
    with pytest.raises(DataError, match=rf"uid {uids[250]} comes 2 times: in .*3\.parquet, .*twin\.parquet"):
        select(files, 0.01, HALVES, tmp_path / "out", memory_rows=100)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_pool_of_which_no_pair_could_be_read_says_why(tmp_path):
    files = [write(tmp_path / f"{i}.parquet", [], [], [], counts={"no image": 3, "dotted name": i}) for i in range(2)]
    with pytest.raises(DataError, match=r"No pair of the pool could be read \(dotted name 1; no image 6\)"):
        select(files, 0.5, HALVES, tmp_path / "out")


def test_a_score_that_is_no_number_is_refused_with_file_and_count(tmp_path):
    files, *_ = pool(tmp_path)
    uids = [f"{row:032x}" for row in range(3)]
    files.append(write(tmp_path / "bad.parquet", uids, [0.1, 0.2, 0.3], [np.nan, 0.1, np.inf]))
    with pytest.raises(DataError, match=r"not finite numbers in .*bad\.parquet \(2 of clip\)"):
        select(files, 0.5, HALVES, tmp_path / "out")
    assert select(files, 0.5, {"sieve": 1.0}, tmp_path / "out").kept == 251  # what has no weight is not looked at


def test_files_of_two_configs_are_refused_with_both(tmp_path):
    files, *_ = pool(tmp_path)
    files.append(write(tmp_path / "other.parquet", ["0" * 32], [0.1], [0.1], config_hash="def"))
    with pytest.raises(DataError, match=r"0\.parquet was scored with config abc, .*other\.parquet with def"):
        select(files, 0.5, HALVES, tmp_path / "out")


def test_a_missing_signal_is_named_with_the_file(tmp_path):
    files, *_ = pool(tmp_path)
    files.append(write(tmp_path / "without.parquet", ["0" * 32], [0.1]))
    with pytest.raises(DataError, match=r"without\.parquet has no column 'clip'"):
        select(files, 0.5, HALVES, tmp_path / "out")


def test_arguments_that_are_not_allowed_are_refused_before_anything_is_written(tmp_path):
    files, *_ = pool(tmp_path)
    with pytest.raises(ValueError, match=r"fraction = 0\.0"):
        select(files, 0.0, HALVES, tmp_path / "out")
    with pytest.raises(ValueError, match="sum to 1"):
        select(files, 0.5, {"sieve": 0.9}, tmp_path / "out")
    with pytest.raises(DataError, match=r"fraction 0\.001 keeps no sample of 500"):
        select(files, 0.001, HALVES, tmp_path / "out")
    with pytest.raises(DataError, match="no score files"):
        select([], 0.5, HALVES, tmp_path / "out")
    assert not (tmp_path / "out").exists()
