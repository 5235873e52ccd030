# SPDX-License-Identifier: Apache-2.0
"""Networks to and from files of other libraries: timm, Hugging Face's ViTMSN, the official MSN checkpoints."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from recipes_lib.errors import RunError
from recipes_lib.models.layouts import check_keys, depth, from_hf, from_official, listed, to_hf
from recipes_lib.models.resnet import ResNet
from recipes_lib.models.vit import Shape, VisionTransformer

Network = TypeVar("Network", bound=nn.Module)

_CHANNELS = {
    "imagenet": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "openai": {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]},
}
_AS_IT_IS = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
_HF_FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_channels": 3, "qkv_bias": True}


def export(
    backbone: VisionTransformer | ResNet,
    folder: Path,
    layout: Literal["timm", "hf"],
    *,
    normalize: Literal["imagenet", "openai", "image", "grey"] = "imagenet",
    resize: Literal["bilinear", "bicubic"] = "bilinear",
    classes: Sequence[str] = (),
) -> None:
    """Writes ``model.safetensors`` and ``config.json`` into a new folder, all of it or nothing.

    ``timm``: read by ``timm.create_model("local-dir:FOLDER", pretrained=True)`` where timm can build the network (it
    has neither our convolutional stem nor the ResNets' small one), and by :func:`load` in any case.
    ``hf``: read by ``ViTMSNModel.from_pretrained(FOLDER)`` and by :func:`load`.
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
            kind = f"{type(backbone).__name__} with stem {backbone.stem!r}"
            raise RunError(f"ViTMSN of Hugging Face has no place for a {kind}. Export it with --format timm.")
        state, config = to_hf(state), _hf_config(backbone)
        if normalize in _CHANNELS:
            files["preprocessor_config.json"] = _hf_preprocessor(backbone.image_size, normalize, resize)
    else:
        config = _timm_config(backbone, normalize, resize)
    files |= {"config.json": {**config, "trained_on": list(classes)} if classes else config}
    contents = {name: (json.dumps(facts, indent=2) + "\n").encode() for name, facts in files.items()}
    _write_folder(folder, contents | {"model.safetensors": tensors_to_bytes(state, {"format": "pt"})})


def load(path: Path) -> VisionTransformer | ResNet:
    """The network in an exported folder of either layout, in a ViTMSN folder, or in an official checkpoint file.

    Raises: ``RunError`` for what is none of these; nothing is unpickled but tensors of an official ``.pth``/``.tar``.
    """
    if path.is_dir():
        return _load_folder(path)
    if path.suffix not in (".pth", ".tar"):
        raise RunError(
            f"{path} is neither a folder with config.json and model.safetensors nor an official .pth.tar file."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no tensors end torch's unpickler in many ways, KeyError among them
        raise RunError(
            f"{path} cannot be read as a file of tensors ({_first_line(error)}). Pickles are refused."
        ) from None
    if not isinstance(checkpoint, Mapping):
        raise RunError(f"{path} holds a {type(checkpoint).__name__}, not the dict of an MSN checkpoint.")
    state = from_official(checkpoint).backbone
    width, _, side, _ = state["patch_embed.proj.weight"].shape
    shape = Shape(width, depth(state, "blocks."), width // 64)  # every official network has heads of 64 dimensions
    return fill(VisionTransformer(shape, image_size=_square(state) * side, patch_size=side, stem="patch"), state)


def _load_folder(folder: Path) -> VisionTransformer | ResNet:
    try:
        config = json.loads((folder / "config.json").read_text())
        state = tensors_from_bytes((folder / "model.safetensors").read_bytes())
    except FileNotFoundError as error:
        has = listed(file.name for file in folder.iterdir())
        raise RunError(f"{error.filename} is missing; {folder} has: {has}. Pickles (.bin, .pt) are refused.") from None
    except (SafetensorError, ValueError) as error:
        raise RunError(f"{folder} cannot be read ({_first_line(error)}).") from None
    if config.get("model_type") == "vit_msn":
        return fill(_from_hf_config(config), from_hf(state))
    match config.get("recipes_lib"):
        case {"network": "VisionTransformer", "shape": shape, **facts}:
            return fill(VisionTransformer(Shape(*shape), **facts), state)
        case {"network": "ResNet", "arch": arch, "stem": stem}:
            return fill(ResNet(arch, stem=stem), state)
    raise RunError(f"{folder}/config.json describes neither a ViTMSN nor a network that was exported here.")


def fill(model: Network, state: Mapping[str, Tensor], what: str = "the weights") -> Network:
    """Gives ``model`` the weights ``state`` and returns it; ``what`` is what the error calls them.

    Raises: ``RunError`` in one line where keys or sizes differ.
    """
    check_keys(what, state, model.state_dict())
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # sizes
        raise RunError(f"The sizes of {what} do not fit: {' '.join(str(error).split())}") from None
    return model


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
        **_HF_FIXED,
    }


def _from_hf_config(config: Mapping[str, Any]) -> VisionTransformer:
    for field, ours in _HF_FIXED.items():
        if config.get(field, ours) != ours:
            raise RunError(
                f"config.json has {field} = {config[field]}; our Vision Transformer has {ours} and no other."
            )
    sides = {}
    for field in ("image_size", "patch_size"):
        value = config[field]
        height, width = value if isinstance(value, list) else (value, value)
        if height != width:
            raise RunError(f"config.json has {field} = {height}x{width}; our Vision Transformer takes squares only.")
        sides[field] = height
    shape = Shape(config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"])
    return VisionTransformer(shape, **sides, stem="patch")


def _hf_preprocessor(side: int, normalize: str, resize: str) -> dict[str, Any]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": {"bilinear": 2, "bicubic": 3}[resize],  # PIL's numbers
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _CHANNELS[normalize]["mean"],
        "image_std": _CHANNELS[normalize]["std"],
    }


def _timm_config(backbone: VisionTransformer | ResNet, normalize: str, resize: str) -> dict[str, Any]:
    preprocessing = {**_CHANNELS.get(normalize, _AS_IT_IS), "interpolation": resize}
    preprocessing |= {"crop_pct": 1.0} if resize == "bicubic" else {}  # no margin
    if isinstance(backbone, VisionTransformer):
        side, patch, blocks = backbone.image_size, backbone.patch_size, backbone.blocks
        shape = Shape(backbone.embed_dim, len(blocks), blocks[0].attn.num_heads)
        pre_norm = not isinstance(backbone.norm_pre, nn.Identity)
        layer_scale = not isinstance(blocks[0].ls1, nn.Identity)
        own = {"shape": shape, "image_size": side, "patch_size": patch, "stem": backbone.stem}
        own |= {"pre_norm": pre_norm, "layer_scale": layer_scale}
        family = "vit_base_patch16_clip_224" if pre_norm else "vit_base_patch16_224"
        name = family if backbone.stem == "patch" else None
        arguments = {"img_size": side, "patch_size": patch}
        arguments |= {"embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.heads}
        arguments |= {"init_values": 1.0} if layer_scale else {}  # timm has the vectors then; their values are loaded
        preprocessing["input_size"] = [3, side, side]
    else:
        own = {"arch": backbone.arch, "stem": backbone.stem}
        name, arguments = (backbone.arch if backbone.stem == "imagenet" else None), {}
    return {
        "architecture": name or f"{type(backbone).__name__} of recipes_lib with stem {backbone.stem}",
        "num_classes": 0,
        "num_features": backbone.num_features,
        "model_args": arguments,
        "pretrained_cfg": preprocessing,
        "normalize": normalize,  # image, grey: each image was brought to mean 0 and std 1, for which timm has no word
        "recipes_lib": {"network": type(backbone).__name__, **own},
    }


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


def _square(state: Mapping[str, Tensor]) -> int:
    """Side of the grid of patches that a table of positions stands for."""
    patches = state["pos_embed"].shape[1] - 1
    side = math.isqrt(patches)
    if side * side != patches:
        raise RunError(
            f"pos_embed has {patches} patch positions, which are no square grid ({side}x{side} = {side * side})."
        )
    return side


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
