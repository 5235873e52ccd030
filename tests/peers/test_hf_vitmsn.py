# SPDX-License-Identifier: Apache-2.0
"""Parity with ``transformers.ViTMSNModel``, random weights, eval mode, float32, atol 1e-5."""

import pytest
import torch
from torch import nn

from recipes_lib.models import exports, interchange, layouts, vit

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[text]'")


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    config = transformers.ViTMSNConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=8
    )
    model = transformers.ViTMSNModel(config).eval()
    for parameter in model.parameters():  # zeros and ones would hide a swap
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def ours():
    torch.manual_seed(1)
    model = vit.VisionTransformer(vit.Shape(48, 3, 4), image_size=32, patch_size=8, stem="patch").eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def agree(ours, theirs, images) -> None:
    with torch.no_grad():
        tokens = theirs(images).last_hidden_state
        torch.testing.assert_close(ours.forward_features(images), tokens, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours(images), tokens[:, 0], rtol=0, atol=1e-5)


def test_vitmsn_in_memory_and_from_its_own_files_gives_our_network_the_same_output(theirs, images, tmp_path, ours):
    ours.load_state_dict(layouts.from_hf(theirs.state_dict()))  # whichever layout this version has in memory
    agree(ours, theirs, images)
    theirs.save_pretrained(tmp_path / "theirs")
    agree(interchange.load(tmp_path / "theirs").eval(), theirs, images)


def test_our_export_gives_vitmsn_the_same_output_with_every_key_used(ours, images, tmp_path):
    exports.write(ours, tmp_path / "out", "hf")
    theirs, info = transformers.ViTMSNModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    agree(ours, theirs.eval(), images)
    assert theirs.config.image_size == 32


def test_the_exported_preprocessing_is_read_by_transformers(ours, tmp_path):
    exports.write(ours, tmp_path / "out", "hf")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert dict(processor.size) == {"height": 32, "width": 32}
