# SPDX-License-Identifier: Apache-2.0
import pickle
import zipfile

import numpy as np
import pytest

from recipes_lib.data import npz
from recipes_lib.errors import DataError


def arrays(**changes) -> dict:
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8),
        "y_test": np.array([0, 1, 2]),
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


@pytest.fixture
def save(tmp_path):
    def write(**changes):
        np.savez(tmp_path / "a.npz", **arrays(**changes))
        return tmp_path / "a.npz"

    return write


def test_images_come_channels_first_with_their_labels(save):
    train, test = npz.read(save())
    assert train.images.shape == (6, 3, 8, 8)
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), arrays()["x_train"])
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert test.labels.tolist() == [0, 1, 2]
    assert train.class_names == ("0", "1", "2")


def test_labels_may_be_absent_a_column_or_small_integers(save):
    assert npz.read(save(y_train=None, y_test=None))[0].labels is None
    assert npz.read(save(y_train=np.array([[0], [1], [2], [0], [1], [2]], dtype=np.uint8)))[0].labels.shape == (6,)


def test_class_names_are_read_where_given(save):
    assert npz.read(save(class_names=np.array(["mug", "bowl", "jar"])))[0].class_names == ("mug", "bowl", "jar")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"x_train": None}, "has no x_train, only x_test, y_test, y_train"),
        ({"x_test": None}, "has no x_test"),
        ({"x_train": np.zeros((6, 8, 8, 3), np.float32)}, r"x_train is float32 \[6, 8, 8, 3\].*astype"),
        ({"x_train": np.zeros((6, 8, 8), np.uint8)}, r"\[6, 8, 8\].*np\.repeat"),
        ({"x_train": np.zeros((6, 8, 8, 1), np.uint8)}, r"np\.repeat"),
        ({"x_train": np.zeros((6, 3, 8, 8), np.uint8)}, r"transpose"),
        ({"x_train": np.zeros((6, 8, 8, 4), np.uint8)}, r"\[6, 8, 8, 4\], but images are uint8 \[N, side, side, 3\]"),
        ({"x_train": np.zeros((6, 192), np.uint8)}, r"\[6, 192\]"),
        ({"x_train": np.zeros((6, 8, 9, 3), np.uint8)}, "squares"),
        ({"x_test": np.zeros((0, 8, 8, 3), np.uint8), "y_test": np.zeros(0, int)}, "empty"),
        ({"y_train": np.array([0, 1])}, "2 labels for 6 images of x_train"),
        ({"y_train": np.eye(6)}, "argmax"),
        ({"y_train": np.array([0.0] * 6)}, "labels are integers"),
        ({"y_train": np.array([0, 1, 2, 0, 1, -2])}, "label -2"),
        ({"y_train": np.array([0, 1, 2, 0, 1, 255])}, r"one label is 255, and the others go up to 2\. .*write -1"),
        (
            {"y_train": np.array([0, 1, 2, 0, 1, 2], "m8[s]")},
            r"y_train is timedelta64\[s\] \[6\], but labels are integers",
        ),
        ({"x_test": np.zeros((3, 9, 9, 3), np.uint8)}, "x_train has images of 8 x 8 pixels, x_test of 9 x 9"),
        ({"x_train": np.ones((6, 8, 8, 3), np.uint16)}, "x_train is uint16, and its largest value is 1"),
        ({"x_train": np.zeros((6, 8, 8, 3), np.int32)}, "x_train is int32"),
        ({"class_names": np.array(["mug"])}, "1 names, but the labels go up to 2"),
        ({"y_train": np.array([object()] * 6)}, "Python objects"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(save, changes, text):
    path = save(**changes)
    with pytest.raises(DataError, match=text) as error:
        npz.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"is no file\. data\.name npz wants"):
        npz.read(tmp_path / "gone.npz")
    with pytest.raises(DataError, match="is no file"):
        npz.read(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused(save, kept):
    path = save()
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=r"is no complete \.npz file"):
        npz.read(path)


def test_a_flipped_byte_is_refused(save):
    path = save()
    content = bytearray(path.read_bytes())
    content[400] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is no complete \.npz file"):
        npz.read(path)


def test_an_image_without_a_label_has_minus_one(save):
    train, _ = npz.read(save(y_train=np.array([0, 1, -1, 0, 2, -1])))
    assert train.labels.tolist() == [0, 1, -1, 0, 2, -1]
    assert train.class_names == ("0", "1", "2")


