# SPDX-License-Identifier: Apache-2.0
"""Reads the public data sets of the paper's experiments from the folders that their archives unpack to.

Nothing is downloaded, and no package is needed beside those of the recipes: ModelNet40 is read from its own ``.off``
files, from whose triangles points are drawn, and not from the ``.h5`` files of other projects.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.data import folders
from recipes_lib.data.images import ImageFiles
from recipes_lib.errors import DataError
from recipes_lib.recipes.nac.samples import Clouds, ImagePairs, Sequences, text_bytes
from recipes_lib.recipes.nac.toys import CLOSE, OPERATORS

LISTOPS_SYMBOLS = (*map(str, range(10)), *OPERATORS, CLOSE)
"""The symbols of ListOps, by id."""


def tiny_imagenet(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """Tiny-ImageNet, 200 classes of 64x64 pixels: ``root/train/WNID/images`` and ``root/val/val_annotations.txt``.

    The images of the test split have no published labels, so the validation images are the test images.

    Raises: ``DataError`` in one line if a folder or the list is missing or not as expected.
    """
    layout = (
        f"Tiny-ImageNet is expected as {root}/train/WNID/images/*.JPEG, {root}/val/images/*.JPEG and "
        f"{root}/val/val_annotations.txt."
    )
    train = _class_folders(root / "train", layout)
    place = {name: number for number, name in enumerate(train.class_names)}
    names, labels = [], []
    for number, row in enumerate(_rows(root / "val" / "val_annotations.txt", "\t", layout), start=1):
        if len(row) < 2 or row[1] not in place:
            raise DataError(f"{root}/val/val_annotations.txt, line {number}, names no class of train. {layout}")
        names.append(row[0])
        labels.append(place[row[1]])
    val = root / "val" / "images"
    _need_files(val, names, layout)
    return train, ImageFiles(val, np.array(names), torch.tensor(labels), train.class_names)


def tiny_imagenet_r(root: Path, class_names: tuple[str, ...]) -> ImageFiles:
    """Tiny-ImageNet-R, other renderings of some of Tiny-ImageNet's classes: ``root/WNID/*``.

    Labels are positions in ``class_names``, those of :func:`tiny_imagenet`.
    Raises: ``DataError`` if there is no image, or a folder that is none of these classes.
    """
    layout = f"Tiny-ImageNet-R is expected as {root}/WNID/*, folders of Tiny-ImageNet's classes."
    files = _class_folders(root, layout)
    odd = sorted(set(files.class_names) - set(class_names))
    if odd:
        raise DataError(f"{root}/{odd[0]} is none of the {len(class_names)} classes of Tiny-ImageNet. {layout}")
    places = torch.tensor([class_names.index(name) for name in files.class_names])
    return ImageFiles(root, files.names, places[files.labels], class_names, files.notes)


def cub(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """CUB-200-2011, 200 birds: ``root/images`` and the lists ``images.txt``, ``image_class_labels.txt``,
    ``train_test_split.txt`` and ``classes.txt`` beside it.

    Raises: ``DataError`` in one line if a file is missing or not as expected.
    """
    wanted = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    layout = f"CUB-200-2011 is expected as {root}/images/CLASS/*.jpg with {', '.join(wanted)} beside images."
    tables = []
    for name in wanted:
        rows = list(_rows(root / name, " ", layout))
        if not rows or any(len(row) != 2 for row in rows):
            raise DataError(f"{root / name} has not two columns, a number and a value. {layout}")
        tables.append(dict(rows))
    files, labels, is_train, classes = tables
    if not files.keys() == labels.keys() == is_train.keys():
        raise DataError(f"{root}: the lists of {len(files)}, {len(labels)} and {len(is_train)} images differ. {layout}")
    if set(labels.values()) - classes.keys():
        raise DataError(f"{root}/image_class_labels.txt names a class that classes.txt has not. {layout}")
    places = {number: place for place, number in enumerate(classes)}
    parts = []
    for flag in ("1", "0"):
        chosen = [key for key in files if is_train[key] == flag]
        names = [files[key] for key in chosen]
        _need_files(root / "images", names, layout)
        targets = torch.tensor([places[labels[key]] for key in chosen])
        parts.append(ImageFiles(root / "images", np.array(names), targets, tuple(classes.values())))
    return parts[0], parts[1]


def nlvr2(root: Path) -> tuple[ImagePairs, ImagePairs]:
    """NLVR2: pairs of photographs, and a sentence that is true of them or not.

    ``root/train.json`` and ``root/dev.json`` (one JSON object a line), and the images ``root/images/train/DIRECTORY``
    and ``root/dev``. The development pairs are the test pairs.

    Raises: ``DataError`` in one line if a file is missing or not as expected.
    """
    layout = (
        f"NLVR2 is expected as {root}/train.json, {root}/dev.json, {root}/images/train/DIRECTORY/*-img0.png and "
        f"{root}/dev/*-img0.png."
    )
    return _pairs(root, "train", root / "images" / "train", layout), _pairs(root, "dev", root / "dev", layout)


def _pairs(root: Path, split: str, folder: Path, layout: str) -> ImagePairs:
    names: tuple[list[str], list[str]] = ([], [])
    sentences, labels = [], []
    for number, line in enumerate(_lines(root / f"{split}.json", layout), start=1):
        try:
            entry = json.loads(line)
            stem = entry["identifier"].rpartition("-")[0]  # without the sentence's number
            place = f"{entry['directory']}/{stem}" if split == "train" else stem
            labels.append(("False", "True").index(str(entry["label"])))
            sentences.append(str(entry["sentence"]))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise DataError(
                f"{root}/{split}.json, line {number}, is no JSON object with identifier, sentence, label (True or False)"
                f"{' and directory' if split == 'train' else ''}. {layout}"
            ) from None
        for side, file_names in enumerate(names):
            file_names.append(f"{place}-img{side}.png")
    if not sentences:
        raise DataError(f"{root}/{split}.json is empty. {layout}")
    _need_files(folder, names[0] + names[1], layout)
    left, right = (ImageFiles(folder, np.array(each), torch.tensor(labels), ("False", "True")) for each in names)
    return ImagePairs(left, right, tuple(sentences))


def listops(root: Path, length: int) -> dict[str, Sequences]:
    """ListOps of the Long Range Arena, 10 classes: ``root/basic_train.tsv``, ``basic_val.tsv`` and ``basic_test.tsv``.

    Keys: train, val, test. Parentheses, which only group operators and their arguments, are left out, as in the arena;
    closing brackets stay, without which the value is not defined. Longer expressions than ``length`` are left out.

    Raises: ``DataError`` in one line if a file is missing or not as expected.
    """
    layout = (
        f"ListOps is expected as {root}/basic_train.tsv, basic_val.tsv and basic_test.tsv, columns Source and Target."
    )
    ids = {symbol: number for number, symbol in enumerate(LISTOPS_SYMBOLS)}
    found = {}
    for split in ("train", "val", "test"):
        path = root / f"basic_{split}.tsv"
        sequences, labels = [], []
        for number, row in enumerate(_rows(path, "\t", layout), start=1):
            if number == 1:
                if row != ["Source", "Target"]:
                    raise DataError(f"{path} begins with {' '.join(row)[:60]!r} and not with Source, Target. {layout}")
                continue
            try:
                source, target = row
                sequence = torch.tensor([ids[word] for word in source.split() if word not in "()"], dtype=torch.uint8)
                label = range(10).index(int(target))
            except (ValueError, KeyError):
                raise DataError(
                    f"{path}, line {number}, is no expression of {' '.join(LISTOPS_SYMBOLS[10:])} and digits, and its "
                    f"value 0 to 9. {layout}"
                ) from None
            if 0 < len(sequence) <= length:
                sequences.append(sequence)
                labels.append(label)
        if not sequences:
            raise DataError(f"{path} has no expression of at most {length} symbols. {layout}")
        found[split] = Sequences(
            tuple(sequences), torch.tensor(labels), len(LISTOPS_SYMBOLS), tuple(map(str, range(10)))
        )
    return found


def imdb(root: Path, length: int) -> tuple[Sequences, Sequences]:
    """IMDb's reviews as bytes, the text classification of the Long Range Arena: ``root/train/pos/*.txt``,
    ``root/train/neg`` and the same of ``root/test``.

    Of each review the first ``length`` bytes are taken.
    Raises: ``DataError`` in one line if a folder is missing or has no review.
    """
    layout = f"IMDb's reviews are expected as {root}/train/neg/*.txt, train/pos, test/neg and test/pos."
    parts = []
    for split in ("train", "test"):
        texts, labels = [], []
        for label, name in enumerate(("neg", "pos")):
            files = sorted((root / split / name).glob("*.txt"))
            if not files:
                raise DataError(f"{root / split / name} has no .txt file. {layout}")
            for file in files:
                text = text_bytes(_text(file, layout), length)
                if len(text):
                    texts.append(text)
                    labels.append(label)
        parts.append(Sequences(tuple(texts), torch.tensor(labels), 256, ("neg", "pos")))
    return parts[0], parts[1]


def modelnet40(root: Path, points: int) -> tuple[Clouds, Clouds]:
    """ModelNet40, 40 classes of meshes, as clouds of ``points`` points: ``root/CLASS/train/*.off``, ``CLASS/test``.

    Points are drawn uniformly from a mesh's surface, the same ones at every reading; a cloud has its mean at 0 and its
    farthest point at distance 1.

    Raises: ``DataError`` in one line if a folder is missing or empty, or a file is no mesh.
    """
    layout = f"ModelNet40 is expected as {root}/CLASS/train/*.off and {root}/CLASS/test/*.off."
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
    if not classes:
        raise DataError(f"{root} has no class folder. {layout}")
    parts = []
    for split in ("train", "test"):
        clouds, labels = [], []
        for label, name in enumerate(classes):
            files = sorted((root / name / split).glob("*.off"))
            if not files:
                raise DataError(f"{root / name / split} has no .off file. {layout}")
            for file in files:
                vertices, triangles = read_off(file)
                key = randomness.sample_keys(0, int(split == "test"), torch.tensor([len(clouds)]))
                clouds.append(_centred(surface_points(vertices, triangles, points, key)))
                labels.append(label)
        parts.append(Clouds(torch.stack(clouds), torch.tensor(labels), tuple(classes)))
    return parts[0], parts[1]


def read_off(path: Path) -> tuple[Tensor, Tensor]:
    """The vertices, float32 [V, 3], and triangles, int64 [T, 3], of a mesh in the object file format.

    Faces of more corners are cut into triangles. Some of ModelNet40's files have their counts behind OFF on the first
    line, without a space.

    Raises: ``DataError`` if the file is no such mesh.
    """
    words = " ".join(line.partition("#")[0] for line in _lines(path, "Copy it again."))
    try:
        if not words.lstrip().startswith("OFF"):
            raise ValueError
        numbers = np.array(words.lstrip()[3:].split(), dtype=np.float64)
        count, faces = int(numbers[0]), int(numbers[1])
        vertices = numbers[3 : 3 + 3 * count].reshape(count, 3)
        triangles = _triangles(numbers[3 + 3 * count :].astype(np.int64), faces)
        if not np.isfinite(vertices).all() or not len(triangles) or triangles.min() < 0 or triangles.max() >= count:
            raise ValueError
    except (ValueError, IndexError, OverflowError):
        raise DataError(
            f"{path} is no mesh: OFF, three counts, vertices and faces are expected. Copy it again."
        ) from None
    return torch.from_numpy(vertices).float(), torch.from_numpy(triangles)


def _triangles(numbers: np.ndarray, faces: int) -> np.ndarray:
    """The triangles of the faces in ``numbers``: for each, its number of corners and these.  -> int64 [T, 3]"""
    if len(numbers) == 4 * faces and (numbers[::4] == 3).all():
        return numbers.reshape(faces, 4)[:, 1:]
    found, place = [], 0
    for _ in range(faces):
        corners = numbers[place + 1 : place + 1 + numbers[place]]
        if len(corners) != numbers[place] or len(corners) < 3:
            raise ValueError
        found += [(corners[0], corners[i], corners[i + 1]) for i in range(1, len(corners) - 1)]
        place += 1 + len(corners)
    return np.array(found)


def surface_points(vertices: Tensor, triangles: Tensor, count: int, key: Tensor) -> Tensor:
    """Points drawn uniformly from the surface of a mesh, whose draws derive from ``key``, int64 [1].  -> [count, 3]

    Raises: ``DataError`` if the mesh has no area.
    """
    corner = vertices.double()[triangles]  # [T, 3, 3]
    area = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]).norm(dim=1)
    if not float(area.sum()) > 0:
        raise DataError("the mesh has no area to draw points from.")
    u = randomness.uniform(key, "points", 3 * count).double().view(3, count)
    edges = area.cumsum(0) / area.sum()
    chosen = corner[torch.searchsorted(edges, u[0], right=True).clamp(max=len(edges) - 1)]  # [count, 3, 3]
    root = u[1].sqrt()
    weights = torch.stack([1 - root, root * (1 - u[2]), root * u[2]], dim=1)
    return (weights[:, :, None] * chosen).sum(dim=1).float()


def _centred(points: Tensor) -> Tensor:
    points = points - points.mean(dim=0)
    return points / points.norm(dim=1).max()


def _class_folders(folder: Path, layout: str) -> ImageFiles:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. {layout}")
    try:
        files = folders.read(folder)
    except (DataError, OSError) as error:
        raise DataError(f"{error} {layout}") from None
    if files.labels is None:
        raise DataError(f"{folder} has no class folder. {layout}")
    return files


def _need_files(folder: Path, names: list[str], layout: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder / missing[0]} and {len(missing) - 1:,} other files are missing. {layout}")


def _rows(path: Path, delimiter: str, layout: str) -> Iterator[list[str]]:
    yield from csv.reader(_lines(path, layout), delimiter=delimiter, quoting=csv.QUOTE_NONE)


def _lines(path: Path, layout: str) -> list[str]:
    return [line for line in _text(path, layout).splitlines() if line.strip()]


def _text(path: Path, layout: str) -> str:
    if not path.is_file():
        raise DataError(f"{path} is missing. {layout}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({type(error).__name__}). {layout}") from None
