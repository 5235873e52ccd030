# SPDX-License-Identifier: Apache-2.0
"""Predictions are joined by file name, and what cannot be right about them is told in one line."""

from pathlib import Path

import numpy as np
import pytest

from recipes_lib.errors import DataError
from recipes_lib.factors import imagenet_x_files, predictions
from recipes_lib.factors.annotations import Annotations

IMAGES, CLASSES = 400, 20
NAMES = [f"ILSVRC2012_val_{row:08d}.JPEG" for row in range(1, IMAGES + 1)]
LABELS = np.random.default_rng(0).integers(CLASSES, size=IMAGES).astype(np.int16)
GUESSES = np.where(np.random.default_rng(1).random(IMAGES) < 0.7, LABELS, (LABELS * 7 + 3) % CLASSES)


@pytest.fixture
def known() -> Annotations:
    marks = {"multi": np.ones((IMAGES, 1), bool)}
    return Annotations(np.array(NAMES), LABELS, CLASSES, ("all",), marks)


def written(path: Path, names=NAMES, classes=GUESSES, header="file_name,predicted_class,predicted_probability") -> Path:
    rows = "".join(f"{name},{value},0.5\n" for name, value in zip(names, classes, strict=True))
    path.write_text(f"{header}\n{rows}")
    return path


def test_a_csv_file_in_any_order_with_folders_before_its_names_is_joined_by_name(known, tmp_path):
    order = np.random.default_rng(2).permutation(IMAGES)
    path = written(tmp_path / "net.csv", [f"val/n01440764/{NAMES[row]}" for row in order], GUESSES[order])
    found = predictions.read([path], known)
    assert found.models == ("net",)
    assert found.classes.dtype == np.int16
    np.testing.assert_array_equal(found.classes[0], GUESSES)


def test_every_form_of_an_npz_file_gives_the_same(known, tmp_path):
    order = np.random.default_rng(2).permutation(IMAGES)
    np.savez(tmp_path / "a.npz", predicted_class=GUESSES)
    np.savez(tmp_path / "b.npz", predicted_class=GUESSES[order], file_name=np.array(NAMES)[order])
    np.savez(tmp_path / "c.npz", pred_one=GUESSES, prob_one=np.ones(IMAGES), pred_two=GUESSES)
    np.savez(tmp_path / "d.npz", predicted_class=np.stack([GUESSES] * 2), models=["x", "y"])
    found = predictions.read([tmp_path / f"{name}.npz" for name in "abcd"], known)
    assert found.models == ("a", "b", "one", "two", "x", "y")
    assert (found.classes == GUESSES).all()


def test_what_is_written_is_what_is_read(known, tmp_path):
    probabilities = np.random.default_rng(0).random(IMAGES).astype(np.float32)
    predictions.write(tmp_path / "net.csv", NAMES, GUESSES, probabilities)
    np.testing.assert_array_equal(predictions.read([tmp_path / "net.csv"], known).classes[0], GUESSES)
    column = np.loadtxt(tmp_path / "net.csv", delimiter=",", skiprows=1, usecols=2, dtype=np.float32)
    np.testing.assert_array_equal(column, probabilities)