def test_sixteen_bits_are_read_as_from_image_files(save):
    deep = np.full((6, 8, 8, 3), 40_000, np.uint16)
    train, test = npz.read(save(x_train=deep))
    assert train.images.unique().tolist() == [156]
    note = f"{save(x_train=deep)}: x_train has 16 bits per value; the values were divided by 256."
    assert train.notes == test.notes == (note,)


IDS = [1440764, 2**62, 2**63 + 7, 1440764, 3, 2**62]


@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_labels_of_any_size_are_numbered_from_0_and_keep_their_number_as_name(save, dtype):
    ids = np.array([min(number, 2**63 - 1) if dtype is np.int64 else number for number in IDS], dtype)
    train, test = npz.read(save(y_train=ids, y_test=np.array([3, 1440764, 2**40])))
    assert train.labels.tolist() == [1, 3, 4, 1, 0, 3]
    assert test.labels.tolist() == [0, 1, 2]  # a class that only the test images have is a class
    assert train.class_names == test.class_names == ("3", "1440764", str(2**40), str(2**62), str(ids.max()))


def rewritten(path, change, *, method=zipfile.ZIP_STORED, extra=()) -> None:
    """The file at ``path`` with each array's bytes as ``change(name, bytes)`` gives them, and more members."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, change(name, content))
        for name, content in extra:
            archive.writestr(name, content)


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def of(key: str, content: bytes):
    return lambda name, old: content if name == f"{key}.npy" else old


SIZES = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 8, 3), }\n"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (header(SIZES) + bytes(100), r"x_train should have 192,000,000,000,000 bytes by its header"),
        (header("(" * 9_000 + ")" * 9_000), r"is no complete \.npz file"),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (-6, 8, 8, 3), }\n"), "should have -1,152 bytes"),
        (b"", r"is no complete \.npz file"),
    ],
    ids=["huge shape", "nested header", "negative shape", "empty"],
)
def test_headers_that_promise_what_is_not_there_are_refused_before_anything_is_read(save, content, text):
    path = save()
    rewritten(path, of("x_train", content))
    with pytest.raises(DataError, match=text):
        npz.read(path)


def test_a_small_file_of_gigabytes_is_refused_by_its_header(save, monkeypatch):
    monkeypatch.setattr(npz, "_SUSPECT_BYTES", 1 << 20)
    monkeypatch.setattr(npz, "_array", lambda *args: pytest.fail("an array was read"))
    path = save(x_train=np.zeros((6000, 8, 8, 3), np.uint8), y_train=None)
    rewritten(path, lambda name, old: old, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"x_train would take 1,152,000 bytes, from [\d,]+ in the file"):
        npz.read(path)
    monkeypatch.setattr(npz, "_SUSPECT_BYTES", 1 << 30)
    monkeypatch.setattr(npz, "_memory", lambda: 2_000_000)
    with pytest.raises(
        DataError, match=r"x_train takes 1,152,000 bytes, twice for a moment; this machine has 2,000,000"
    ):
        npz.read(path)


def test_other_arrays_are_not_looked_at(save):
    path = save()
    pickled = pickle.dumps(object())
    rewritten(path, lambda name, old: old, extra=[("other.npy", header(SIZES)), ("notes.npy", pickled), ("a.txt", b"")])
    assert len(npz.read(path)[0]) == 6


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_compression_that_numpy_does_not_write_is_refused(save, method):
    path = save()
    rewritten(path, lambda name, old: old, method=method)
    with pytest.raises(DataError, match="x_train is compressed by a method that numpy does not write"):
        npz.read(path)


def test_an_encrypted_array_is_refused(save):
    path = save()
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags of a member and of its entry in the list
        place = content.find(mark)
        while place >= 0:
            content[place + offset] |= 1
            place = content.find(mark, place + 1)
    path.write_bytes(content)
    with pytest.raises(DataError, match="x_train is encrypted"):
        npz.read(path)


def test_a_pickle_and_a_single_array_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(pickle.dumps({"x_train": 1}))
    with pytest.raises(DataError, match=r"no complete \.npz file"):
        npz.read(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"no complete \.npz file"):
        npz.read(tmp_path / "b.npy")


def test_the_real_subset_of_cifar_10_is_read(recipes_data):
    train, test = npz.read(recipes_data / "cifar10_subset" / "cifar10_5k_1k.npz")
    assert (len(train), len(test)) == (5000, 1000)
    assert train.labels.bincount().tolist() == [500] * 10
    assert train.class_names[:2] == ("airplane", "automobile")
    # channel means measured once, apart from this code
    means = train.images.double().mean(dim=(0, 2, 3)).tolist()
    assert means == pytest.approx([125.23, 122.60, 113.32], abs=0.01)
