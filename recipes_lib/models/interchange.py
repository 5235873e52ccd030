# SPDX-License-Identifier: Apache-2.0
"""Networks to and from files of other libraries: timm, Hugging Face's ViTMSN, the official MSN checkpoints.

The official checkpoints of PAWS (a ResNet or a wide ResNet under ``encoder``, with heads) are not read: their names are
not those of MSN's files, and there is no converter for them here.
"""

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
from recipes_lib.models.convnet import ConvNet
from recipes_lib.models.layouts import check_keys, depth, from_hf, from_official, listed, to_hf
from recipes_lib.models.mlp import MLP
from recipes_lib.models.resnet import BLOCKS, ResNet
from recipes_lib.models.vit import ARCHS, Shape, VisionTransformer
from recipes_lib.models.wide_resnet import WideResNet

Backbone = VisionTransformer | ResNet | WideResNet | ConvNet | MLP
Network = TypeVar("Network", bound=nn.Module)

Normalize = Literal["imagenet", "openai", "cifar10", "image", "grey"]
Resize = Literal["bilinear", "bicubic"]
# as ``views`` has them; the rooms of models and views do not know each other

CHANNELS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "openai": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
"""Mean and standard deviation of red, green and blue, where these are how the input was normalised."""
_AS_IT_IS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_HF_FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_channels": 3, "qkv_bias": True}
_HEADS = {(shape.width, shape.depth): shape.heads for shape in ARCHS.values()}


def export(
    backbone: Backbone,
    folder: Path,
    layout: Literal["timm", "hf"],
    *,
    normalize: Normalize = "imagenet",
    resize: Resize = "bilinear",
    classes: Sequence[str] = (),
) -> None:
    """Writes ``model.safetensors`` and ``config.json`` into a new folder, all of it or nothing.

    ``timm``: read by :func:`load` in any case, and by ``timm.create_model("local-dir:FOLDER", pretrained=True)`` unless
    :func:`beyond_timm` says why not; timm then refuses the folder by the name of its architecture.
    ``hf``: read by ``ViTMSNModel.from_pretrained(FOLDER)`` and by :func:`load`. The preprocessor is written where
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
        state, config = to_hf(state), _hf_config(backbone)
        if normalize in CHANNELS:
            files["preprocessor_config.json"] = _hf_preprocessor(backbone.image_size, normalize, resize)
    else:
        config = _timm_config(backbone, normalize, resize)
    files |= {"config.json": {**config, "trained_on": list(classes)} if classes else config}
    contents = {name: (json.dumps(facts, indent=2) + "\n").encode() for name, facts in files.items()}
    _write_folder(folder, contents | {"model.safetensors": tensors_to_bytes(state, {"format": "pt"})})


def beyond_timm(backbone: Backbone, normalize: Normalize) -> str | None:
    """Why timm cannot use this network as it was trained, or None where it can."""
    if isinstance(backbone, VisionTransformer):
        known = backbone.stem == "patch"
    else:
        known = isinstance(backbone, ResNet) and backbone.stem == "imagenet"
    if not known:
        return f"timm has no {_kind(backbone)}"
    if normalize not in CHANNELS:
        return f"timm has no preprocessing that normalises each image by itself, as normalize={normalize} does"
    return None


def load(path: Path, *, heads: int | None = None) -> Backbone:
    """The network in an exported folder of either layout, in a ViTMSN folder, or in an official MSN checkpoint file.

    ``heads``: attention heads of the network in an official file, which does not say; None looks the known
    architectures up by width and depth. Nothing else has a use for it.

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
    if state["patch_embed.proj.weight"].dim() != 4 or state["pos_embed"].dim() != 3:
        sizes = ", ".join(f"{key} {list(state[key].shape)}" for key in ("patch_embed.proj.weight", "pos_embed"))
        raise RunError(f"{path} holds no Vision Transformer on patches: {sizes}.")
    width, _, side, _ = state["patch_embed.proj.weight"].shape
    shape = Shape(width, depth(state, "blocks."), _heads(path, width, depth(state, "blocks."), heads))
    return fill(VisionTransformer(shape, image_size=_square(state) * side, patch_size=side, stem="patch"), state)


def _heads(path: Path, width: int, layers: int, given: int | None) -> int:
    """Attention heads of an official file's network: they leave no trace in the sizes of its weights."""
    heads = _HEADS.get((width, layers)) if given is None else given
    if heads is None:
        raise RunError(
            f"{path} holds a Vision Transformer of width {width} and {layers} blocks, and does not say how many attention "
            "heads it has; wrong ones give wrong features. Say it: interchange.load(path, heads=N)."
        )
    if heads < 1 or width % heads:
        raise RunError(f"heads = {heads} does not divide the width of the network in {path}, {width}.")
    return heads


def _load_folder(folder: Path) -> Backbone:
    try:
        config = json.loads((folder / "config.json").read_text())
        state = tensors_from_bytes((folder / "model.safetensors").read_bytes())
    except FileNotFoundError as error:
        has = listed(file.name for file in folder.iterdir())
        raise RunError(f"{error.filename} is missing; {folder} has: {has}. Pickles (.bin, .pt) are refused.") from None
    except (SafetensorError, ValueError, OSError) as error:
        raise RunError(f"{folder} cannot be read ({_first_line(error)}).") from None
    if isinstance(config, Mapping) and config.get("model_type") == "vit_msn":
        return fill(_from_hf_config(config), from_hf(state))
    own = config.get("recipes_lib") if isinstance(config, Mapping) else None
    if not isinstance(own, Mapping):
        raise RunError(f"{folder}/config.json describes neither a ViTMSN nor a network that was exported here.")
    return fill(_rebuilt(own), state)


