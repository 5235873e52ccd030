# SPDX-License-Identifier: Apache-2.0
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes_lib.data import samples, shards
from recipes_lib.data.pairs import PairSet
from recipes_lib.data.shard_pairs import ShardPairs
from recipes_lib.errors import DamagedImage, DataError

pytestmark = pytest.mark.usefixtures("recipes_cache")


def uid(number: int) -> str:
    return f"{number % 3:016x}{7919 * number % 1000:016x}"  # not in the order of the pairs, with equal first halves


def pool(folder: Path, count: int = 20, per_shard: int = 6) -> tuple[PairSet, list[Path]]:
    images = torch.randint(0, 256, (count, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    texts, uids = (tuple(make(i) for i in range(count)) for make in (lambda i: f"Krug № {i}", uid))
    made = PairSet(images, None, (), texts=texts, uids=uids)
    return made, shards.write(made, folder, per_shard)


def change(path: Path, changes: dict[str, bytes | None]) -> None:
    with tarfile.open(path) as old:
        members = [(member, changes.get(member.name, old.extractfile(member).read())) for member in old]
    with tarfile.open(path, "w") as new:
        for member, data in members:
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))


def subset_file(path: Path, uids: list[str], *, ordered: bool = True) -> Path:
    pairs = [(int(text[:16], 16), int(text[16:], 16)) for text in uids]
    np.save(path, np.array(sorted(pairs) if ordered else pairs, "u8,u8"))
    return path


def test_pairs_by_number_are_those_that_were_written(tmp_path):
    made, paths = pool(tmp_path / "pool")
    found = ShardPairs.index(paths, on_damage="stop")
    assert len(found) == 20
    assert (found.labels, found.class_names) == (None, ())
    for index in (19, 0, 7):
        assert (found.text(index), found.uid(index)) == (made.texts[index], made.uids[index])
        assert np.array_equal(np.array(found.open(index)), made.images[index].permute(1, 2, 0).numpy())


def test_the_second_time_the_index_comes_from_disk(tmp_path, recipes_cache, monkeypatch):
    _, paths = pool(tmp_path / "pool")
    first = ShardPairs.index(paths, on_damage="stop")
    monkeypatch.setattr(samples, "entries", None)
    again = ShardPairs.index(paths, on_damage="stop")
    assert np.array_equal(first.rows, again.rows)
    assert len(list(recipes_cache.glob("shard-*.npz"))) == len(paths)


def test_a_changed_shard_is_looked_through_again(tmp_path):
    _, paths = pool(tmp_path / "pool")
    ShardPairs.index(paths, on_damage="stop")
    change(paths[1], {"000000006.txt": b"another text, longer than the first"})
    assert ShardPairs.index(paths, on_damage="stop").text(6) == "another text, longer than the first"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:100], lambda data: data[:300] + b"XXXX" + data[304:], lambda data: b""]
)
def test_a_damaged_index_is_made_again_with_a_warning(tmp_path, recipes_cache, damage):
    made, paths = pool(tmp_path / "pool", per_shard=20)
    ShardPairs.index(paths, on_damage="stop")
    (kept,) = recipes_cache.glob("shard-*.npz")
    kept.write_bytes(damage(kept.read_bytes()))
    with pytest.warns(UserWarning, match=r"The index .* is damaged .*; making it again"):
        assert ShardPairs.index(paths, on_damage="stop").text(19) == made.texts[19]


def test_without_a_cache_folder_the_index_is_made_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECIPES_CACHE", str(tmp_path / "file" / "below"))
    _, paths = pool(tmp_path / "pool", per_shard=20)
    with pytest.warns(UserWarning, match="set RECIPES_CACHE"):
        assert len(ShardPairs.index(paths, on_damage="stop")) == 20


@pytest.mark.parametrize("again", [False, True])
def test_damage_stops_or_is_counted_also_out_of_the_kept_index(tmp_path, again):
    _, paths = pool(tmp_path / "pool")
    change(paths[1], {"000000007.txt": None, "000000009.json": b"{}", "000000010.txt": b""})
    if again:
        ShardPairs.index(paths, on_damage="skip")
    with pytest.raises(DataError, match=r"00000001\.tar: sample '000000007' has no text"):
        ShardPairs.index(paths, on_damage="stop")
    found = ShardPairs.index(paths, on_damage="skip")
    assert found.counts == {"no text": 1, "malformed uid": 1, "empty text": 1}
    assert [int(found.text(i).split()[-1]) for i in (0, 5, 6, 7)] == [0, 5, 6, 8]


