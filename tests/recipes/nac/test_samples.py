# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from recipes_lib.data.images import ImageFiles
from recipes_lib.errors import DamagedImage
from recipes_lib.recipes.nac.samples import Clouds, ImagePairs, Sequences, text_bytes


def test_a_batch_of_sequences_is_filled_after_the_end_of_the_shorter_ones():
    made = Sequences(
        (text_bytes("ab", 9), text_bytes("cdefg", 3), text_bytes("h", 9)), torch.zeros(3).long(), 256, ("x",)
    )
    assert made.batch(torch.tensor([2, 1])).tolist() == [[104, 256, 256], [99, 100, 101]]
    assert made.batch(torch.tensor([0])).dtype == torch.int64
    assert len(made) == 3


def test_a_text_is_its_bytes_in_utf8():
    assert bytes(text_bytes("Mürbe", 100).tolist()) == "Mürbe".encode()
    assert len(text_bytes("Mürbe", 2)) == 2


def test_pairs_open_both_images_and_name_a_file_that_cannot_be_read(tmp_path):
    for name, grey in (("a.png", 10), ("b.png", 200)):
        Image.fromarray(np.full((4, 4, 3), grey, np.uint8)).save(tmp_path / name)
    left, right = (ImageFiles(tmp_path, np.array(names), torch.tensor([1, 0]), ("False", "True")) for names in
                   (["a.png", "gone.png"], ["b.png", "a.png"]))  # fmt: skip
    pairs = ImagePairs(left, right, ("one", "two"))
    assert len(pairs) == 2
    assert [image.getpixel((0, 0))[0] for image in pairs.open(0)] == [10, 200]
    with pytest.raises(DamagedImage, match=r"gone.png cannot be read"):
        pairs.open(1)


def test_parts_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="2 labels for 1 sequences"):
        Sequences((text_bytes("a", 1),), torch.zeros(2).long(), 256, ("x",))
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        Sequences((text_bytes("a", 1), text_bytes("", 1)), torch.zeros(2).long(), 256, ("x",))
    with pytest.raises(ValueError, match=r"points \[2, 5, 2\] with 2 labels; \[N, P, 3\] are wanted"):
        Clouds(torch.zeros(2, 5, 2), torch.zeros(2).long(), ("x",))
    with pytest.raises(ValueError, match="points are not finite"):
        Clouds(torch.full((1, 5, 3), torch.nan), torch.zeros(1).long(), ("x",))
