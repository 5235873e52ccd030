# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.errors import DataError
from recipes_lib.evaluation.features import extract, read_chunks
from recipes_lib.views.multicrop import eval_view

HOW = {"image_size": 16, "normalize": "imagenet"}


class Backbone(nn.Module):
    """A flat projection with batch norm and dropout, which tell training from evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.norm = nn.LayerNorm(8)

    def before_norm(self, images):
        return self.body(images)


def memory(count: int) -> ImageSet:
    pixels = torch.randint(256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(pixels, None, ())


@pytest.fixture
def files(tmp_path):
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (30 + number, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return ImageFiles(tmp_path, np.array([f"{n}.png" for n in range(5)]), torch.zeros(5, dtype=torch.long), ("a",))


@pytest.fixture
def backbone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Backbone()


def test_features_are_those_of_the_evaluation_view_in_evaluation_mode(backbone):
    images = memory(10)
    features = extract(backbone, images, **HOW)
    backbone.eval()
    with torch.no_grad():
        expected = backbone.body(eval_view(images.images, 16, "imagenet"))
        torch.testing.assert_close(features.before_norm, expected)
        torch.testing.assert_close(features.final, backbone.norm(expected))
    assert not features.final.requires_grad


def test_embeddings_are_what_the_head_makes_of_the_final_features(backbone):
    features = extract(backbone, memory(10), **HOW, batch_size=4, embed=lambda rows: 2 * rows[:, :3])
    assert torch.equal(features.embedding, 2 * features.final[:, :3])
    assert torch.equal(features.select(torch.tensor([7, 2])).embedding, features.embedding[[7, 2]])
    assert extract(backbone, memory(10), **HOW).select(torch.tensor([1])).embedding is None


@pytest.mark.parametrize("training", [True, False])
def test_the_backbone_comes_back_in_its_mode_and_unchanged(backbone, training):
    backbone.train(training)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    extract(backbone, memory(6), **HOW)
    assert backbone.training is training
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_size_of_the_chunks_does_not_count(backbone):
    whole = extract(backbone, memory(10), **HOW, batch_size=10)
    torch.testing.assert_close(extract(backbone, memory(10), **HOW, batch_size=3).final, whole.final)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_of_any_size_give_a_row_each_in_their_order(backbone, files, workers):
    features = extract(backbone, files, **HOW, batch_size=2, workers=workers)
    assert features.final.shape == (5, 8)
    last = extract(backbone, files.select(torch.tensor([4])), **HOW)
    torch.testing.assert_close(features.final[4:], last.final)


def test_a_file_and_the_same_image_in_memory_give_nearly_the_same_features(backbone, files):
    opened = torch.from_numpy(np.array(files.open(0))).permute(2, 0, 1)[None]
    from_memory = extract(backbone, ImageSet(opened.contiguous(), None, ()), **HOW)
    from_file = extract(backbone, files.select(torch.tensor([0])), **HOW)
    torch.testing.assert_close(from_file.before_norm, from_memory.before_norm, atol=0.02, rtol=0)  # 8-bit rounding


@pytest.mark.parametrize("size", [(61, 37), (19, 50), (33, 18), (16, 16), (15, 9)])
def test_a_file_and_a_tensor_are_cut_at_the_same_place_whatever_their_size(tmp_path, size):
    pixels = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    pixels = (torch.nn.functional.interpolate(pixels, size, mode="bilinear") * 255).to(torch.uint8)
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    files = ImageFiles(tmp_path, np.array(["a.png"]), None, ())
    (chunk,) = read_chunks(files, 16, batch_size=1)
    from_file, from_memory = (eval_view(images, 16, "imagenet") for images in (chunk, pixels))
    torch.testing.assert_close(from_file, from_memory, atol=0.02, rtol=0)  # 8-bit rounding is 1/255 = 0.004, over 0.22


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_named_in_one_line_out_of_a_worker_too(backbone, files, workers):
    path = files.path(3)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"3\.png cannot be read") as error:
        extract(backbone, files, **HOW, batch_size=2, workers=workers)
    assert "\n" not in str(error.value)


def test_selected_features_stay_in_pairs(backbone):
    features = extract(backbone, memory(6), **HOW)
    chosen = features.select(torch.tensor([5, 0]))
    assert torch.equal(chosen.final, features.final[[5, 0]])
    assert torch.equal(chosen.before_norm, features.before_norm[[5, 0]])
    assert len(chosen) == 2