def test_a_damaged_image_is_found_when_asked_and_named_when_opened(tmp_path):
    _, paths = pool(tmp_path / "pool")
    change(paths[2], {"000000013.png": b"\x89PNG\r\n"})
    found = ShardPairs.index(paths, on_damage="stop")
    assert found.damaged(threads=2) == [13]
    with pytest.raises(DamagedImage, match=rf"00000002\.tar: the image of the pair with uid {uid(13)} cannot be read"):
        found.open(13)


def test_missing_and_empty_shards_are_named(tmp_path):
    _, paths = pool(tmp_path / "pool")
    with pytest.raises(DataError, match=r"Shard .*no\.tar is missing"):
        ShardPairs.index([*paths, tmp_path / "no.tar"], on_damage="skip")
    paths[0].write_bytes(bytes(1024))
    with pytest.raises(DataError, match="None of the 1 shards holds a pair"):
        ShardPairs.index(paths[:1], on_damage="skip")


def test_a_subset_keeps_the_pairs_of_its_uids(tmp_path):
    made, paths = pool(tmp_path / "pool")
    found = ShardPairs.index(paths, on_damage="stop")
    wanted = [uid(17), uid(2), uid(8), "f" * 32]
    kept = found.subset(subset_file(tmp_path / "subset.npy", wanted))
    assert [kept.text(i) for i in range(3)] == [made.texts[i] for i in (2, 8, 17)]
    assert len(kept) == 3
    assert kept.counts == {"subset uid not in the shards": 1}


def test_a_uid_that_is_twice_in_a_subset_counts_twice(tmp_path):
    _, paths = pool(tmp_path / "pool")
    found = ShardPairs.index(paths, on_damage="stop")
    kept = found.subset(subset_file(tmp_path / "subset.npy", [uid(4), uid(9), uid(4)]))
    assert [kept.uid(i) for i in range(len(kept))] == [uid(4), uid(4), uid(9)]


@pytest.mark.parametrize("edge", ["0" * 32, "0" * 31 + "1", "f" * 16 + "0" * 16, "0" * 16 + "f" * 16, "1" + "0" * 31])
def test_uids_of_many_zeros_are_found_among_each_other(tmp_path, edge):
    _, paths = pool(tmp_path / "pool")
    change(paths[0], {"000000000.json": b'{"uid": "%s"}' % edge.encode()})
    found = ShardPairs.index(paths, on_damage="stop")
    others = ["0" * 32, "0" * 31 + "1", "f" * 16 + "0" * 16, "0" * 16 + "f" * 16, "1" + "0" * 31]
    kept = found.subset(subset_file(tmp_path / "subset.npy", others))
    assert [kept.uid(i) for i in range(len(kept))] == [edge]
    assert kept.counts == {"subset uid not in the shards": 4}


def test_subset_files_of_another_form_are_refused(tmp_path):
    _, paths = pool(tmp_path / "pool")
    found, path = ShardPairs.index(paths, on_damage="stop"), tmp_path / "subset.npy"
    for content, message in (
        (np.arange(4), r"holds int64 \[4\], not u8,u8 \[n\]"),
        (np.zeros((2, 2), "u8,u8"), r"\[2, 2\], not u8,u8"),
        (np.array([{}], object), "cannot be read"),
    ):
        np.save(path, content, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            found.subset(path)
    with pytest.raises(DataError, match=r"is not sorted \(row 1\)"):
        found.subset(subset_file(path, [uid(5), uid(3)], ordered=False))
    with pytest.raises(DataError, match="None of the 1 uids"):
        found.subset(subset_file(path, ["f" * 32]))
    path.write_bytes(b"raw")
    with pytest.raises(DataError, match="cannot be read"):
        found.subset(path)


def test_the_order_goes_through_shards_and_survives_a_selection(tmp_path):
    _, paths = pool(tmp_path / "pool")
    found = ShardPairs.index(paths, on_damage="stop", window=2)
    assert sorted(found.order(0, 0)[:].tolist()) == list(range(20))
    some = found.select(torch.tensor([0, 5, 6, 13, 19]))
    assert sorted(some.order(0, 3)[:].tolist()) == list(range(5))
    assert [some.uid(i) for i in (1, 3)] == [uid(5), uid(13)]
    scattered = found.select(torch.tensor([19, 0, 13, 1, 19]))  # any order, and twice
    assert sorted(scattered.order(0, 3)[:].tolist()) == list(range(5))


def test_the_index_takes_44_bytes_a_pair(tmp_path):
    _, paths = pool(tmp_path / "pool")
    assert ShardPairs.index(paths, on_damage="stop").rows.nbytes == 20 * 44
