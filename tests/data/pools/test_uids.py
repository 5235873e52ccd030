# SPDX-License-Identifier: Apache-2.0
import hashlib
import os

import numpy as np
import pytest

from recipes_lib.data.pools.uids import (
    as_bytes,
    from_bytes,
    is_uid,
    of_halves,
    rows_kept,
    save_subset,
    times_kept,
    to_hex,
    to_u8,
    verify_subset,
    writing,
)
from recipes_lib.errors import DataError

UIDS = [
    "139e4a9b22a614771f06c700a8ebe150",
    "6e356964a967af455c8016b75d691203",
    "00000000000000000000000000000001",
    "ffffffffffffffff0000000000000000",
]
SORTED = [
    (0, 1),
    (1413649363202610295, 2235693070683988304),
    (7941369398997528389, 6665352425310327299),
    (18446744073709551615, 0),
]
SHA256 = "f5d11e403130bad470ead4d2a73c28b4428d7ddfb043553dd73f319f596d1ef3"


def resharded(subset: np.ndarray, uid: str) -> int:
    """How often DataComp's resharder writes a sample: its rule, with NumPy's own search."""
    wanted = np.array([(int(uid[:16], 16), int(uid[16:], 16))], np.dtype("u8,u8"))
    return int(np.searchsorted(subset, wanted, side="right")[0] - np.searchsorted(subset, wanted, side="left")[0])


def random_uids(count: int, seed: int = 0) -> list[str]:
    return [row.tobytes().hex() for row in np.random.default_rng(seed).integers(0, 256, (count, 16), np.uint8)]


def test_a_subset_has_the_bytes_of_the_card(tmp_path):
    subset = save_subset(tmp_path / "subset.npy", UIDS)
    loaded = np.load(tmp_path / "subset.npy")
    assert loaded.dtype == np.dtype("u8,u8")
    assert loaded.shape == (4,)
    assert loaded.tolist() == SORTED == subset.tolist()
    assert len(loaded.tobytes()) == 64
    assert hashlib.sha256(loaded.tobytes()).hexdigest() == SHA256
    assert (tmp_path / "subset.npy").read_bytes().startswith(b"\x93NUMPY")
    assert [path.name for path in tmp_path.iterdir()] == ["subset.npy"]


def test_the_resharders_rule_finds_each_kept_sample_once_and_no_other(tmp_path):
    uids = random_uids(300)
    save_subset(tmp_path / "subset.npy", uids[::3])
    subset = verify_subset(tmp_path / "subset.npy", to_u8(uids))
    found = [resharded(subset, uid) for uid in uids]
    assert found == [int(row % 3 == 0) for row in range(300)]
    assert times_kept(subset, to_u8(uids)).tolist() == found


def test_uids_survive_being_numbers():
    assert to_hex(to_u8(UIDS)) == UIDS
    assert to_hex(from_bytes(as_bytes(to_u8(UIDS)))) == UIDS
    assert to_u8([]).tolist() == []
    assert as_bytes(to_u8([])).shape == (0,)
    assert to_u8(["ABCDEF" + "0" * 26]) == to_u8(["abcdef" + "0" * 26])


def test_sixteen_bytes_sort_as_the_numbers_do():
    uids = to_u8([*random_uids(500), "0" * 32, "f" * 32, "00" * 15 + "ff", "ff" + "00" * 15, "7f" + "ff" * 15])
    np.testing.assert_array_equal(from_bytes(np.sort(as_bytes(uids))), np.sort(uids))


@pytest.mark.parametrize(
    "bad", ["", "12", "g" * 32, "é" * 32, " " * 32, "0" * 31, "0" * 33, "0x" + "0" * 30, "+" + "1" * 31]
)
def test_a_malformed_uid_is_named_with_its_row(bad):
    with pytest.raises(DataError, match=r"row 1\) is not 32 hexadecimal digits") as caught:
        to_u8([UIDS[0], bad, UIDS[1]])
    assert repr(bad) in str(caught.value)


def test_lengths_that_make_up_for_each_other_are_noticed():
    with pytest.raises(DataError, match="row 0"):
        to_u8(["0" * 31, "0" * 33])


