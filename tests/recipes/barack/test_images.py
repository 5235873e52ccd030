# SPDX-License-Identifier: Apache-2.0
"""Images with groups made by hand, and the loading of all kinds by their config."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes_lib.data.grouped_files import ATTRIBUTE
from recipes_lib.data.pantry.factors import BACKGROUNDS, CLASSES
from recipes_lib.errors import DataError
from recipes_lib.recipes.barack import images
from recipes_lib.recipes.barack.settings import GroupData, ModelConfig


def test_the_pantrys_class_and_attribute_are_what_is_seen_and_nothing_else_tells_them():
    found = images.pantry_groups(600, 8, "train", 0.9)
    attribute = found.factors[ATTRIBUTE]
    assert float((found.labels == attribute).double().mean()) == pytest.approx(0.9, abs=0.03)
    seen = [CLASSES[label] for label in found.factors["label"].tolist()]
    assert seen == [images.THINGS[label] for label in found.labels.tolist()]
    behind = [BACKGROUNDS[place] for place in found.factors["background"].tolist()]
    assert behind == [images.BACKGROUNDS[value] for value in attribute.tolist()]
    assert found.factors["objects"].eq(1).all()
    for factor in ("size", "elevation", "material", "light_strength"):
        values = found.factors[factor].double()
        apart = values[found.labels == 0].mean() - values[found.labels == 1].mean()
        assert abs(float(apart)) < 0.25 * float(values.std())


def test_a_test_set_of_the_pantry_has_as_much_of_both_and_other_pictures():
    test, train = (images.pantry_groups(200, 8, split, 0.5) for split in ("test", "train"))
    assert float((test.labels == test.factors[ATTRIBUTE]).double().mean()) == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(test.images, train.images)


def emoji(root: Path) -> Path:
    g = np.random.default_rng(0)
    count = 120
    names = ["Animals & Nature", "Food & Drink", "Flags"]
    with (root / "captions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["index", "category"])
        writer.writeheader()
        writer.writerows({"index": row, "category": names[row % 3]} for row in range(count))
    drawn = {name: g.integers(0, 255, (count, 32, 32, 3), dtype=np.uint8) for name in images.DRAWINGS}
    np.savez(root / "emoji32.npz", **drawn)
    return root


def test_an_emoji_is_in_one_part_and_test_emoji_are_there_in_both_drawings(tmp_path):
    train, test = images.emoji_groups(emoji(tmp_path), 0.9)
    rows = [{int(name.split()[0]) for name in part.names} for part in (train, test)]
    assert not rows[0] & rows[1]
    assert len(rows[0] | rows[1]) == 80
    assert all(row % 3 != 2 for row in rows[0] | rows[1])
    assert len(test) == 2 * len(rows[1])
    assert len(train) == len(rows[0])
    assert float((train.labels == train.factors[ATTRIBUTE]).double().mean()) > 0.7
    with np.load(tmp_path / "emoji32.npz") as arrays:
        for part in (train, test):
            row, artist = part.names[3].split()
            assert np.array_equal(part.images[3].permute(1, 2, 0).numpy(), arrays[artist][int(row)])


def test_a_missing_or_other_file_of_emoji_is_named(tmp_path):
    with pytest.raises(DataError, match=r"has no emoji32\.npz"):
        images.emoji_groups(tmp_path, 0.9)
    emoji(tmp_path)
    np.savez(tmp_path / "emoji32.npz", noto=np.zeros((120, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match=r"has no twemoji"):
        images.emoji_groups(tmp_path, 0.9)


def birds(root: Path) -> Path:
    lines = ["img_filename,y,place,split"]
    for number in range(24):
        y, place, split = number % 2, number // 2 % 2, (0, 0, 0, 0, 1, 2)[number // 4]
        Image.new("RGB", (12, 10), (60 * y, 60 * place, number)).save(root / f"{number}.png")
        lines.append(f"{number}.png,{y},{place},{split}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def test_waterbirds_are_scored_on_the_part_that_is_asked_for(tmp_path):
    warned = []
    for part in ("test", "val"):
        data = GroupData(name="waterbirds", root=birds(tmp_path), scored=part)
        splits = images.load(data, ModelConfig(), warned.append)
        assert (len(splits.train), len(splits.test)) == (16, 4)
        assert splits.test.names[0] == ("20.png" if part == "test" else "16.png")
    assert warned == []
    assert images.names_of(data, splits.train.class_names)[1] == "landbird, water"


def test_a_group_that_training_lacks_is_warned_of_and_other_numbers_are_refused(tmp_path):
    birds(tmp_path)
    text = (tmp_path / "metadata.csv").read_text().splitlines()
    (tmp_path / "metadata.csv").write_text("\n".join(line for line in text if not line.endswith(",1,0,0")) + "\n")
    data, warned = GroupData(name="waterbirds", root=tmp_path), []
    images.load(data, ModelConfig(), warned.append)
    assert warned == ["No training image is known to be in group waterbird, land: nothing is guaranteed for it."]
    with pytest.raises(DataError, match=r"has 2 attributes, but model\.attributes = 3\. Add --model\.attributes 2"):
        images.load(data, ModelConfig(attributes=3), warned.append)


def test_images_with_a_group_label_get_the_group_as_their_class():
    some = images.pantry_groups(60, 8, "train", 0.8)
    kept = torch.arange(60) % 3 == 0
    found = images.as_groups(some, kept, 2, ("a", "b", "c", "d"))
    assert len(found) == 20
    assert torch.equal(found.labels, (2 * some.labels + some.factors[ATTRIBUTE])[kept])
    assert torch.equal(found.images, some.images[kept])
