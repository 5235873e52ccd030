# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path

import pytest
import torch

from recipes_lib.errors import DataError
from recipes_lib.recipes.nac import layouts


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def refused(call, root: Path, line: str) -> None:
    """The call ends in one line that holds ``line`` and says what is expected."""
    with pytest.raises(DataError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert " expected as " in str(caught.value) or "Copy it again." in str(caught.value)


# Tiny-ImageNet

TINY = {
    "train/n01/images/n01_0.JPEG": "",
    "train/n01/n01_boxes.txt": "",
    "train/n02/images/n02_0.JPEG": "",
    "val/images/val_0.JPEG": "",
    "val/images/val_1.JPEG": "",
    "val/val_annotations.txt": "val_0.JPEG\tn02\t0\t0\t62\t62\nval_1.JPEG\tn01\t0\t0\t1\t1\n",
}


def test_tiny_imagenet_has_its_test_labels_in_a_list(tmp_path):
    train, val = layouts.tiny_imagenet(write(tmp_path, TINY))
    assert (train.class_names, train.labels.tolist()) == (("n01", "n02"), [0, 1])
    assert str(train.path(0)).endswith("train/n01/images/n01_0.JPEG")
    assert (val.names.tolist(), val.labels.tolist()) == (["val_0.JPEG", "val_1.JPEG"], [1, 0])
    assert val.path(0).is_file()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"val/val_annotations.txt": "val_0.JPEG\tn03\n"}, "val_annotations.txt, line 1, names no class of train"),
        ({"val/val_annotations.txt": "val_0.JPEG n01\n"}, "line 1, names no class of train"),
        ({"val/val_annotations.txt": "val_7.JPEG\tn01\nval_8.JPEG\tn01\n"}, "val_7.JPEG and 1 other files are missing"),
    ],
)
def test_a_wrong_list_of_tiny_imagenet_is_refused(tmp_path, changed, line):
    refused(lambda: layouts.tiny_imagenet(write(tmp_path, TINY | changed)), tmp_path, line)


def test_without_its_folders_tiny_imagenet_is_refused(tmp_path):
    refused(lambda: layouts.tiny_imagenet(tmp_path), tmp_path, "train is no folder")
    write(tmp_path, {"train/n01/images/0.JPEG": ""})
    refused(lambda: layouts.tiny_imagenet(tmp_path), tmp_path, "val_annotations.txt is missing")


def test_renderings_have_the_labels_of_tiny_imagenet(tmp_path):
    files = layouts.tiny_imagenet_r(write(tmp_path, {"n03/art.jpg": "", "n02/toy.jpg": ""}), ("n01", "n02", "n03"))
    assert dict(zip(files.names.tolist(), files.labels.tolist(), strict=True)) == {"n03/art.jpg": 2, "n02/toy.jpg": 1}
    refused(lambda: layouts.tiny_imagenet_r(tmp_path, ("n01", "n02")), tmp_path, "n03 is none of the 2 classes")


# CUB

CUB = {
    "images/a/1.jpg": "",
    "images/b/2.jpg": "",
    "images/b/3.jpg": "",
    "images.txt": "1 a/1.jpg\n2 b/2.jpg\n3 b/3.jpg\n",
    "image_class_labels.txt": "1 1\n2 2\n3 2\n",
    "train_test_split.txt": "1 1\n2 1\n3 0\n",
    "classes.txt": "1 001.A\n2 002.B\n",
}


def test_cub_is_split_by_its_list(tmp_path):
    train, test = layouts.cub(write(tmp_path, CUB))
    assert (train.names.tolist(), train.labels.tolist()) == (["a/1.jpg", "b/2.jpg"], [0, 1])
    assert (test.names.tolist(), test.labels.tolist(), test.class_names) == (["b/3.jpg"], [1], ("001.A", "002.B"))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"images.txt": "1 a/1.jpg\n2 b/2.jpg\n"}, "the lists of 2, 3 and 3 images differ"),
        ({"classes.txt": "1 001.A\n"}, "image_class_labels.txt names a class that classes.txt has not"),
        ({"classes.txt": "001.A\n"}, "classes.txt has not two columns, a number and a value"),
        ({"images.txt": "1 a/1.jpg\n2 b/9.jpg\n3 b/3.jpg\n"}, "b/9.jpg and 0 other files are missing"),
    ],
)
def test_lists_of_cub_that_do_not_fit_are_refused(tmp_path, changed, line):
    refused(lambda: layouts.cub(write(tmp_path, CUB | changed)), tmp_path, line)


