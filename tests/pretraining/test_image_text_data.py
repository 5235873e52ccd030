# SPDX-License-Identifier: Apache-2.0
"""Pairs for a recipe: the Pantry's and those of shards, whole or by a subset file."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes_lib.data import pantry
from recipes_lib.data.pantry import alt_text
from recipes_lib.data.pools import shards, uids
from recipes_lib.errors import ConfigError, DamagedImage, DataError, Faults
from recipes_lib.pretraining import image_text_data
from recipes_lib.pretraining.image_text_data import PairData, PairViews

PANTRY = {"name": "pantry", "image_size": 32, "train_size": 40, "test_size": 12}


def load(warn=pytest.fail, **changes):
    return image_text_data.load(PairData(**{**PANTRY, **changes}), warn)


def faults(group) -> str:
    found = Faults()
    group.check(found)
    with pytest.raises(ConfigError) as error:
        found.raise_any()
    return str(error.value)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pairs in three shards."""
    folder = tmp_path_factory.mktemp("pairs") / "pool"
    shards.write(alt_text.pool(40, size=32, seed=0, mix=alt_text.Mix()), folder, 16)
    return folder


def test_captions_are_all_true_and_a_webs_texts_are_of_every_kind_but_are_tested_on_captions():
    clean, web = load(), load(texts="web")
    assert (clean.train.factors["kind"] == 0).all()
    assert len(web.train.factors["kind"].unique()) > 3
    assert (web.test.factors["kind"] == 0).all()
    assert web.test.texts == clean.test.texts
    assert not set(clean.train.uids) & set(clean.test.uids)
    assert (len(clean.train), len(clean.test)) == (40, 12)


def test_another_draw_has_other_pairs():
    first, second = load(), load(draw=1)
    assert not set(first.train.uids) & set(second.train.uids)
    assert not torch.equal(first.train.images, second.train.images)


def test_a_subset_file_leaves_its_pairs_and_no_other(tmp_path, pool):
    whole = load(texts="web").train
    wanted = sorted(whole.uids)[::3]
    uids.save_subset(tmp_path / "subset.npy", wanted)
    kept = load(texts="web", subset=tmp_path / "subset.npy")
    assert sorted(kept.train.uids) == wanted
    assert kept.train.texts == tuple(whole.text(i) for i in range(40) if whole.uid(i) in wanted)
    assert len(kept.test) == 12
    from_shards = load(name="shards", root=pool, subset=tmp_path / "subset.npy").train
    assert sorted(from_shards.uid(i) for i in range(len(from_shards))) == wanted


def test_uids_of_a_subset_that_the_pool_lacks_are_counted_and_a_foreign_one_is_refused(tmp_path, pool):
    own, others = load(texts="web").train.uids, load(draw=1).train.uids
    uids.save_subset(tmp_path / "both.npy", [*own[:5], *others[:3]])
    uids.save_subset(tmp_path / "foreign.npy", others)
    for source in ({"texts": "web"}, {"name": "shards", "root": pool}):
        said = []
        assert len(load(said.append, **source, subset=tmp_path / "both.npy").train) == 5
        assert said == [f"3 uids of {tmp_path / 'both.npy'} are not in this pool."]
        with pytest.raises(
            DataError, match=r"None of the .*uids in .*foreign\.npy is in .* belongs to another"
        ) as error:
            load(**source, subset=tmp_path / "foreign.npy")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows", [[(0, 2), (0, 1)], [(0, 1), (0, 1)]], ids=["unsorted", "twice"])
def test_one_rule_for_uid_files_whatever_the_pool_is(tmp_path, pool, rows):
    np.save(tmp_path / "subset.npy", np.array(rows, "u8,u8"))
    for source in ({"texts": "web"}, {"name": "shards", "root": pool}):
        with pytest.raises(DataError, match=r"subset\.npy is not strictly increasing: its first violation is at row 1"):
            load(**source, subset=tmp_path / "subset.npy")


def test_shards_are_their_own_test_set_unless_there_is_another(pool):
    alone = load(name="shards", root=pool)
    assert alone.test is alone.train
    held_out = load(name="shards", root=pool, test_root=pool / "00000002.tar")
    assert (len(held_out.train), len(held_out.test)) == (40, 8)


def test_damaged_images_are_left_out_and_counted_or_stop_where_they_are_opened(tmp_path, pool):
    with tarfile.open(pool / "00000000.tar") as old, tarfile.open(tmp_path / "a.tar", "w") as new:
        for member in old:
            data = old.extractfile(member).read() if member.name != "000000003.png" else b"\x89PNG\r\n"
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    said = []
    left = load(said.append, name="shards", root=tmp_path, on_damage="skip").train
    assert len(left) == 15
    assert said[-1] == f"1 pairs under {tmp_path}: damaged image."
    with pytest.raises(DamagedImage, match=r"a\.tar.*--data\.on-damage skip"):
        load(name="shards", root=tmp_path).train.open(3)


def test_a_damaged_image_held_out_is_told_before_training(tmp_path, pool):
    (tmp_path / "held").mkdir()
    with tarfile.open(pool / "00000000.tar") as old, tarfile.open(tmp_path / "held" / "a.tar", "w") as new:
        for member in old:
            data = old.extractfile(member).read() if member.name != "000000003.png" else b"\x89PNG\r\n"
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    with pytest.raises(DataError, match=r"a\.tar: the image of the pair with uid"):
        load(name="shards", root=pool, test_root=tmp_path / "held")


def test_options_that_pairs_do_not_have_are_refused_one_a_line():
    said = faults(PairData(**PANTRY, tail=1.0, holdout=0.1, scenes="controlled", classes_per_batch=2, draw=-1))
    assert [line.split(" = ")[0] for line in said.splitlines()] == [
        "data.draw",
        "data.tail",
        "data.holdout",
        "data.scenes",
        "data.classes_per_batch",
    ]
    assert "data.test_root = x has no use here" in faults(PairData(**PANTRY, test_root=Path("x")))
    assert "data.root is missing: data.name shards is read from disk" in faults(PairData())


@pytest.mark.parametrize("name", ["global_views", "local_views"])
def test_a_text_has_one_view(name):
    assert f"views.{name} = 1 is not allowed: use a value of 0: a text has one image" in faults(PairViews(**{name: 1}))


def test_the_vocabulary_comes_from_texts_of_every_kind_and_is_the_same_each_time():
    texts = image_text_data.vocabulary_texts()
    assert texts == image_text_data.vocabulary_texts()
    assert set(pantry.CLASSES) <= set(texts)
    assert any(text.lower().endswith((".jpg", ".png")) for text in texts)
