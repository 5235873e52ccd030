# SPDX-License-Identifier: Apache-2.0
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes_lib.data import decode
from recipes_lib.data.pairs import PairSet
from recipes_lib.data.pools import samples, shards
from recipes_lib.data.pools.shard_pairs import ShardPairs
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


def subset_of(uids: list[str]) -> np.ndarray:
    return np.array(sorted((int(text[:16], 16), int(text[16:], 16)) for text in uids), "u8,u8")


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
    change(paths[1], {"000000007.txt": None, "000000009.json": b'{"uid": 9}', "000000010.txt": b""})
    if again:
        ShardPairs.index(paths, on_damage="skip")
    with pytest.raises(DataError, match=r"00000001\.tar: sample '000000007' has no text"):
        ShardPairs.index(paths, on_damage="stop")
    found = ShardPairs.index(paths, on_damage="skip")
    assert found.counts == {"no text": 1, "malformed uid": 1, "empty text": 1}
    assert [int(found.text(i).split()[-1]) for i in (0, 5, 6, 7)] == [0, 5, 6, 8]


def test_training_needs_no_uids_and_reads_captions_out_of_json(tmp_path):
    made, paths = pool(tmp_path / "pool")
    change(paths[1], {"000000007.json": None, "000000009.json": b"{}"})
    change(paths[2], {"000000012.txt": None, "000000012.json": '{"caption": "Krug № 12"}'.encode()})
    for _ in range(2):  # out of the kept index too
        found = ShardPairs.index(paths, on_damage="stop")
        assert found.counts == {"no uid": 3}
        assert [found.text(i) for i in range(20)] == list(made.texts)
        assert [i for i in range(20) if found.uid(i) is None] == [7, 9, 12]
    with pytest.raises(DataError, match=r"3 of the 20 pairs have none\. Add a uid to their JSON, or train without"):
        found.subset(subset_of([uid(0)]))


def test_an_image_without_uid_that_cannot_be_read_is_named_by_its_place(tmp_path):
    _, paths = pool(tmp_path / "pool")
    change(paths[0], {"000000000.png": b"\x89PNG\r\n", "000000000.json": None})
    with pytest.raises(DamagedImage, match=r"00000000\.tar: the image of the pair at byte 512 cannot be read"):
        ShardPairs.index(paths, on_damage="stop").open(0)


def test_pairs_whose_uid_an_earlier_pair_has_are_counted(tmp_path):
    _, paths = pool(tmp_path / "pool")
    (tmp_path / "pool" / "copy.tar").write_bytes(paths[1].read_bytes())
    found = ShardPairs.index([*paths, tmp_path / "pool" / "copy.tar"], on_damage="stop")
    assert len(found) == 26
    assert found.counts == {"uid of an earlier pair": 6}
    assert len(found.subset(subset_of([uid(6), uid(0)]))) == 3


def test_a_shard_with_a_tail_of_zeros_is_counted(tmp_path):
    _, paths = pool(tmp_path / "pool")
    paths[0].write_bytes(paths[0].read_bytes() + bytes(100_000))
    found = ShardPairs.index(paths, on_damage="stop")
    assert (len(found), found.counts) == (20, {"long tail of zeros in a shard": 1})


def test_a_damaged_image_is_found_when_asked_and_named_when_opened(tmp_path):
    _, paths = pool(tmp_path / "pool")
    change(paths[2], {"000000013.png": b"\x89PNG\r\n"})
    found = ShardPairs.index(paths, on_damage="stop")
    assert found.check(threads=2).faults == {13: "damaged image"}
    with pytest.raises(DamagedImage, match=rf"00000002\.tar: the image of the pair with uid {uid(13)} cannot be read"):
        found.open(13)


def test_what_decoding_does_to_images_is_counted(tmp_path):
    _, paths = pool(tmp_path / "pool")
    grey, clear = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((6, 5), 40_000, np.uint16)).save(grey, "png")
    Image.new("RGBA", (5, 6), (0, 0, 0, 0)).save(clear, "png")
    change(paths[0], {"000000001.png": grey.getvalue(), "000000002.png": clear.getvalue()})
    found = ShardPairs.index(paths, on_damage="stop")
    assert found.check(threads=2).remarks == {decode.SIXTEEN_BITS: 1, decode.TRANSPARENT: 1}
    assert found.open(1).getpixel((0, 0)) == (156, 156, 156)  # 40,000 / 256
    assert found.open(2).getpixel((0, 0)) == (255, 255, 255)


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
    kept = found.subset(subset_of(wanted))
    assert [kept.text(i) for i in range(3)] == [made.texts[i] for i in (2, 8, 17)]
    assert len(kept) == 3
    assert kept.counts == {"subset uid not in the shards": 1}


@pytest.mark.parametrize("edge", ["0" * 32, "0" * 31 + "1", "f" * 16 + "0" * 16, "0" * 16 + "f" * 16, "1" + "0" * 31])
def test_uids_of_many_zeros_are_found_among_each_other(tmp_path, edge):
    _, paths = pool(tmp_path / "pool")
    change(paths[0], {"000000000.json": b'{"uid": "%s"}' % edge.encode()})
    found = ShardPairs.index(paths, on_damage="stop")
    others = ["0" * 32, "0" * 31 + "1", "f" * 16 + "0" * 16, "0" * 16 + "f" * 16, "1" + "0" * 31]
    kept = found.subset(subset_of(others))
    assert [kept.uid(i) for i in range(len(kept))] == [edge]
    assert kept.counts == {"subset uid not in the shards": 4}


def test_of_a_subset_of_another_pool_nothing_is_kept(tmp_path):
    _, paths = pool(tmp_path / "pool")
    kept = ShardPairs.index(paths, on_damage="stop").subset(subset_of(["f" * 32]))
    assert (len(kept), kept.counts) == (0, {"subset uid not in the shards": 1})


def test_the_order_goes_through_shards_and_survives_a_selection(tmp_path):
    _, paths = pool(tmp_path / "pool")
    found = ShardPairs.index(paths, on_damage="stop", window=2)
    assert sorted(found.order(0, 0)[:].tolist()) == list(range(20))
    some = found.select(torch.tensor([0, 5, 6, 13, 19]))
    assert sorted(some.order(0, 3)[:].tolist()) == list(range(5))
    assert [some.uid(i) for i in (1, 3)] == [uid(5), uid(13)]
    scattered = found.select(torch.tensor([19, 0, 13, 1, 19]))  # any order, and twice
    assert sorted(scattered.order(0, 3)[:].tolist()) == list(range(5))


def test_the_index_takes_46_bytes_a_pair(tmp_path):
    _, paths = pool(tmp_path / "pool")
    assert ShardPairs.index(paths, on_damage="stop").rows.nbytes == 20 * 46