def test_a_list_that_is_missing_or_no_text_is_refused(tmp_path):
    refused(lambda: layouts.cub(tmp_path), tmp_path, "images.txt is missing")
    write(tmp_path, CUB)
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00")
    refused(lambda: layouts.cub(tmp_path), tmp_path, r"classes.txt cannot be read as text \(UnicodeDecodeError\)")


# NLVR2


def nlvr2_files(**changed: object) -> dict[str, str]:
    entry = {"identifier": "train-5-1-0", "sentence": "Two cats sit.", "label": "True", "directory": 7} | changed
    dev = {"identifier": "dev-3-0-1", "sentence": "A dog.", "label": "False"}
    images = [f"images/train/7/train-5-1-img{side}.png" for side in (0, 1)]
    images += [f"dev/dev-3-0-img{side}.png" for side in (0, 1)]
    return {"train.json": json.dumps(entry) + "\n", "dev.json": json.dumps(dev) + "\n"} | dict.fromkeys(images, "")


def test_nlvr2_pairs_have_a_sentence_and_whether_it_is_true(tmp_path):
    train, dev = layouts.nlvr2(write(tmp_path, nlvr2_files()))
    assert (train.sentences, train.left.labels.tolist()) == (("Two cats sit.",), [1])
    assert train.left.path(0) == tmp_path / "images/train/7/train-5-1-img0.png"
    assert train.right.path(0) == tmp_path / "images/train/7/train-5-1-img1.png"
    assert (dev.right.path(0), dev.left.labels.tolist()) == (tmp_path / "dev/dev-3-0-img1.png", [0])


@pytest.mark.parametrize("changed", [{"label": "maybe"}, {"identifier": 3}])
def test_a_line_of_nlvr2_that_is_no_pair_is_refused(tmp_path, changed):
    line = r"train.json, line 1, is no JSON object with identifier, sentence, label \(True or False\) and directory"
    refused(lambda: layouts.nlvr2(write(tmp_path, nlvr2_files(**changed))), tmp_path, line)


def test_missing_pairs_of_nlvr2_are_refused(tmp_path):
    files = nlvr2_files()
    refused(lambda: layouts.nlvr2(write(tmp_path, files | {"train.json": "\n"})), tmp_path, "train.json is empty")
    refused(lambda: layouts.nlvr2(write(tmp_path, {"train.json": "[1]"})), tmp_path, "train.json, line 1")
    write(tmp_path, files)
    (tmp_path / "dev/dev-3-0-img1.png").unlink()
    refused(lambda: layouts.nlvr2(tmp_path), tmp_path, "dev-3-0-img1.png and 0 other files are missing")


# ListOps

LISTOPS = {
    f"basic_{split}.tsv": "Source\tTarget\n( ( ( [MAX 2 ) ( ( [MIN 7 ) 5 ] ) ) ] )\t5\n( [SM 9 9 9 ] )\t7\n"
    for split in ("train", "val", "test")
}


def test_listops_loses_its_parentheses_and_keeps_its_brackets(tmp_path):
    found = layouts.listops(write(tmp_path, LISTOPS), 20)
    assert list(found) == ["train", "val", "test"]
    words = [" ".join(layouts.LISTOPS_SYMBOLS[i] for i in ids.tolist()) for ids in found["val"].ids]
    assert words == ["[MAX 2 [MIN 7 5 ] ]", "[SM 9 9 9 ]"]
    assert (found["val"].labels.tolist(), found["val"].vocabulary) == ([5, 7], 15)
    assert len(layouts.listops(tmp_path, 5)["test"]) == 1  # the longer expression is left out


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("5\t[MAX 2 5 ]\n", "begins with '5 .MAX 2 5 .' and not with Source, Target"),
        ("Source\tTarget\n[AVG 2 5 ]\t3\n", "line 2, is no expression of .MIN .MAX .MED .SM . and digits"),
        ("Source\tTarget\n[MAX 2 5 ]\t12\n", "line 2, is no expression"),
        ("Source\tTarget\n[MAX 2 5 ]\n", "line 2, is no expression"),
        ("Source\tTarget\n", "has no expression of at most 20 symbols"),
    ],
)
def test_a_table_that_is_not_listops_is_refused(tmp_path, text, line):
    refused(lambda: layouts.listops(write(tmp_path, LISTOPS | {"basic_val.tsv": text}), 20), tmp_path, line)


# IMDb

IMDB = {f"{split}/{name}/0_9.txt": f"A {name} film." for split in ("train", "test") for name in ("neg", "pos")}


