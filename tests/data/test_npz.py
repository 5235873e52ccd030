# SPDX-License-Identifier: Apache-2.0
import pickle

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
        ({"y_train": np.array([0, 1, 2, 0, 1, -1])}, "label -1"),
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
