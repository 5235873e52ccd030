# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from recipes_lib.data.pools import score_files  # noqa: E402
from recipes_lib.data.pools.score_files import Scores  # noqa: E402
from recipes_lib.data.pools.uids import to_hex  # noqa: E402
from recipes_lib.errors import DataError, RunError  # noqa: E402


def scores(count: int, start: int = 0, *, clip: bool = True) -> Scores:
    rows = range(start, start + count)
    return Scores(
        uids=[f"{row * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}" for row in rows],
        keys=[f"{row:06d}" for row in rows],
        texts=["" if row % 5 == 0 else f"größe {row} 🫖" for row in rows],
        captions=[[f"a mug {row}", ""] for row in rows],
        sieve=np.array([np.sin(row) for row in rows], np.float32),
        clip=np.array([np.cos(row) for row in rows], np.float32) if clip else None,
    )


def assert_equal(left: Scores, right: Scores) -> None:
    for name in ("uids", "keys", "texts", "captions"):
        assert getattr(left, name) == getattr(right, name)
    np.testing.assert_array_equal(left.sieve, right.sieve)
    assert (left.clip is None) == (right.clip is None)
    if left.clip is not None:
        np.testing.assert_array_equal(left.clip, right.clip)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_what_was_written_is_read(tmp_path, count, clip):
    written = scores(count, clip=clip)
    score_files.write(tmp_path / "0.parquet", written, config_hash="abc", counts={"image": 2})
    assert_equal(score_files.read(tmp_path / "0.parquet"), written)
    found = score_files.facts(tmp_path / "0.parquet")
    assert found.config_hash == "abc"
    assert found.rows == count
    assert found.counts == {"image": 2}
    assert found.signals == (("sieve", "clip") if clip else ("sieve",))
    assert [path.name for path in tmp_path.iterdir()] == ["0.parquet"]


def test_any_parquet_reader_finds_the_columns(tmp_path):
    score_files.write(tmp_path / "0.parquet", scores(3), config_hash="abc", counts={})
    table = parquet.read_table(tmp_path / "0.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types["uid"] == types["key"] == types["text"] == "string"
    assert types["captions"].startswith("list<")
    assert types["sieve"] == types["clip"] == "float"
    assert json.loads(table.schema.metadata[b"ssl-cookbook"])["rows"] == 3


def test_equal_scores_give_equal_bytes(tmp_path):
    for name, order in (("a", ["x", "y"]), ("b", ["y", "x"])):
        counts = dict.fromkeys(order, 1)
        score_files.write(tmp_path / name, scores(50), config_hash="abc", counts=counts)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_columns_come_in_batches_and_uids_as_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(score_files, "BATCH", 7)
    written = scores(40)
    score_files.write(tmp_path / "0.parquet", written, config_hash="abc", counts={})
    batches = list(score_files.columns(tmp_path / "0.parquet", ["clip", "uid"]))
    assert max(len(batch["uid"]) for batch in batches) == 7
    assert [uid for batch in batches for uid in to_hex(batch["uid"])] == written.uids
    np.testing.assert_array_equal(np.concatenate([batch["clip"] for batch in batches]), written.clip)


def test_a_file_that_another_tool_wrote_anew_is_read(tmp_path):
    path, written = tmp_path / "0.parquet", scores(40)
    score_files.write(path, written, config_hash="abc", counts={})
    table = parquet.read_table(path)
    table = table.set_column(0, "uid", table["uid"].cast(pa.large_string()))
    parquet.write_table(table, path)
    assert [uid for batch in score_files.columns(path, ["uid"]) for uid in to_hex(batch["uid"])] == written.uids


def test_parts_are_joined_in_their_order():
    assert_equal(score_files.join([scores(3), scores(0), scores(4, 3)], clip=True), scores(7))
    assert_equal(score_files.join([], clip=True), scores(0))
    assert_equal(score_files.join([], clip=False), scores(0, clip=False))


def test_a_complete_file_is_known_by_its_config(tmp_path):
    path = tmp_path / "0.parquet"
    assert not score_files.complete(path, "abc")
    score_files.write(path, scores(3), config_hash="abc", counts={})
    assert score_files.complete(path, "abc")
    with pytest.raises(RunError, match=r"0\.parquet was scored with config abc, and this run's is def\. Score into"):
        score_files.complete(path, "def")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_named_and_never_taken_for_complete(tmp_path, share):
    path = tmp_path / "0.parquet"
    score_files.write(path, scores(300), config_hash="abc", counts={})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    for call in (
        lambda: score_files.complete(path, "abc"),
        lambda: score_files.read(path),
        lambda: list(score_files.columns(path, ["sieve"])),
    ):
        with pytest.raises(DataError, match=r"0\.parquet is truncated or damaged .* Remove it"):
            call()


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "0.parquet"
    score_files.write(path, scores(300), config_hash="abc", counts={})
    content = bytearray(path.read_bytes())
    column = parquet.ParquetFile(path).metadata.row_group(0).column(4)
    assert column.path_in_schema == "sieve"
    content[column.data_page_offset + column.total_compressed_size - 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="truncated or damaged"):
        list(score_files.columns(path, ["sieve"]))


def test_a_parquet_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "0.parquet"
    parquet.write_table(pa.table({"uid": ["0" * 32], "sieve": [1.0]}), path)
    with pytest.raises(DataError, match="is a parquet file, but no score file"):
        score_files.complete(path, "abc")


def test_an_absent_file_and_an_absent_column_are_named(tmp_path):
    path = tmp_path / "0.parquet"
    with pytest.raises(DataError, match="is not there"):
        score_files.read(path)
    score_files.write(path, scores(3, clip=False), config_hash="abc", counts={})
    with pytest.raises(DataError, match=r"0\.parquet has no column 'clip'; it has: uid, key, text, captions, sieve"):
        list(score_files.columns(path, ["clip"]))


def test_a_malformed_uid_is_neither_written_nor_read(tmp_path):
    path, good = tmp_path / "0.parquet", scores(3)
    good.uids[1] = "tea"
    with pytest.raises(DataError, match="'tea'"):
        score_files.write(path, good, config_hash="abc", counts={})
    assert list(tmp_path.iterdir()) == []
    for bad in ("tea", None, "g" * 32):
        parquet.write_table(pa.table({"uid": pa.array(["0" * 32, bad])}), path)
        with pytest.raises(DataError, match=r"0\.parquet: uid .* \(row 1\) is not 32 hexadecimal digits"):
            list(score_files.columns(path, ["uid"]))


def test_columns_of_different_lengths_are_refused(tmp_path):
    good = scores(3)
    good.keys.pop()
    with pytest.raises(ValueError, match="length"):
        score_files.write(tmp_path / "0.parquet", good, config_hash="abc", counts={})
