# SPDX-License-Identifier: Apache-2.0
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from recipes_lib.data.pairs import PairSet
from recipes_lib.data.pools import shards

wds = pytest.importorskip("webdataset")


def pairs(count: int) -> PairSet:
    images = torch.randint(0, 256, (count, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    texts, uids = (tuple(make(i) for i in range(count)) for make in (lambda i: f"Löffel {i}", lambda i: f"{i:032x}"))
    return PairSet(images, None, (), texts=texts, uids=uids)


def test_webdataset_reads_our_shards(tmp_path):
    """``WebDataset(urls).decode("pil").to_tuple(...)``: keys, texts, JSON and pixels are equal."""
    made = pairs(11)
    paths = shards.write(made, tmp_path / "pool", 4)
    stream = wds.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False).decode("pil")
    theirs = list(stream.to_tuple("__key__", "txt", "json", "png"))
    ours = [pair for path in paths for pair in shards.read(path, on_damage="stop")]
    assert len(theirs) == len(ours) == 11
    for (key, text, facts, image), pair in zip(theirs, ours, strict=True):
        assert (key, text, facts["uid"]) == (pair.key, pair.text, pair.uid)
        assert np.array_equal(np.array(image), np.array(pair.image))


def test_we_read_the_shards_of_webdataset(tmp_path):
    """``TarWriter``, which encodes JPEG, text and JSON itself: keys, texts, uids and decoded pixels are equal."""
    made, path = pairs(6), tmp_path / "a.tar"
    pixels = made.images.permute(0, 2, 3, 1).numpy()
    with wds.TarWriter(str(path)) as writer:
        for row in range(6):
            facts = {"uid": made.uids[row], "width": 7}
            writer.write({"__key__": f"part/{row:05d}", "jpg": pixels[row], "txt": made.texts[row], "json": facts})
    theirs = list(wds.WebDataset(str(path), shardshuffle=False))
    ours = list(shards.read(path, on_damage="stop"))
    assert (
        [pair.key for pair in ours] == [sample["__key__"] for sample in theirs] == [f"part/{i:05d}" for i in range(6)]
    )
    for pair, sample in zip(ours, theirs, strict=True):
        assert (pair.text, pair.uid) == (sample["txt"].decode(), json.loads(sample["json"])["uid"])
        assert pair.extra == {"width": 7}
        assert np.array_equal(np.array(pair.image), np.array(Image.open(io.BytesIO(sample["jpg"]))))