def replaced(row: int, value) -> list:
    return [value if place == row else guess for place, guess in enumerate(GUESSES.tolist())]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"names": NAMES[1:], "classes": GUESSES[1:]},
            r"399 rows for 400 images; 1 are missing: ILSVRC2012_val_00000001\.JPEG",
        ),
        ({"names": [NAMES[1], *NAMES[1:]]}, r"1 images more than once: ILSVRC2012_val_00000002\.JPEG"),
        ({"names": ["cat.png", *NAMES[1:]]}, r"1 unknown image names: cat\.png\. Names are like ILSVRC2012_val_0"),
        (
            {"names": [name.lower() for name in NAMES]},
            r"400 unknown image names: .*5\.jpeg and 395 more\. Names are like .* another set",
        ),
        (
            {"classes": replaced(4, CLASSES + 5)},
            r"the value 25 \(1 such values\); allowed are whole numbers from 0 to 19",
        ),
        ({"classes": replaced(4, -1)}, r"the value -1 "),
        ({"classes": replaced(4, 2.5)}, r"the value 2\.5 "),
        ({"classes": replaced(4, "nan")}, r"line 6: predicted_class is 'nan', which is no finite number"),
        ({"classes": replaced(4, "tench")}, r"line 6: predicted_class is 'tench', which is no finite number"),
        ({"classes": np.full(IMAGES, 0.93)}, "the value 0.93 .* look like probabilities: write the class ids there"),
        ({"classes": GUESSES + 1}, "the value 20 .*The ids run from 1: subtract 1"),
        (
            {"classes": np.where(GUESSES == CLASSES - 1, 3, GUESSES + 1)},
            r"one too high: .* after a shift by -1; expected are 0 to 19 .*\. Subtract 1\.",
        ),
        (
            {"classes": np.where(GUESSES == 0, 3, GUESSES - 1)},
            r"one too low: .* after a shift by \+1; .*\. Add 1\.",
        ),
        (
            {"classes": np.where((GUESSES >= 14) & (GUESSES < 19), GUESSES + 1, GUESSES)},
            r"one too high for the images of classes 14 to 18: .* by -1 there; .* The shift begins at class 14, so a class folder",
        ),
        (
            {"classes": np.where(GUESSES > 11, GUESSES - 1, GUESSES)},
            r"one too low for the images of classes 12 to 19: .* by \+1 there; .* The shift begins at class 12, so a class folder",
        ),
        (
            {"classes": np.where(GUESSES < 5, np.maximum(GUESSES - 1, 0), GUESSES)},
            r"one too low for the images of classes 1 to 4: .* The shift begins at class 1,",
        ),
        (
            {"classes": replaced(4, CLASSES)},
            r"the value 20 .* There are 21 ids\. If 0 is a background class, the others run from 1: leave the background out",
        ),
        (
            {"header": "file_name,predicted_class,predicted_class"},
            "has the column 'predicted_class' more than once",
        ),
        (
            {"classes": np.random.default_rng(3).permutation(CLASSES)[LABELS]},
            "another order: .* if each id were renamed",
        ),
        ({"header": "image,predicted_class,p"}, "has the columns image, predicted_class, p; wanted are file_name,"),
        ({"names": [NAMES[0] + ",1", *NAMES[1:]]}, "line 2, has another number of values than the 3 columns"),
    ],
)
def test_a_csv_file_that_cannot_be_right_is_told_in_one_line(known, tmp_path, given, words):
    path = written(tmp_path / "net.csv", **given)
    with pytest.raises(DataError, match=words) as error:
        predictions.read([path], known)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"predicted_class": GUESSES[1:]}, r"predictions of net have shape \(399,\), but 400 images are annotated"),
        ({"predicted_class": GUESSES, "file_name": NAMES[1:]}, "but 399 file names are given"),
        ({"predicted_class": np.stack([GUESSES] * 2)}, "2 rows for 1 models"),
        ({"logits": GUESSES}, "holds no predictions: give predicted_class"),
        ({"predicted_class": np.full(IMAGES, np.nan)}, "the value nan .*Predict these images again"),
        ({"predicted_class": np.sort(LABELS)}, r"rows of net are in the order of class folders: .* Add file_name"),
        ({"predicted_class": NAMES}, "predicted classes are <U28; give whole numbers"),
        ({"predicted_class": np.stack([GUESSES] * 2), "models": ["x", "x"]}, "holds model 'x' more than once"),
        ({"predicted_class": np.stack([GUESSES] * 2), "models": ["x", "x "]}, "holds model 'x' more than once"),
        ({"predicted_class": GUESSES, "pred_net": GUESSES}, "holds model 'net' more than once"),
    ],
)
def test_an_npz_file_that_cannot_be_right_is_told_in_one_line(known, tmp_path, arrays, words):
    np.savez(tmp_path / "net.npz", **arrays)
    with pytest.raises(DataError, match=words) as error:
        predictions.read([tmp_path / "net.npz"], known)
    assert "\n" not in str(error.value)


def test_files_that_are_none_and_models_of_one_name_are_told(known, tmp_path):
    (tmp_path / "x.npz").write_bytes(b"no zip")
    (tmp_path / "x.pickle").touch()
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "again").mkdir()
    first, second = written(tmp_path / "net.csv"), written(tmp_path / "again" / "net.csv")
    for paths, words in (
        ([tmp_path / "none.csv"], "is no file"),
        ([tmp_path / "x.npz"], "cannot be read as an .npz file"),
        ([tmp_path / "x.pickle"], "neither .csv nor .npz"),
        ([tmp_path / "bytes.csv"], "cannot be read as a CSV file"),
        ([first, second], "both hold a model 'net'"),
        ([], "There are no predictions"),
    ):
        with pytest.raises(DataError, match=words):
            predictions.read(paths, known)


