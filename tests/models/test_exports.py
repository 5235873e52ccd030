# SPDX-License-Identifier: Apache-2.0
"""What ``recipes export`` writes; that our own reader takes it back bit for bit: ``test_interchange``."""

import json
import stat

import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import load_file

from recipes_lib.errors import RunError
from recipes_lib.models import exports, interchange, vit
from recipes_lib.models.convit import ConViT
from recipes_lib.models.convnet import ConvNet
from recipes_lib.models.mlp import MLP
from recipes_lib.models.resnet import ResNet
from recipes_lib.models.wide_resnet import WideResNet
from recipes_lib.views import colour


def network(stem: str = "patch", width: int = 32, **options: object) -> vit.VisionTransformer:
    torch.manual_seed(0)
    shape = vit.Shape(width, 2, width // 16)
    return vit.VisionTransformer(shape, image_size=16, patch_size=4, stem=stem, **options).eval()


def clips() -> vit.VisionTransformer:
    """An image tower of CLIP's, with layer-scale vectors that are no longer zero."""
    model = network(pre_norm=True, layer_scale=True)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.normal_(parameter)
    return model


def convit(gpsa_layers: int = 2, **options: object) -> ConViT:
    """A ConViT with weights that are no longer its first ones."""
    torch.manual_seed(0)
    made = ConViT(vit.Shape(32, 3, 4), image_size=16, patch_size=4, gpsa_layers=gpsa_layers, **options).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def meant() -> vit.VisionTransformer:
    """A network whose representation is the mean of its patches, with registers, and norms that are no longer plain."""
    model = network(pool="mean", registers=2)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(
    "make",
    [network, clips, meant, convit, lambda: convit(0), lambda: ResNet("resnet18", stem="imagenet").eval()],
)
def test_timm_builds_and_fills_an_exported_network_itself(tmp_path, make):
    model = make()
    exports.write(model, tmp_path / "out", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    torch.testing.assert_close(theirs(pictures()), model(pictures()), rtol=0, atol=1e-5)
    assert theirs.pretrained_cfg["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("layout", ["timm", "hf"])
def test_an_export_says_that_images_were_seen_as_open_clip_sees_them(tmp_path, layout):
    exports.write(network(), tmp_path / "out", layout, normalize="openai", resize="bicubic")
    if layout == "timm":
        said = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
        assert (said["interpolation"], said["crop_pct"]) == ("bicubic", 1.0)
        assert (said["mean"][0], said["std"][0]) == (0.48145466, 0.26862954)
    else:
        said = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
        assert said["resample"] == PIL.Image.Resampling.BICUBIC
        assert (said["image_mean"][0], said["image_std"][0]) == (0.48145466, 0.26862954)


@pytest.mark.parametrize("normalize", ["image", "grey"])
def test_timm_refuses_a_network_whose_preprocessing_it_has_no_word_for(tmp_path, normalize):
    exports.write(network(), tmp_path / "out", "timm", normalize=normalize)
    with pytest.raises(RuntimeError, match=f"normalize={normalize}"):  # and computes no other features in silence
        timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert torch.equal(interchange.load(tmp_path / "out").eval()(pictures()), network()(pictures()))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["normalize"] == normalize


@pytest.mark.parametrize(
    ("make", "normalize", "reason"),
    [
        (network, "imagenet", None),
        (network, "cifar10", None),
        (network, "grey", "normalises each image by itself, as normalize=grey does"),
        (lambda: network("conv"), "imagenet", "no VisionTransformer with stem 'conv'"),
        (convit, "imagenet", None),
        (lambda: convit(3, pool="mean"), "imagenet", "mean of the patches after its last norm, and ours before it"),
        (lambda: convit(layer_scale=True), "imagenet", "no ConViT with layer scale"),
        (lambda: ResNet("resnet18", stem="imagenet"), "imagenet", None),
        (lambda: ResNet("resnet18", stem="cifar"), "imagenet", "no ResNet with stem 'cifar'"),
        (ConvNet, "imagenet", "no ConvNet"),
    ],
)
def test_why_timm_cannot_use_a_network_is_known_before_it_is_tried(make, normalize, reason):
    found = exports.beyond_timm(make(), normalize)
    assert found is None if reason is None else reason in found


def test_the_channel_statistics_of_an_export_are_those_of_the_views(tmp_path):
    exports.write(network(), tmp_path / "out", "timm", normalize="cifar10")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert tuple(theirs.pretrained_cfg["mean"]) == colour.CHANNELS["cifar10"][0]


def test_an_export_holds_weights_and_facts_and_is_readable_by_others(tmp_path):
    exports.write(network(), tmp_path / "out", "timm")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(network().state_dict())
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) & 0o755 == 0o755
    assert [file.name for file in tmp_path.iterdir()] == ["out"]  # nothing is left aside


def test_an_existing_folder_is_never_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match=r"out exists and is not overwritten"):
        exports.write(network(), tmp_path / "out", "timm")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports.os, "fsync", full)
    with pytest.raises(RunError, match=r"out cannot be written .*No space left on device"):
        exports.write(network(), tmp_path / "out", "timm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: network("conv"), "VisionTransformer with stem 'conv'"),
        (lambda: network(pool="mean"), "neither registers nor the mean of the patches"),
        (lambda: network(registers=2), "neither registers nor the mean of the patches"),
        (convit, "ViTMSN of Hugging Face has no place for this backbone: ConViT"),
        (lambda: ResNet("resnet18", stem="cifar"), "ResNet"),
        (lambda: WideResNet(depth=10, width=1), "WideResNet"),
        (ConvNet, "ConvNet"),
        (lambda: MLP(image_size=8, width=4), "MLP"),
    ],
)
def test_what_vitmsn_has_no_place_for_is_refused_in_one_line(tmp_path, make, kind):
    with pytest.raises(RunError, match=kind) as caught:
        exports.write(make(), tmp_path / "out", "hf")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
