# SPDX-License-Identifier: Apache-2.0
import json
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from recipes_lib.errors import RunError
from recipes_lib.models import backbones, exports, interchange, vit
from recipes_lib.models.backbones import BackboneConfig
from recipes_lib.models.convit import ConViT
from recipes_lib.models.convnet import ConvNet
from recipes_lib.models.mlp import MLP
from recipes_lib.models.nac import backbone as nac
from recipes_lib.models.nac.network import NeuralAttentiveCircuit
from recipes_lib.models.resnet import ResNet
from recipes_lib.models.wide_resnet import WideResNet


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


def circuit(**options: object) -> NeuralAttentiveCircuit:
    """A circuit with weights that are no longer its first ones."""
    torch.manual_seed(0)
    made = nac.build(nac.NACConfig(arch="nac_pico", patch_size=4, **options), image_size=16).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (network, "timm"),
        (network, "hf"),
        (clips, "timm"),
        (lambda: network(pool="mean"), "timm"),
        (lambda: network(pool="mean", registers=3), "timm"),
        (lambda: network(registers=1), "timm"),
        (lambda: network("conv"), "timm"),
        (lambda: network("conv", pool="mean"), "timm"),
        (convit, "timm"),
        (lambda: convit(0), "timm"),
        (lambda: convit(3, pool="mean"), "timm"),
        (lambda: convit(2, pool="mean", layer_scale=True), "timm"),
        (circuit, "timm"),
        (lambda: circuit(stem="patch", layer_scale=True, bandwidth=0.5, truncation=0.9), "timm"),
        (lambda: ResNet("resnet18", stem="cifar").eval(), "timm"),
        (lambda: WideResNet(depth=10, width=2).eval(), "timm"),
        (lambda: ConvNet().eval(), "timm"),
        (lambda: MLP(image_size=16, width=8).eval(), "timm"),
    ],
)
def test_an_exported_network_comes_back_bit_for_bit(tmp_path, make, layout):
    model = make()
    exports.write(model, tmp_path / "new" / "out", layout)
    again = interchange.load(tmp_path / "new" / "out").eval()
    assert type(again) is type(model)
    assert torch.equal(again(pictures()), model(pictures()))


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


def test_an_official_network_of_unknown_heads_is_refused(tmp_path):
    file, _ = official(tmp_path, 128, 2, 4)
    with pytest.raises(
        RunError, match=r"width 128 and 2 blocks.*how many attention heads.*vit_huge 1280 x 32"
    ) as caught:
        interchange.load(file)
    assert "\n" not in str(caught.value)


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
        interchange.load(tmp_path / "msn.pth")


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
    exports.write(network(), tmp_path / "out", "timm")
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
    exports.write(network(), tmp_path / "out", "hf")
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(RunError, match=message):
        interchange.load(tmp_path / "out")


@pytest.mark.parametrize(
    "field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"]
)
def test_a_vitmsn_without_a_field_is_refused_by_its_name(tmp_path, field):
    exports.write(network(), tmp_path / "out", "hf")
    config = tmp_path / "out" / "config.json"
    facts = json.loads(config.read_text())
    del facts[field]
    config.write_text(json.dumps(facts))
    with pytest.raises(RunError, match=f"config.json has no {field}") as caught:
        interchange.load(tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[1, 2]", "3", "null", '{"recipes_lib": []}', "{}"])
def test_a_config_that_is_no_description_of_a_network_is_refused_in_one_line(tmp_path, content):
    exports.write(network(), tmp_path / "out", "timm")
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
        (convit, {"gpsa_layers": 4}, "gpsa_layers = 4; there are: 0, 1, 2, 3"),
        (convit, {"gpsa_layers": None}, "gpsa_layers = None; there are: 0, 1, 2, 3"),
        (convit, {"shape": [32, 2]}, r"shape = \[32, 2\]; width, depth and heads"),
        (convit, {"shape": [36, 3, 5]}, "5 attention heads; they do not divide the width 36"),
        (convit, {"patch_size": 3}, "patch_size = 3; it does not divide image_size = 16"),
        (convit, {"pool": "max"}, "pool = 'max'; there are: cls, mean"),
        (circuit, {"shape": [16, 1, 32]}, r"shape = \[16, 1, 32\], image_size = 16"),
        (circuit, {"stem": "hole"}, "stem = 'hole'"),
        (circuit, {"link": {}}, r"link = \{\}; bandwidth, temperature"),
        (circuit, {"link": {"bandwidth": -1.0, "temperature": 0.5, "truncation": None, "evaluation": "mean"}}, "-1.0"),
        (circuit, {"patch_size": 3}, "patch_size = 3"),
        (lambda: ResNet("resnet18", stem="cifar"), {"arch": "resnet19"}, "arch = 'resnet19'; there are: resnet18"),
        (lambda: ResNet("resnet18", stem="cifar"), {"stem": []}, r"stem = \[\]"),
        (lambda: WideResNet(depth=10, width=1), {"depth": 11}, "depth = 11; a wide ResNet's is 10, 16"),
        (lambda: WideResNet(depth=10, width=1), {"width": 0}, "width = 0; a whole number"),
        (lambda: MLP(image_size=8, width=4), {"width": "4"}, "width = '4'"),
    ],
)
def test_a_fact_about_our_own_network_that_does_not_fit_is_refused_by_its_name(tmp_path, make, change, message):
    exports.write(make(), tmp_path / "out", "timm")
    config = tmp_path / "out" / "config.json"
    facts = json.loads(config.read_text())
    facts["recipes_lib"] |= change
    config.write_text(json.dumps(facts))
    with pytest.raises(RunError, match=message) as caught:
        interchange.load(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_missing_weights_of_an_export_are_named(tmp_path):
    exports.write(network(), tmp_path / "out", "timm")
    weights = tmp_path / "out" / "model.safetensors"
    state = load_file(weights)
    del state["cls_token"]
    save_file(state, weights)
    with pytest.raises(RunError, match=r"missing 1 \(cls_token\)"):
        interchange.load(tmp_path / "out")


# folders and files of timm


def of_timm(folder: Path, **changes: object) -> torch.nn.Module:
    """A Vision Transformer of timm with a classifier, in a folder as timm's models come."""
    torch.manual_seed(0)
    how = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2} | changes
    theirs = timm.create_model("vit_base_patch16_224", num_classes=3, **how).eval()
    folder.mkdir()
    save_file(theirs.state_dict(), folder / "model.safetensors")
    facts = {"architecture": "vit_base_patch16_224", "num_classes": 3, "model_args": how}
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    (folder / "config.json").write_text(json.dumps(facts | {"pretrained_cfg": preprocessing}))
    return theirs