@pytest.mark.parametrize("accuracy", [0.0, 0.05, 0.3, 1.0])
def test_weak_and_constant_models_are_not_taken_for_renamed_ones(known, tmp_path, accuracy):
    draw = np.random.default_rng(4)
    guesses = np.where(draw.random(IMAGES) < accuracy, LABELS, draw.integers(CLASSES, size=IMAGES))
    predictions.read([written(tmp_path / "weak.csv", classes=guesses)], known)
    predictions.read([written(tmp_path / "constant.csv", classes=np.zeros(IMAGES, int))], known)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_ids_of_a_type_that_cannot_hold_every_class_are_refused(tmp_path, kind):
    labels = np.repeat(np.arange(300), 2).astype(np.int16)
    many = Annotations(
        np.array([f"{n:03}.png" for n in range(600)]), labels, 300, ("all",), {"multi": np.ones((600, 1), bool)}
    )
    with np.errstate(over="ignore"):
        np.savez(tmp_path / "net.npz", predicted_class=(labels % (np.iinfo(kind).max + 1)).astype(kind))
    with pytest.raises(
        DataError, match=rf"are {np.dtype(kind)}, which ends at \d+ and cannot hold 300 classes: .* as int16"
    ):
        predictions.read([tmp_path / "net.npz"], many)


def test_ids_of_a_small_type_are_read_where_it_holds_every_class(known, tmp_path):
    np.savez(tmp_path / "net.npz", predicted_class=GUESSES.astype(np.uint8))
    np.testing.assert_array_equal(predictions.read([tmp_path / "net.npz"], known).classes[0], GUESSES)


def test_two_files_hold_one_model_where_names_differ_in_white_space_alone(known, tmp_path):
    np.savez(tmp_path / "a.npz", predicted_class=GUESSES[None], models=["net "])
    with pytest.raises(DataError, match="both hold a model 'net'"):
        predictions.read([written(tmp_path / "net.csv"), tmp_path / "a.npz"], known)


def test_image_names_that_a_spreadsheet_would_run_are_quoted_and_read_again(tmp_path):
    names = ["=1+1.png", "-a.png", "@b.png", "+c.png", "d.png"]
    known = Annotations(np.array(names), np.arange(5, dtype=np.int16), 5, ("all",), {"multi": np.ones((5, 1), bool)})
    predictions.write(tmp_path / "net.csv", names, np.arange(5), np.ones(5, np.float32))
    cells = [line.split(",")[0] for line in (tmp_path / "net.csv").read_text().splitlines()[1:]]
    assert cells == ["'=1+1.png", "'-a.png", "'@b.png", "'+c.png", "d.png"]
    assert predictions.read([tmp_path / "net.csv"], known).classes[0].tolist() == list(range(5))


def test_real_models_are_read_and_a_shift_of_ten_of_their_thousand_classes_is_named(recipes_data, tmp_path):
    val, _ = imagenet_x_files.read(recipes_data / "imagenet_x")
    found = predictions.read([recipes_data / "imagenet_x" / "imagenet_x_val.npz"], val)
    for model, classes in zip(found.models, found.classes, strict=True):
        for shifted, words in (
            (np.where(classes > 750, classes - 1, classes), "one too low for the images of classes 751 to 999"),
            (
                np.where((classes >= 900) & (classes < 999), classes + 1, classes),
                "high for the images of classes 900 to 998",
            ),
            (
                np.where((classes >= 990) & (classes < 999), classes + 1, classes),
                "high for the images of classes 990 to 998",
            ),
        ):
            with pytest.raises(DataError, match=f"ids of {model} are .*{words}"):
                predictions.refuse_other_classes(tmp_path, model, shifted, val)


def test_parts_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="for 2 models"):
        predictions.Predictions(("a", "b"), np.zeros((1, 3), np.int16))
    with pytest.raises(ValueError, match="not integers"):
        predictions.Predictions(("a",), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="share a name"):
        predictions.Predictions(("a", "a"), np.zeros((2, 3), np.int16))
