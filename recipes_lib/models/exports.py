# SPDX-License-Identifier: Apache-2.0
"""Networks to folders that timm and Hugging Face's transformers load: what ``recipes export`` writes."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save as tensors_to_bytes
from torch import nn

from recipes_lib.config.views import CHANNELS, Normalize, Resize, kernel
from recipes_lib.errors import RunError
from recipes_lib.models.convit import ConViT
from recipes_lib.models.convnet import STRIDES, WIDTHS, ConvNet
from recipes_lib.models.interchange import Backbone
from recipes_lib.models.layouts import HF_FIXED, to_hf, to_timm
from recipes_lib.models.mlp import MLP
from recipes_lib.models.nac import backbone as nac
from recipes_lib.models.nac.network import NeuralAttentiveCircuit
from recipes_lib.models.recast import recast_layers
from recipes_lib.models.resnet import ResNet
from recipes_lib.models.resnet_rs import ResNetRS
from recipes_lib.models.vit import Shape, VisionTransformer
from recipes_lib.models.wide_resnet import WideResNet

_AS_IT_IS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def write(
    backbone: Backbone,
    folder: Path,
    layout: Literal["timm", "hf"],
    *,
    normalize: Normalize = "imagenet",
    resize: Resize = "bilinear",
    classes: Sequence[str] = (),
) -> None:
    """Writes ``model.safetensors`` and ``config.json`` into a new folder, all of it or nothing.

    ``timm``: read by :func:`recipes_lib.models.interchange.load` in any case, and by ``timm.create_model("local-dir:FOLDER", pretrained=True)`` unless
    :func:`beyond_timm` says why not; timm then refuses the folder by the name of its architecture.
    ``hf``: read by ``ViTMSNModel.from_pretrained(FOLDER)`` and by ``interchange.load``. The preprocessor is written where
    transformers has one for ``normalize``.
    ``normalize``, ``resize``: what was done to the network's input, as ``views`` has them. A mean and std of each channel and
    the interpolation are written into the config.
    ``classes``: names of the classes of the images that it was trained on, kept in ``config.json`` as ``trained_on``.

    Raises: ``RunError`` where the folder exists, cannot be written, or the layout has no place for the network.
    """
    if folder.exists():
        raise RunError(f"{folder} exists and is not overwritten. Choose another folder, or remove it first.")
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in backbone.state_dict().items()}
    files = {}
    if layout == "hf":
        if not isinstance(backbone, VisionTransformer) or backbone.stem != "patch":
            raise RunError(
                f"ViTMSN of Hugging Face has no place for this backbone: {_kind(backbone)}. Export it with --format timm."
            )
        if backbone.pooling == "mean" or backbone.reg_token is not None:
            raise RunError(
                "ViTMSN of Hugging Face has neither registers nor the mean of the patches as its representation. Export "
                "this backbone with --format timm."
            )
        state, config = to_hf(state), _hf_config(backbone)
        if normalize in CHANNELS:
            files["preprocessor_config.json"] = _hf_preprocessor(backbone.image_size, normalize, resize)
    else:
        state, config = to_timm(state, _pool(backbone)), _timm_config(backbone, normalize, resize)
    files |= {"config.json": {**config, "trained_on": list(classes)} if classes else config}
    contents = {name: (json.dumps(facts, indent=2) + "\n").encode() for name, facts in files.items()}
    _write_folder(folder, contents | {"model.safetensors": tensors_to_bytes(state, {"format": "pt"})})


def beyond_timm(backbone: Backbone, normalize: Normalize) -> str | None:
    """Why timm cannot use this network as it was trained, or None where it can."""
    if isinstance(backbone, ConViT):
        if backbone.pooling == "mean":
            return "timm's ConViT takes the mean of the patches after its last norm, and ours before it"
        known = isinstance(backbone.blocks[0].ls1, nn.Identity)
    elif isinstance(backbone, VisionTransformer):
        known = backbone.stem == "patch"
    else:
        known = isinstance(backbone, ResNetRS) or (isinstance(backbone, ResNet) and backbone.stem == "imagenet")
    if not known or any(recast_layers(backbone)):
        return f"timm has no {_kind(backbone)}"
    if normalize not in CHANNELS:
        return f"timm has no preprocessing that normalises each image by itself, as normalize={normalize} does"
    return None


def _hf_config(vit: VisionTransformer) -> dict[str, Any]:
    return {
        "architectures": ["ViTMSNModel"],
        "model_type": "vit_msn",
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": vit.blocks[0].attn.num_heads,
        "intermediate_size": vit.blocks[0].mlp.fc1.out_features,
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
        **HF_FIXED,
    }


def _hf_preprocessor(side: int, normalize: Normalize, resize: Resize) -> dict[str, Any]:
    mean, std = CHANNELS[normalize]
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": {"bilinear": 2, "bicubic": 3}[kernel(resize)],  # PIL's numbers
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _timm_config(backbone: Backbone, normalize: Normalize, resize: Resize) -> dict[str, Any]:
    mean, std = CHANNELS.get(normalize, _AS_IT_IS)
    preprocessing = {"mean": list(mean), "std": list(std), "interpolation": kernel(resize)}
    preprocessing |= {"bicubic": {"crop_pct": 1.0}, "bicubic_margin": {"crop_pct": 0.875}}.get(resize, {})
    own, arguments, name = _own(backbone), {}, _kind(backbone)
    if isinstance(backbone, VisionTransformer):
        shape = own["shape"]
        name = "vit_base_patch16_clip_224" if own["pre_norm"] else "vit_base_patch16_224"
        arguments = {"img_size": own["image_size"], "patch_size": own["patch_size"]}
        arguments |= {"embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.heads}
        arguments |= {"init_values": 1.0} if own["layer_scale"] else {}  # timm has the vectors then; values are loaded
        arguments |= {"global_pool": "avg"} if own.get("pool") == "mean" else {}
        arguments |= {"reg_tokens": own["registers"]} if "registers" in own else {}
        preprocessing["input_size"] = [3, own["image_size"], own["image_size"]]
    elif isinstance(backbone, ConViT):
        width, depth, heads = backbone.shape
        name = "convit_base"
        arguments = {"img_size": backbone.image_size, "patch_size": backbone.patch_size, "depth": depth}
        arguments |= {"embed_dim": width // heads, "num_heads": heads, "local_up_to_layer": backbone.gpsa_layers}
        preprocessing["input_size"] = [3, backbone.image_size, backbone.image_size]
    elif isinstance(backbone, ResNet):
        name = backbone.arch
    elif isinstance(backbone, ResNetRS):
        name = "resnetrs50"
    if reason := beyond_timm(backbone, normalize):
        name = f"{_kind(backbone)} of recipes_lib: {reason}"
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": backbone.num_features,
        "model_args": arguments,
        "pretrained_cfg": preprocessing,
        "normalize": normalize,
        "recipes_lib": own,
    }


def _own(backbone: Backbone) -> dict[str, Any]:
    """What :func:`recipes_lib.models.interchange.load` needs to know to build the network again."""
    match backbone:
        case VisionTransformer(image_size=side, patch_size=patch, stem=stem, blocks=blocks):
            facts = {
                "shape": Shape(backbone.embed_dim, len(blocks), blocks[0].attn.num_heads),
                "image_size": side,
                "patch_size": patch,
                "stem": stem,
                "pre_norm": not isinstance(backbone.norm_pre, nn.Identity),
                "layer_scale": not isinstance(blocks[0].ls1, nn.Identity),
            }
            facts |= {"pool": backbone.pooling} if backbone.pooling == "mean" else {}
            facts |= {"registers": backbone.reg_token.shape[1]} if backbone.reg_token is not None else {}
        case ConViT(shape=shape, image_size=side, patch_size=patch, gpsa_layers=layers, pooling=pool):
            facts = {"shape": shape, "image_size": side, "patch_size": patch, "gpsa_layers": layers, "pool": pool}
            facts |= {"layer_scale": not isinstance(backbone.blocks[0].ls1, nn.Identity)}
        case NeuralAttentiveCircuit():
            facts = nac.described(backbone)
        case ResNet(arch=arch, stem=stem):
            facts = {"arch": arch, "stem": stem}
        case WideResNet(depth=layers, width=width):
            facts = {"depth": layers, "width": width}
        case ConvNet(widths=widths, strides=strides):
            usual = (widths, strides) == (WIDTHS, STRIDES)
            facts = {} if usual else {"widths": widths, "strides": strides}
        case ResNetRS():
            facts = {}
        case MLP(image_size=side, num_features=width):
            facts = {"image_size": side, "width": width}
        case _:
            raise RunError(f"There is no layout for a {type(backbone).__name__}; its weights are in the run folder.")
    if recasted := dict(recast_layers(backbone)):
        one = next(iter(recasted.values()))  # all are made alike
        facts |= {"recast": {"layers": [*recasted], "gate": one.gate_kind, "head_dim": one.head_dim}}
    return {"network": type(backbone).__name__, **facts}


def _pool(backbone: Backbone) -> str:
    return backbone.pooling if isinstance(backbone, VisionTransformer) else "cls"


def _kind(backbone: Backbone) -> str:
    """The network in words: "ResNet with stem 'cifar'"."""
    name = type(backbone).__name__
    if isinstance(backbone, ConViT) and not isinstance(backbone.blocks[0].ls1, nn.Identity):
        return f"{name} with layer scale"
    if any(recast_layers(backbone)):
        return f"{name} with convolutions as attention"
    return f"{name} with stem {backbone.stem!r}" if isinstance(backbone, VisionTransformer | ResNet) else name


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes the files aside, then renames: the folder appears complete or not at all."""
    aside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        for name, content in contents.items():
            with (aside / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        aside.chmod(0o755)  # mkdtemp leaves it to its owner alone
        aside.rename(folder)
    except OSError as error:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        raise RunError(f"{folder} cannot be written ({error}). Nothing was left behind.") from None
