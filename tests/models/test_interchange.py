# SPDX-License-Identifier: Apache-2.0
import json
import pickle
import stat
from pathlib import Path

import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from recipes_lib.errors import RunError
from recipes_lib.models import interchange, vit
from recipes_lib.models.convnet import ConvNet
from recipes_lib.models.mlp import MLP
from recipes_lib.models.resnet import ResNet
from recipes_lib.models.wide_resnet import WideResNet
from recipes_lib.views import colour


def network(stem: str = "patch", width: int = 32, **options: bool) -> vit.VisionTransformer:
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


def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (network, "timm"),
        (network, "hf"),
        (clips, "timm"),
        (lambda: network("conv"), "timm"),
        (lambda: ResNet("resnet18", stem="cifar").eval(), "timm"),
        (lambda: WideResNet(depth=10, width=2).eval(), "timm"),
        (lambda: ConvNet().eval(), "timm"),
        (lambda: MLP(image_size=16, width=8).eval(), "timm"),
    ],
)
def test_an_exported_network_comes_back_bit_for_bit(tmp_path, make, layout):
    model = make()
    interchange.export(model, tmp_path / "new" / "out", layout)
    again = interchange.load(tmp_path / "new" / "out").eval()
    assert type(again) is type(model)
    assert torch.equal(again(pictures()), model(pictures()))


@pytest.mark.parametrize("make", [network, clips, lambda: ResNet("resnet18", stem="imagenet").eval()])
def test_timm_builds_and_fills_an_exported_network_itself(tmp_path, make):
    model = make()
    interchange.export(model, tmp_path / "out", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    torch.testing.assert_close(theirs(pictures()), model(pictures()), rtol=0, atol=1e-5)
    assert theirs.pretrained_cfg["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("layout", ["timm", "hf"])
def test_an_export_says_that_images_were_seen_as_open_clip_sees_them(tmp_path, layout):
    interchange.export(network(), tmp_path / "out", layout, normalize="openai", resize="bicubic")
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
    interchange.export(network(), tmp_path / "out", "timm", normalize=normalize)
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
        (lambda: ResNet("resnet18", stem="imagenet"), "imagenet", None),
        (lambda: ResNet("resnet18", stem="cifar"), "imagenet", "no ResNet with stem 'cifar'"),
        (ConvNet, "imagenet", "no ConvNet"),
    ],
)
def test_why_timm_cannot_use_a_network_is_known_before_it_is_tried(make, normalize, reason):
    found = interchange.beyond_timm(make(), normalize)
    assert found is None if reason is None else reason in found


def test_the_channel_statistics_of_an_export_are_those_of_the_views(tmp_path):
    assert interchange.CHANNELS == colour.CHANNELS
    interchange.export(network(), tmp_path / "out", "timm", normalize="cifar10")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert tuple(theirs.pretrained_cfg["mean"]) == colour.CHANNELS["cifar10"][0]


def test_an_export_holds_weights_and_facts_and_is_readable_by_others(tmp_path):
    interchange.export(network(), tmp_path / "out", "timm")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(network().state_dict())
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) & 0o755 == 0o755
    assert [file.name for file in tmp_path.iterdir()] == ["out"]  # nothing is left aside


def test_an_existing_folder_is_never_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match=r"out exists and is not overwritten"):
        interchange.export(network(), tmp_path / "out", "timm")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(interchange.os, "fsync", full)
    with pytest.raises(RunError, match=r"out cannot be written .*No space left on device"):
        interchange.export(network(), tmp_path / "out", "timm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: network("conv"), "VisionTransformer with stem 'conv'"),
        (lambda: ResNet("resnet18", stem="cifar"), "ResNet"),
        (lambda: WideResNet(depth=10, width=1), "WideResNet"),
        (ConvNet, "ConvNet"),
        (lambda: MLP(image_size=8, width=4), "MLP"),
    ],
)
def test_what_vitmsn_has_no_place_for_is_refused_in_one_line(tmp_path, make, kind):
    with pytest.raises(RunError, match=kind) as caught:
        interchange.export(make(), tmp_path / "out", "hf")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# official checkpoints