def _rebuilt(own: Mapping[str, Any]) -> Backbone:
    """The network that :func:`_own` described, with first weights. Raises: ``RunError`` for a fact that does not fit."""
    match own.get("network"):
        case "VisionTransformer":
            shape = own.get("shape")
            if not (isinstance(shape, list) and len(shape) == 3 and all(_is_count(each) for each in shape)):
                raise RunError(
                    f"config.json has shape = {shape!r}; width, depth and heads are wanted, as [384, 12, 6]."
                )
            flags = {name: _one_of(own, name, (False, True)) for name in ("pre_norm", "layer_scale") if name in own}
            sides = {name: _count(own, name) for name in ("image_size", "patch_size")}
            return _transformer(Shape(*shape), stem=_one_of(own, "stem", ("patch", "conv")), **sides, **flags)
        case "ResNet":
            return ResNet(_one_of(own, "arch", tuple(BLOCKS)), stem=_one_of(own, "stem", ("imagenet", "cifar")))
        case "WideResNet":
            layers = _count(own, "depth")
            if layers < 10 or layers % 6 != 4:
                raise RunError(f"config.json has depth = {layers}; a wide ResNet's is 10, 16, 22, 28, ...")
            return WideResNet(depth=layers, width=_count(own, "width"))
        case "ConvNet":
            return ConvNet()
        case "MLP":
            return MLP(image_size=_count(own, "image_size"), width=_count(own, "width"))
    raise RunError(f"config.json has network = {own.get('network')!r}, and no network of ours is called that.")


def _transformer(shape: Shape, *, image_size: int, patch_size: int, **options: Any) -> VisionTransformer:
    if shape.width % shape.heads:
        raise RunError(f"config.json has {shape.heads} attention heads; they do not divide the width {shape.width}.")
    if image_size % patch_size:
        raise RunError(f"config.json has patch_size = {patch_size}; it does not divide image_size = {image_size}.")
    return VisionTransformer(shape, image_size=image_size, patch_size=patch_size, **options)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _count(config: Mapping[str, Any], field: str) -> int:
    """A whole number from 1 on. Raises: ``RunError`` naming the field."""
    if field not in config:
        raise RunError(f"config.json has no {field}.")
    if not _is_count(config[field]):
        raise RunError(f"config.json has {field} = {config[field]!r}; a whole number of at least 1 is wanted.")
    return config[field]


def _one_of(config: Mapping[str, Any], field: str, options: tuple) -> Any:
    if config.get(field) not in options or isinstance(config[field], bool) != isinstance(options[0], bool):
        names = ", ".join(map(str, options))
        raise RunError(f"config.json has {field} = {config.get(field)!r}; there are: {names}.")
    return config[field]


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
        value = config.get(field)
        if isinstance(value, list) and len(value) == 2 and value[0] != value[1]:
            height, width = value
            raise RunError(f"config.json has {field} = {height}x{width}; our Vision Transformer takes squares only.")
        square = value[0] if isinstance(value, list) and len(value) == 2 else value
        sides[field] = _count(config | {field: square} if field in config else config, field)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    return _transformer(Shape(*(_count(config, name) for name in names)), stem="patch", **sides)


def _hf_preprocessor(side: int, normalize: Normalize, resize: Resize) -> dict[str, Any]:
    mean, std = CHANNELS[normalize]
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": {"bilinear": 2, "bicubic": 3}[resize],  # PIL's numbers
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _timm_config(backbone: Backbone, normalize: Normalize, resize: Resize) -> dict[str, Any]:
    mean, std = CHANNELS.get(normalize, _AS_IT_IS)
    preprocessing = {"mean": list(mean), "std": list(std), "interpolation": resize}
    preprocessing |= {"crop_pct": 1.0} if resize == "bicubic" else {}  # no margin
    own, arguments, name = _own(backbone), {}, _kind(backbone)
    if isinstance(backbone, VisionTransformer):
        shape = own["shape"]
        name = "vit_base_patch16_clip_224" if own["pre_norm"] else "vit_base_patch16_224"
        arguments = {"img_size": own["image_size"], "patch_size": own["patch_size"]}
        arguments |= {"embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.heads}
        arguments |= {"init_values": 1.0} if own["layer_scale"] else {}  # timm has the vectors then; values are loaded
        preprocessing["input_size"] = [3, own["image_size"], own["image_size"]]
    elif isinstance(backbone, ResNet):
        name = backbone.arch
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
    """What :func:`_rebuilt` needs to know."""
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
        case ResNet(arch=arch, stem=stem):
            facts = {"arch": arch, "stem": stem}
        case WideResNet(depth=layers, width=width):
            facts = {"depth": layers, "width": width}
        case ConvNet():
            facts = {}
        case MLP(image_size=side, num_features=width):
            facts = {"image_size": side, "width": width}
        case _:
            raise RunError(f"There is no layout for a {type(backbone).__name__}; its weights are in the run folder.")
    return {"network": type(backbone).__name__, **facts}


def _kind(backbone: Backbone) -> str:
    """The network in words: "ResNet with stem 'cifar'"."""
    name = type(backbone).__name__
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