def test_a_uid_that_comes_twice_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(DataError, match=rf"uid {UIDS[1]} is to be kept twice \(2 such rows\)"):
        save_subset(tmp_path / "subset.npy", [*UIDS, UIDS[1], UIDS[1]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "row"),
    [([(0, 1), (0, 1)], 1), ([(0, 2), (0, 1)], 1), ([(0, 0), (1, 0), (0, 2**64 - 1)], 2)],
    ids=["twice", "low half", "high half"],
)
def test_a_file_out_of_order_is_refused_with_the_row(tmp_path, rows, row):
    np.save(tmp_path / "subset.npy", np.array(rows, np.dtype("u8,u8")))
    with pytest.raises(DataError, match=f"first violation is at row {row}"):
        verify_subset(tmp_path / "subset.npy")


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((2, 2), "u8,u8"), np.zeros(3, "i8,i8"), np.zeros((), "u8,u8")])
def test_a_file_of_another_kind_is_refused_with_what_it_holds(tmp_path, array):
    np.save(tmp_path / "subset.npy", array)
    with pytest.raises(DataError, match=r"a uid file holds u8,u8 \[n\]"):
        verify_subset(tmp_path / "subset.npy")


def test_a_file_that_is_no_array_is_refused(tmp_path):
    path = tmp_path / "subset.npy"
    for content in (b"", b"raw bytes without a magic", np.array([{}], object)):
        np.save(path, content) if isinstance(content, np.ndarray) else path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as a uid file"):
            verify_subset(path)
    with pytest.raises(DataError, match="cannot be read"):
        verify_subset(tmp_path / "absent.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(DataError, match="it is no plain file"):
        verify_subset(tmp_path / "pipe.npy")
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(2))
    with pytest.raises(DataError, match="an archive"):
        verify_subset(path)


def test_a_subset_of_another_pool_is_refused(tmp_path):
    save_subset(tmp_path / "subset.npy", UIDS)
    with pytest.raises(DataError, match=f"keeps 1 uids that the pool does not have, the first {UIDS[2]}"):
        verify_subset(tmp_path / "subset.npy", to_u8([UIDS[0], UIDS[1], UIDS[3]]))
    assert len(verify_subset(tmp_path / "subset.npy", to_u8(UIDS))) == 4


def test_no_uid_at_all_makes_an_empty_file(tmp_path):
    save_subset(tmp_path / "subset.npy", [])
    assert len(verify_subset(tmp_path / "subset.npy")) == 0


def test_a_file_written_in_parts_has_the_bytes_that_numpy_writes(tmp_path):
    wanted = np.sort(to_u8(random_uids(90)))
    with writing(tmp_path / "parts.npy", 90) as append:
        for part in (wanted[:40], wanted[40:40], wanted[40:]):
            append(part)
    np.save(tmp_path / "whole.npy", wanted)
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    save_subset(tmp_path / "subset.npy", wanted[::-1])
    assert (tmp_path / "subset.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([[3, 1]], "not strictly increasing"),
        ([[1, 1]], "not strictly increasing"),
        ([[1, 2], [2]], "not strictly increasing"),
        ([[1, 2], [], [0]], "not strictly increasing"),
        ([[1, 2]], "2 uids for .*, which was to hold 3"),
    ],
)
def test_a_file_that_no_resharder_may_read_is_not_written(tmp_path, parts, words):
    (tmp_path / "subset.npy").write_bytes(b"what was there")

    def write() -> None:
        with writing(tmp_path / "subset.npy", 3) as append:
            for low in parts:
                append(of_halves(np.zeros(len(low)), np.array(low)))

    with pytest.raises(ValueError, match=words):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["subset.npy"]
    assert (tmp_path / "subset.npy").read_bytes() == b"what was there"


def test_rows_that_a_subset_keeps_and_uids_that_are_nowhere_are_told():
    own = to_u8([UIDS[1], UIDS[0], UIDS[1], UIDS[3]])  # one comes twice
    rows, absent = rows_kept(np.sort(to_u8([UIDS[1], UIDS[2], UIDS[3]])), own)
    assert rows.tolist() == [0, 2, 3]
    assert absent == 1
    assert [part.tolist() for part in map(np.asarray, rows_kept(to_u8([]), own))] == [[], 0]


@pytest.mark.parametrize(("text", "found"), [(UIDS[0], True), (UIDS[0].upper(), False), ("0" * 31, False), ("", False)])
def test_a_uid_is_written_in_lower_case(text, found):
    assert is_uid(text) == found