def official(folder: Path, width: int, depth: int, heads: int) -> tuple[Path, vit.VisionTransformer]:
    """A checkpoint as the official code writes it, and the network whose weights it holds."""
    torch.manual_seed(0)
    model = vit.VisionTransformer(vit.Shape(width, depth, heads), image_size=16, patch_size=8, stem="patch").eval()
    encoder = {f"module.{key}": value for key, value in model.state_dict().items()}
    encoder["module.fc.fc1.weight"] = torch.zeros(3, width)
    torch.save({"target_encoder": encoder, "prototypes": torch.zeros(5, 4)}, folder / "msn.pth.tar")
    return folder / "msn.pth.tar", model


def test_an_official_checkpoint_file_is_loaded_with_the_heads_of_its_width_and_depth(tmp_path):
    file, model = official(tmp_path, 192, 12, 3)
    again = interchange.load(file).eval()
    assert torch.equal(again(pictures()), model(pictures()))


def test_the_official_huge_network_has_16_heads_of_80_dimensions():
    assert interchange._heads(Path("huge.pth"), 1280, 32, None) == 16  # not 1280 / 64


def test_an_official_network_of_unknown_heads_is_refused_unless_they_are_said(tmp_path):
    file, model = official(tmp_path, 128, 2, 4)
    with pytest.raises(RunError, match=r"width 128 and 2 blocks.*how many attention heads") as caught:
        interchange.load(file)
    assert "\n" not in str(caught.value)
    assert torch.equal(interchange.load(file, heads=4).eval()(pictures()), model(pictures()))
    with pytest.raises(RunError, match="heads = 3 does not divide the width"):
        interchange.load(file, heads=3)


@pytest.mark.parametrize("encoder", [None, [1], {"patch_embed.proj.weight": 3}, {1: torch.zeros(2)}])
def test_a_target_encoder_that_is_no_table_of_tensors_is_refused_in_one_line(tmp_path, encoder):
    torch.save({"target_encoder": encoder}, tmp_path / "msn.pth")
    with pytest.raises(RunError, match="target_encoder is no table of named tensors") as caught:
        interchange.load(tmp_path / "msn.pth")
    assert "\n" not in str(caught.value)


def test_an_official_network_on_other_than_patches_is_refused_with_its_sizes(tmp_path):
    state = network(width=64).state_dict() | {"patch_embed.proj.weight": torch.zeros(64, 48)}
    torch.save({"target_encoder": state}, tmp_path / "msn.pth")
    with pytest.raises(RunError, match=r"no Vision Transformer on patches: .*\[64, 48\]"):
        interchange.load(tmp_path / "msn.pth")


def test_an_official_checkpoint_of_another_grid_is_refused_with_its_size(tmp_path):
    state = network(width=64).state_dict() | {"pos_embed": torch.zeros(1, 13, 64)}
    torch.save({"target_encoder": state}, tmp_path / "msn.pth")
    with pytest.raises(RunError, match=r"12 patch positions.*no square grid"):
        interchange.load(tmp_path / "msn.pth", heads=1)


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_offered_as_weights_is_refused_and_never_run(tmp_path, writer):
    trap = {"target_encoder": Trap(tmp_path / "sprung")}
    file = tmp_path / "msn.pth"
    if writer == "torch":
        torch.save(trap, file)
    else:
        file.write_bytes(pickle.dumps(trap))
    with pytest.raises(RunError, match=r"cannot be read as a file of tensors.*Pickles are refused"):
        interchange.load(file)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04N.", bytes(range(256))])
def test_a_file_that_holds_no_tensors_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "msn.pth").write_bytes(content)
    with pytest.raises(RunError, match=r"msn\.pth") as caught:
        interchange.load(tmp_path / "msn.pth")
    assert "\n" not in str(caught.value)


# folders that are not an export