def test_reviews_are_bytes_cut_at_a_length(tmp_path):
    train, test = layouts.imdb(write(tmp_path, IMDB | {"train/pos/1_8.txt": "Très bien"}), 6)
    assert [bytes(ids.tolist()) for ids in train.ids] == [b"A neg ", b"A pos ", "Très bien".encode()[:6]]
    assert (train.labels.tolist(), test.class_names) == ([0, 1, 1], ("neg", "pos"))


def test_a_folder_without_reviews_is_refused(tmp_path):
    refused(lambda: layouts.imdb(write(tmp_path, {"train/neg/0.txt": "x"}), 6), tmp_path, r"train/pos has no .txt file")


# ModelNet40

TRIANGLE = "OFF\n3 1 0\n0 0 0\n2 0 0\n0 1 0\n3 0 1 2\n"


def models() -> dict[str, str]:
    return {f"{name}/{split}/{name}_1.off": TRIANGLE for name in ("bed", "chair") for split in ("train", "test")}


def test_clouds_are_drawn_from_the_surface_of_the_meshes_and_centred(tmp_path):
    train, test = layouts.modelnet40(write(tmp_path, models()), 64)
    assert (tuple(train.points.shape), train.labels.tolist(), train.class_names) == (
        (2, 64, 3),
        [0, 1],
        ("bed", "chair"),
    )
    assert train.points.mean(1).abs().max() < 1e-5
    torch.testing.assert_close(train.points.norm(dim=2).amax(1), torch.ones(2))
    assert train.points[..., 2].abs().max() < 1e-6
    assert (train.points[0] - train.points[1]).abs().max() > 0.1  # draws of its own
    again, _ = layouts.modelnet40(tmp_path, 64)
    assert torch.equal(again.points, train.points)
    assert (test.points - train.points).abs().max() > 0.1


def test_meshes_of_any_faces_and_with_counts_on_the_first_line_are_read(tmp_path):
    write(tmp_path, {"a.off": "OFF4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n"})
    vertices, triangles = layouts.read_off(tmp_path / "a.off")
    assert (vertices.shape, triangles.tolist()) == ((4, 3), [[0, 1, 2], [0, 2, 3]])
    write(tmp_path, {"b.off": "OFF\n# by hand\n3 1 0\n0 0 0\n1 0 0\n1 1 0 # last\n3 0 1 2\n"})
    assert layouts.read_off(tmp_path / "b.off")[1].tolist() == [[0, 1, 2]]


def test_points_are_uniform_on_the_surface():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [8, 0, 0], [5, 1, 0]])
    triangles = torch.tensor([[0, 1, 2], [3, 4, 5]])  # areas 1/2 and 3/2
    points = layouts.surface_points(vertices, triangles, 20_000, torch.tensor([1]))
    second = points[:, 0] > 2
    assert float(second.float().mean()) == pytest.approx(0.75, abs=0.02)
    assert points[~second].mean(0).tolist() == pytest.approx([1 / 3, 1 / 3, 0], abs=0.02)


@pytest.mark.parametrize(
    "text",
    ["PLY\n3 1 0\n", "OFF\n", "OFF\n3 1 0\n0 0 0\n1 0 0\n1 x 0\n3 0 1 2\n", "OFF\n3 1 0\n0 0 0\n1 0 0\n1 1 0\n3 0 1 9\n", "OFF\n3 2 0\n0 0 0\n1 0 0\n1 1 0\n3 0 1 2\n",
     "OFF\n3 1 0\n0 0 0\n1 0 0\n1 nan 0\n3 0 1 2\n", "OFF\n3 0 0\n0 0 0\n1 0 0\n1 1 0\n"],
)  # fmt: skip
def test_a_file_that_is_no_mesh_is_refused(tmp_path, text):
    write(tmp_path, {"x.off": text})
    refused(lambda: layouts.read_off(tmp_path / "x.off"), tmp_path, "x.off is no mesh: OFF, three counts, vertices")


def test_folders_that_are_not_modelnet_are_refused(tmp_path):
    refused(lambda: layouts.modelnet40(tmp_path / "gone", 8), tmp_path, "gone has no class folder")
    write(tmp_path, {"bed/train/1.off": TRIANGLE})
    refused(lambda: layouts.modelnet40(tmp_path, 8), tmp_path, re.escape("bed/test has no .off file"))
    with pytest.raises(DataError, match="the mesh has no area"):
        layouts.surface_points(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]), 4, torch.tensor([0]))
