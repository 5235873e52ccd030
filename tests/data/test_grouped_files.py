# SPDX-License-Identifier: Apache-2.0
"""The public layouts of Waterbirds, CelebA, CivilComments and MultiNLI, as small files of our own."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from recipes_lib.data import grouped_files
from recipes_lib.data.grouped_files import ATTRIBUTE, IDENTITIES
from recipes_lib.errors import DataError

BIRDS = "img_id,img_filename,y,split,place,place_filename\n"
ROWS = ["1,a.jpg,0,0,0,x", "2,b.jpg,1,0,1,x", "3,c.jpg,1,0,,x", "4,d.jpg,0,1,1,x", "5,e.jpg,1,2,0,x"]


def waterbirds(root: Path, rows: list[str] = ROWS) -> Path:
    (root / "metadata.csv").write_text(BIRDS + "\n".join(rows) + "\n")
    return root


def test_waterbirds_has_three_parts_and_an_empty_place_is_unknown(tmp_path):
    found = grouped_files.waterbirds(waterbirds(tmp_path))
    assert (len(found.train), len(found.val), len(found.test)) == (3, 1, 1)
    assert found.train.labels.tolist() == [0, 1, 1]
    assert found.train.factors[ATTRIBUTE].tolist() == [0, 1, -1]
    assert found.train.class_names == ("landbird", "waterbird")
    assert found.attribute_names == ("land", "water")
    Image.new("RGB", (9, 7), (200, 10, 10)).save(tmp_path / "a.jpg")
    assert found.train.open(0).size == (9, 7)
    assert found.train.select(torch.tensor([2, 0])).factors[ATTRIBUTE].tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["1,a.jpg,2,0,0,x"], "the class 2 is outside 0 to 1"),
        (["1,a.jpg,,0,0,x"], "the class -1 is outside 0 to 1"),
        (["1,a.jpg,0,0,7,x"], "The attribute has the value 7. Use 0 to 1, and -1"),
        (["1,a.jpg,0,0,sea,x"], "line 2: place is 'sea'. Write an integer"),
        (["1,a.jpg,0,0,0,x"], "no point of split val"),
    ],
)
def test_a_bad_line_of_waterbirds_is_named(rows, said, tmp_path):
    with pytest.raises(DataError, match=said) as told:
        grouped_files.waterbirds(waterbirds(tmp_path, rows))
    assert str(tmp_path) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_missing_file_and_a_missing_column_are_named(tmp_path):
    with pytest.raises(DataError, match=r"has no metadata\.csv"):
        grouped_files.waterbirds(tmp_path)
    (tmp_path / "metadata.csv").write_text("img_filename,y,places,split\n")
    with pytest.raises(DataError, match=r"no column place\. Did you mean 'places'"):
        grouped_files.waterbirds(tmp_path)


def celeba(root: Path) -> Path:
    place = root / "data"
    place.mkdir()
    lines = ["image_id,Blond_Hair,Male,Young", "1.jpg,-1,-1,1", "2.jpg,1,-1,1", "3.jpg,1,1,-1", "4.jpg,-1,1,1"]
    (place / "list_attr_celeba.csv").write_text("\n".join(lines) + "\n")
    split = ["image_id,partition", "4.jpg,2", "3.jpg,1", "2.jpg,0", "1.jpg,0"]  # in another order
    (place / "list_eval_partition.csv").write_text("\n".join(split) + "\n")
    return root


def test_celeba_joins_its_two_lists_by_name_and_takes_any_pair_of_columns(tmp_path):
    found = grouped_files.celeba(celeba(tmp_path))
    assert found.train.names.tolist() == ["img_align_celeba/1.jpg", "img_align_celeba/2.jpg"]
    assert found.train.labels.tolist() == [0, 1]
    assert (found.val.factors[ATTRIBUTE].tolist(), found.test.factors[ATTRIBUTE].tolist()) == ([1], [1])
    assert found.attribute_names == ("not Male", "Male")
    young = grouped_files.celeba(tmp_path / "data", target="Male", attribute="Young")
    assert young.val.labels.tolist() == [1]
    assert young.val.factors[ATTRIBUTE].tolist() == [0]
    with pytest.raises(DataError, match=r"no column Mael\. Did you mean 'Male'"):
        grouped_files.celeba(tmp_path, attribute="Mael")


def test_a_photograph_of_celeba_without_a_part_is_named(tmp_path):
    celeba(tmp_path)
    (tmp_path / "data" / "list_eval_partition.csv").write_text("image_id,partition\n1.jpg,0\n")
    with pytest.raises(DataError, match=r"has no line for 2\.jpg"):
        grouped_files.celeba(tmp_path)


def comments(root: Path, *rows: str) -> Path:
    head = ["", "id", "comment_text", "split", "toxicity", "identity_any", *IDENTITIES]
    (root / "all_data_with_identities.csv").write_text(",".join(head) + "\n" + "\n".join(rows) + "\n")
    return root


def rated(number: int, text: str, split: str, toxicity: str, any_: str, male: str) -> str:
    return ",".join([str(number), "9", f'"{text}"', split, toxicity, any_, male, *["0.0"] * 7])


def test_civilcomments_calls_a_rating_of_a_half_toxic_and_an_empty_one_not_named(tmp_path):
    rows = [
        rated(0, "one, two\nthree", "train", "0.5", "1.0", "0.7"),
        rated(1, "b", "train", "0.49", "", "0.2"),
        rated(2, "c", "val", "1", "0.5", "0"),
        rated(3, "d", "test", "0", "0", "0"),
    ]
    found = grouped_files.civilcomments(comments(tmp_path, *rows))
    assert found.train.texts == ("one, two\nthree", "b")
    assert found.train.labels.tolist() == [1, 0]
    assert found.train.factors[ATTRIBUTE].tolist() == [1, 0]
    assert found.train.factors["male"].tolist() == [True, False]
    assert found.val.select(torch.tensor([0])).factors[ATTRIBUTE].tolist() == [1]
    by_name = grouped_files.civilcomments(tmp_path, "male")
    assert by_name.val.factors[ATTRIBUTE].tolist() == [0]
    with pytest.raises(DataError, match=r"no column identity_all\. Did you mean 'identity_any'"):
        grouped_files.civilcomments(tmp_path, "identity_all")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (rated(0, "a", "dev", "0", "0", "0"), "line 2: split is 'dev'"),
        (rated(0, "a", "train", "bad", "0", "0"), "line 2: toxicity is 'bad'. Ratings are numbers"),
    ],
)
def test_a_bad_line_of_civilcomments_is_named(row, said, tmp_path):
    with pytest.raises(DataError, match=said):
        grouped_files.civilcomments(comments(tmp_path, row))


def multinli(root: Path, label: int = 0) -> Path:
    place = root / "data"
    place.mkdir()
    pairs = [("A.", "No.", "contradiction"), ("B.", "B?", "-"), ("C.", "C!", "entailment"), ("D", "d", "neutral")]
    lines = [json.dumps({"sentence1": a, "sentence2": b, "gold_label": y}) + "\n" for a, b, y in pairs]
    for name, some in (("train", lines[:2]), ("dev_matched", lines[2:3]), ("dev_mismatched", lines[3:])):
        (place / f"multinli_1.0_{name}.jsonl").write_text("".join(some))
    table = [",gold_label,sentence2_has_negation,split", f"0,{label},1,2", "2,1,0,0", "3,2,0,1"]
    (place / "metadata_random.csv").write_text("\n".join(table) + "\n")
    return root


def test_multinli_finds_sentences_by_the_row_that_its_list_names(tmp_path):
    found = grouped_files.multinli(multinli(tmp_path))
    assert (found.train.texts, found.val.texts, found.test.texts) == (("C.\tC!",), ("D\td",), ("A.\tNo.",))
    assert found.train.labels.tolist() == [1]
    assert found.test.factors[ATTRIBUTE].tolist() == [1]
    assert found.train.class_names == ("contradiction", "entailment", "neutral")


def test_a_list_of_other_sentences_is_refused(tmp_path):
    with pytest.raises(DataError, match="its class is not that of pair 0, contradiction"):
        grouped_files.multinli(multinli(tmp_path, label=2))
    (tmp_path / "data" / "multinli_1.0_dev_mismatched.jsonl").write_text("")
    (tmp_path / "data" / "metadata_random.csv").write_text(",gold_label,sentence2_has_negation,split\n3,2,0,1\n")
    with pytest.raises(DataError, match="'3' is none of the 3 pairs"):
        grouped_files.multinli(tmp_path)
    (tmp_path / "data" / "multinli_1.0_train.jsonl").write_text("{")
    with pytest.raises(DataError, match="line 1 is no JSON"):
        grouped_files.multinli(tmp_path)