def test_a_folder_without_weights_is_refused_with_what_it_has(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(RunError, match=r"model\.safetensors is missing; .*pytorch_model\.bin.*Pickles .* are refused"):
        interchange.load(tmp_path)


def test_damaged_files_other_configs_and_wrong_sizes_are_refused(tmp_path):
    interchange.export(network(), tmp_path / "out", "timm")
    weights, config = tmp_path / "out" / "model.safetensors", tmp_path / "out" / "config.json"
    whole, facts = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(whole[:-5])
    with pytest.raises(RunError, match="out cannot be read"):
        interchange.load(tmp_path / "out")
    weights.write_bytes(whole)
    config.write_text(json.dumps(facts | {"recipes_lib": facts["recipes_lib"] | {"shape": [48, 2, 2]}}))
    with pytest.raises(RunError, match=r"sizes of the weights do not fit: .*size mismatch") as caught:
        interchange.load(tmp_path / "out")
    assert "\n" not in str(caught.value)
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(RunError, match="describes neither a ViTMSN nor"):
        interchange.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act = relu"),
        ({"image_size": [16, 24]}, "image_size = 16x24.*squares only"),
        ({"image_size": [16, 16, 3]}, r"image_size = \[16, 16, 3\]; a whole number"),
        ({"image_size": "16"}, "image_size = '16'; a whole number"),
        ({"patch_size": 5}, "patch_size = 5; it does not divide image_size = 16"),
        ({"hidden_size": None}, "hidden_size = None; a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0; a whole number"),
        ({"num_attention_heads": 3}, "3 attention heads; they do not divide the width 32"),
    ],
)
def test_a_vitmsn_that_ours_cannot_be_is_refused_by_the_field(tmp_path, change, message):
    interchange.export(network(), tmp_path / "out", "hf")
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(RunError, match=message):
        interchange.load(tmp_path / "out")


@pytest.mark.parametrize(
    "field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"]
)
def test_a_vitmsn_without_a_field_is_refused_by_its_name(tmp_path, field):
    interchange.export(network(), tmp_path / "out", "hf")
    config = tmp_path / "out" / "config.json"
    facts = json.loads(config.read_text())
    del facts[field]
    config.write_text(json.dumps(facts))
    with pytest.raises(RunError, match=f"config.json has no {field}") as caught:
        interchange.load(tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[1, 2]", "3", "null", '{"recipes_lib": []}', "{}"])
def test_a_config_that_is_no_description_of_a_network_is_refused_in_one_line(tmp_path, content):
    interchange.export(network(), tmp_path / "out", "timm")
    (tmp_path / "out" / "config.json").write_text(content)
    with pytest.raises(RunError, match="describes neither a ViTMSN nor") as caught:
        interchange.load(tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (network, {"network": "Perceiver"}, "network = 'Perceiver'"),
        (network, {"network": ["ResNet"]}, r"network = \['ResNet'\]"),
        (network, {"shape": [32, 2]}, r"shape = \[32, 2\]; width, depth and heads"),
        (network, {"shape": None}, "shape = None"),
        (network, {"shape": [32, 2, 5]}, "5 attention heads"),
        (network, {"stem": "hole"}, "stem = 'hole'; there are: patch, conv"),
        (network, {"pre_norm": 1}, "pre_norm = 1; there are: False, True"),
        (network, {"image_size": -4}, "image_size = -4"),
        (lambda: ResNet("resnet18", stem="cifar"), {"arch": "resnet19"}, "arch = 'resnet19'; there are: resnet18"),
        (lambda: ResNet("resnet18", stem="cifar"), {"stem": []}, r"stem = \[\]"),
        (lambda: WideResNet(depth=10, width=1), {"depth": 11}, "depth = 11; a wide ResNet's is 10, 16"),
        (lambda: WideResNet(depth=10, width=1), {"width": 0}, "width = 0; a whole number"),
        (lambda: MLP(image_size=8, width=4), {"width": "4"}, "width = '4'"),
    ],
)
def test_a_fact_about_our_own_network_that_does_not_fit_is_refused_by_its_name(tmp_path, make, change, message):
    interchange.export(make(), tmp_path / "out", "timm")
    config = tmp_path / "out" / "config.json"
    facts = json.loads(config.read_text())
    facts["recipes_lib"] |= change
    config.write_text(json.dumps(facts))
    with pytest.raises(RunError, match=message) as caught:
        interchange.load(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_missing_weights_of_an_export_are_named(tmp_path):
    interchange.export(network(), tmp_path / "out", "timm")
    weights = tmp_path / "out" / "model.safetensors"
    state = load_file(weights)
    del state["cls_token"]
    save_file(state, weights)
    with pytest.raises(RunError, match=r"missing 1 \(cls_token\)"):
        interchange.load(tmp_path / "out")
