# SPDX-License-Identifier: Apache-2.0
import csv
import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes_lib.data.pairs import Pair, PairSet
from recipes_lib.data.pools import shards
from recipes_lib.errors import DataError


def pairs(count: int) -> PairSet:
    images = torch.randint(0, 256, (count, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    texts = tuple(f"a plate, No. {i} \N{FORK AND KNIFE}" for i in range(count))
    return PairSet(images, None, (), texts=texts, uids=tuple(f"{i:032x}" for i in range(count)))


def pair(**changes) -> Pair:
    return Pair(**{"uid": f"{1:032x}", "key": "a", "text": "a mug", "image": Image.new("RGB", (2, 2)), **changes})


def damaged(folder: Path) -> Path:
    """A shard of ten: sample 2 without its text, 4 with half an image, 6 without words, 8 with very many."""
    (path,) = shards.write(pairs(10), folder, 10)
    changed = {
        "000000002.txt": None,
        "000000004.png": b"\x89PNG\r\n",
        "000000006.txt": b" ",
        "000000008.txt": b"ab " * 4000,
    }
    with tarfile.open(path) as old, tarfile.open(folder / "damaged.tar", "w") as new:
        for member in old:
            data = changed.get(member.name, old.extractfile(member).read())
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return folder / "damaged.tar"


def test_pairs_come_back_as_they_were_written(tmp_path):
    paths = shards.write(pairs(7), tmp_path / "pool", 3)
    assert [path.name for path in paths] == ["00000000.tar", "00000001.tar", "00000002.tar"]
    back = [pair for path in paths for pair in shards.read(path, on_damage="stop")]
    assert [pair.text for pair in back] == list(pairs(7).texts)
    assert [pair.uid for pair in back] == list(pairs(7).uids)
    assert [pair.key for pair in back] == [f"{i:09d}" for i in range(7)]
    images = torch.stack([torch.from_numpy(np.array(pair.image)).permute(2, 0, 1) for pair in back])
    assert torch.equal(images, pairs(7).images)


def test_what_else_is_known_of_a_pair_comes_back(tmp_path):
    (path,) = shards.write([pair(extra={"width": 2, "url": "é"})], tmp_path / "pool", 3)
    (back,) = shards.read(path, on_damage="stop")
    assert back.extra == {"width": 2, "url": "é"}


def test_equal_pairs_give_equal_bytes(tmp_path):
    first = shards.write(pairs(5), tmp_path / "a", 3)
    again = [
        shards.write(list(shards.read(path, on_damage="stop")), tmp_path / f"b{i}", 3)[0]
        for i, path in enumerate(first)
    ]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_a_pool_appears_as_a_whole_or_not_at_all(tmp_path):
    def stops():
        yield from (pair(uid=f"{i:032x}", key=str(i)) for i in range(5))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(stops(), tmp_path / "pool", 2)
    assert not (tmp_path / "pool").exists()
    assert len(shards.write(pairs(4), tmp_path / "pool", 2)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(DataError, match=r"is not empty\. Name another folder"):
        shards.write(pairs(2), tmp_path, 2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([pair(key="a.b")], "key = 'a.b' is not allowed"),
        ([pair(key="../a")], "key = '../a' is not allowed"),
        ([pair(key="/a")], "key = '/a' is not allowed"),
        ([pair(uid="12")], "uid = '12' is not allowed"),
        ([pair(uid="A" * 32)], "in lower case"),
        ([pair(), pair(key="b")], "two pairs of a shard have key 'b' or uid"),
        ([pair(), pair(uid=f"{2:032x}")], "two pairs of a shard have key 'a' or uid"),
        ([], "there are no pairs to write"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        shards.write(bad, tmp_path / "pool", 10)
    assert not (tmp_path / "pool").exists()


def test_stop_names_shard_and_sample_in_one_line_after_the_good_ones(tmp_path):
    path = damaged(tmp_path / "pool")
    stream = shards.read(path, on_damage="stop")
    assert [int(next(stream).key) for _ in range(2)] == [0, 1]
    with pytest.raises(DataError) as caught:
        next(stream)
    assert "\n" not in str(caught.value)
    assert (
        f"Shard {path}: sample '000000002' has no text, as a .txt or as the caption of its JSON. Copy it again"
        in str(caught.value)
    )


def test_skip_counts_by_reason_and_loses_no_other_pair(tmp_path):
    counts = Counter()
    back = list(shards.read(damaged(tmp_path / "pool"), on_damage="skip", counts=counts))
    assert [int(pair.key) for pair in back] == [0, 1, 3, 5, 6, 7, 8, 9]
    assert counts == {"no text": 1, "damaged image": 1, "empty text": 1, "long text": 1}
    assert len(back[6].text) == 12_000


def test_a_cut_shard_gives_its_whole_pairs_first(tmp_path):
    (path,) = shards.write(pairs(4), tmp_path / "pool", 4)
    path.write_bytes(path.read_bytes()[:7000])
    counts = Counter()
    assert [pair.key for pair in shards.read(path, on_damage="skip", counts=counts)] == ["000000000", "000000001"]
    assert counts == {"damaged shard": 1}
    with pytest.raises(DataError, match=r"its last whole sample is '000000001'"):
        list(shards.read(path, on_damage="stop"))


@pytest.mark.parametrize("on_damage", ["stop", "skip"])
def test_a_missing_shard_is_never_passed_over(tmp_path, on_damage):
    with pytest.raises(DataError, match=r"Shard .*no\.tar is missing"):
        list(shards.read(tmp_path / "no.tar", on_damage=on_damage))


def test_shards_are_found_by_folder_file_and_pattern(tmp_path):
    paths = shards.write(pairs(12), tmp_path / "pool", 1)
    (tmp_path / "pool" / ".hidden.tar").touch()
    (tmp_path / "pool" / "notes.txt").touch()
    assert shards.find(tmp_path / "pool") == paths
    assert shards.find(str(paths[3])) == [paths[3]]
    assert shards.find(f"{tmp_path}/pool/*.tar") == paths
    assert shards.find(f"{tmp_path}/pool/{{00000008..00000011}}.tar") == paths[8:]
    assert shards.find(f"{tmp_path}/{{pool,pool}}/0000000{{1,{{3..4}}}}.tar") == [paths[1], paths[3], paths[4]]


def test_a_shard_that_is_not_there_is_named(tmp_path):
    shards.write(pairs(2), tmp_path / "pool", 1)
    with pytest.raises(DataError, match=r"There is no shard .*/00000002\.tar. Copy it, or correct data\.root"):
        shards.find(f"{tmp_path}/pool/{{00000000..00000002}}.tar")
    with pytest.raises(DataError, match=r"There is no \.tar file in"):
        shards.find(tmp_path)
    with pytest.raises(DataError, match=r"There is no shard .*/no"):
        shards.find(tmp_path / "no")


def test_a_range_that_runs_backwards_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"The range \{5\.\.1\} of shards runs backwards\. Write \{1\.\.5\}"):
        shards.find(f"{tmp_path}/{{5..1}}.tar")


@pytest.mark.parametrize("pattern", ["{0..99999999999}.tar", "{0..999999}{0..999999}.tar", "{0..%s}" % ("9" * 100)])
def test_a_range_of_any_length_is_refused_at_its_first_missing_shard(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="There is no shard 0"):
        shards.find(pattern)


def test_a_pair_without_uid_stops_with_what_a_uid_may_be(tmp_path):
    (path,) = shards.write(pairs(2), tmp_path / "pool", 2)
    with tarfile.open(path) as old, tarfile.open(tmp_path / "bare.tar", "w") as new:
        for member in old:
            if member.name != "000000001.json":
                new.addfile(member, old.extractfile(member))
    with pytest.raises(
        DataError, match=r"sample '000000001' has no uid, .* Add one to its JSON: 32 hexadecimal"
    ) as error:
        list(shards.read(tmp_path / "bare.tar", on_damage="stop"))
    assert "\n" not in str(error.value)
    counts = Counter()
    assert len(list(shards.read(tmp_path / "bare.tar", on_damage="skip", counts=counts))) == 1
    assert counts == {"no uid": 1}


def test_the_emoji_become_a_pool(recipes_data, tmp_path):
    source = recipes_data / "emoji32"
    rows = list(csv.DictReader((source / "captions.csv").open(encoding="utf-8", newline="")))
    images = torch.from_numpy(np.load(source / "emoji32.npz")["twemoji"]).permute(0, 3, 1, 2)
    made = PairSet(
        images, None, (), texts=tuple(row["tags"] for row in rows), uids=tuple(f"{i:032x}" for i in range(len(rows)))
    )
    paths, counts = shards.write(made, tmp_path / "pool", 500), Counter()
    back = [pair for path in paths for pair in shards.read(path, on_damage="stop", counts=counts)]
    assert (len(paths), len(back)) == (4, 1911)
    assert tuple(pair.text for pair in back) == made.texts
    assert sum(counts.values()) == sum(not text.strip() for text in made.texts)


def test_the_wikipedia_images_become_a_pool(recipes_data, tmp_path):
    source = recipes_data / "wiki_alttext64"
    rows = list(csv.DictReader((source / "texts.csv").open(encoding="utf-8", newline="")))
    images = torch.from_numpy(np.load(source / "images64.npz")["images"]).permute(0, 3, 1, 2)
    texts = tuple(row["alt_text"] for row in rows)
    made = PairSet(images, None, (), texts=texts, uids=tuple(f"{i:032x}" for i in range(278)))
    (path,) = shards.write(made, tmp_path / "pool", 1000)
    back = list(shards.read(path, on_damage="stop"))
    assert tuple(pair.text for pair in back) == texts
    assert np.array_equal(np.array(back[200].image), images[200].permute(1, 2, 0).numpy())