def test_a_folder_and_a_file_of_timms_own_give_timms_features_without_the_classifier(tmp_path):
    theirs = of_timm(tmp_path / "vit")
    with torch.no_grad():
        wanted = theirs.forward_head(theirs.forward_features(pictures()), pre_logits=True)
        for place in (tmp_path / "vit", tmp_path / "vit" / "model.safetensors"):
            torch.testing.assert_close(interchange.load(place).eval()(pictures()), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("heads", [4, 3])
def test_a_convit_of_timm_gives_timms_features_from_its_folder_and_from_its_file(tmp_path, heads):
    theirs = convit_of_timm(tmp_path / "net", embed_dim=8, num_heads=heads)
    with torch.no_grad():
        wanted = theirs.forward_head(theirs.forward_features(pictures()), pre_logits=True)
        for place in (tmp_path / "net", tmp_path / "net" / "model.safetensors"):
            again = interchange.load(place).eval()
            torch.testing.assert_close(again(pictures()), wanted, rtol=0, atol=1e-5)
            assert (again.shape, again.gpsa_layers) == (vit.Shape(8 * heads, 3, heads), 2)


def convit_of_timm(folder: Path, **changes: object) -> torch.nn.Module:
    """A ConViT of timm with a classifier and large weights, in a folder as timm's models come."""
    torch.manual_seed(0)
    how = {"img_size": 16, "patch_size": 4, "depth": 3, "local_up_to_layer": 2} | changes
    theirs = timm.create_model("convit_tiny", num_classes=3, **how).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder.mkdir()
    save_file(theirs.state_dict(), folder / "model.safetensors")
    facts = {"architecture": "convit_tiny", "num_classes": 3, "model_args": how, "pretrained_cfg": {}}
    (folder / "config.json").write_text(json.dumps(facts))
    return theirs


def test_a_file_of_a_convit_without_a_class_token_is_one_with_a_mean(tmp_path):
    model = convit(3, pool="mean", layer_scale=True)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    assert torch.equal(interchange.load(tmp_path / "net.safetensors").eval()(pictures()), model(pictures()))


def test_a_convit_of_timm_that_computes_otherwise_is_refused(tmp_path):
    convit_of_timm(tmp_path / "mean", embed_dim=8, num_heads=4, global_pool="avg")
    with pytest.raises(RunError, match=r"fits our ConViT by its sizes, and gives other features .*pooling is another"):
        interchange.load(tmp_path / "mean")
    convit_of_timm(tmp_path / "biases", embed_dim=8, num_heads=4, qkv_bias=True)
    with pytest.raises(RunError, match=r"left over .*blocks\.0\.attn\.qk\.bias"):
        interchange.load(tmp_path / "biases")


def test_a_network_of_timm_that_computes_otherwise_is_refused(tmp_path):
    of_timm(tmp_path / "vit", act_layer="quick_gelu")
    with pytest.raises(RunError, match=r"gives other features than timm's network \(by \d+%\)") as caught:
        interchange.load(tmp_path / "vit")
    assert "\n" not in str(caught.value)


def test_other_networks_of_timm_and_files_of_other_networks_are_refused(tmp_path):
    (tmp_path / "net").mkdir()
    network = timm.create_model("resnet18d", num_classes=0)
    save_file(network.state_dict(), tmp_path / "net" / "model.safetensors")
    (tmp_path / "net" / "config.json").write_text(
        '{"architecture": "resnet18d", "num_classes": 0, "pretrained_cfg": {}}'
    )
    with pytest.raises(RunError, match="holds resnet18d of timm: only Vision Transformers, ConViTs, resnet18"):
        interchange.load(tmp_path / "net")
    with pytest.raises(RunError, match=r"no Vision Transformer under timm's keys: it has no patch_embed\.proj\.weight"):
        interchange.load(tmp_path / "net" / "model.safetensors")
    (tmp_path / "net" / "config.json").write_text('{"architecture": "no_such_network"}')
    with pytest.raises(RunError, match=r"timm cannot read .*Unknown model"):
        interchange.load(tmp_path / "net")


@pytest.mark.parametrize("layout", ["timm", "hf"])
@pytest.mark.parametrize(
    ("normalize", "resize"),
    [("imagenet", "bilinear"), ("openai", "bicubic"), ("imagenet", "bicubic_margin"), ("grey", "bilinear")],
)
def test_an_exports_preprocessing_comes_back_where_its_layout_has_a_word_for_it(tmp_path, layout, normalize, resize):
    exports.write(network(), tmp_path / "out", layout, normalize=normalize, resize=resize)
    silent = layout == "hf" and normalize == "grey"
    known = "bicubic" if layout == "hf" and resize == "bicubic_margin" else resize  # Hugging Face's has no margins
    assert interchange.preprocessing(tmp_path / "out") == ((None, None) if silent else (normalize, known))


def test_the_preprocessing_of_other_files_is_what_they_say_of_it(tmp_path):
    of_timm(tmp_path / "vit")
    assert interchange.preprocessing(tmp_path / "vit") == (None, "bicubic")  # a mean of 0.5 is none of ours
    assert interchange.preprocessing(tmp_path / "vit" / "model.safetensors") == (None, None)
    file, _ = official(tmp_path, 192, 12, 3)
    assert interchange.preprocessing(file) == ("imagenet", "bilinear")


def test_what_is_no_file_of_weights_is_refused_by_its_name(tmp_path):
    with pytest.raises(RunError, match="nothing does not exist"):
        interchange.layout_of(tmp_path / "nothing")
    (tmp_path / "weights.onnx").touch()
    with pytest.raises(RunError, match=r"weights\.onnx is neither a folder"):
        interchange.layout_of(tmp_path / "weights.onnx")


@pytest.mark.parametrize("name", ["resnet18", "resnetrs50"])
def test_a_resnet_of_timm_is_read_and_gives_the_same_features(tmp_path, name):
    theirs = timm.create_model(name, num_classes=0).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    facts = {"architecture": name, "num_classes": 0, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(interchange.load(tmp_path).eval()(images), theirs(images))


def test_a_network_with_convolutions_as_attention_is_exported_and_read_again(tmp_path):
    config = BackboneConfig(arch="tcnn_convnet_small", stem="cifar", gate="near", gate_logit=2.0, head_dim=3)
    ours = backbones.build(config, image_size=32).eval()
    exports.write(ours, tmp_path / "net", "timm")
    read = interchange.load(tmp_path / "net").eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(read(images), ours(images))
    assert exports.beyond_timm(ours, "imagenet") == "timm has no ConvNet with convolutions as attention"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"recast": {"layers": ["layers.9"], "gate": "near", "head_dim": 3}}, r"has no part 'layers\.9'"),
        ({"recast": {"layers": ["layers.3.0"], "gate": "far", "head_dim": 3}}, "gate = 'far'; there are: linear, near"),
        ({"recast": ["layers.3.0"]}, "layers, gate and head_dim are wanted"),
        ({"strides": [1]}, r"strides = \[1\]; 5 whole numbers of at least 1 are wanted"),
        ({"widths": []}, r"widths = \[\]; some whole numbers"),
    ],
    ids=str,
)
def test_facts_that_fit_no_network_are_told(tmp_path, change, told):
    config = BackboneConfig(arch="tcnn_convnet_small", stem="cifar")
    exports.write(backbones.build(config, image_size=32), tmp_path / "net", "timm")
    file = tmp_path / "net" / "config.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"recipes_lib": facts["recipes_lib"] | change}))
    with pytest.raises(RunError, match=told) as caught:
        interchange.load(tmp_path / "net")
    assert "\n" not in str(caught.value)
