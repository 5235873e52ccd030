# SPDX-License-Identifier: Apache-2.0
"""Networks from files of other libraries (timm, Hugging Face's ViTMSN, the official MSN checkpoints), and from our own exports.

This is what ``recipes import`` reads with; :mod:`recipes_lib.models.exports` writes.

The official checkpoints of PAWS (a ResNet or a wide ResNet under ``encoder``, with heads) are not read: their names are
not those of MSN's files, and there is no converter for them here.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from timm.models.convit import ConVit as TimmConViT
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from recipes_lib.config.views import CHANNELS, Normalize, Resize
from recipes_lib.errors import RunError
from recipes_lib.models.convit import ConViT
from recipes_lib.models.convnet import ConvNet
from recipes_lib.models.layouts import HF_FIXED, Official, check_keys, depth, from_hf, from_official, from_timm, listed
from recipes_lib.models.mlp import MLP
from recipes_lib.models.nac import backbone as nac
from recipes_lib.models.nac.network import NeuralAttentiveCircuit
from recipes_lib.models.recast import recast
from recipes_lib.models.resnet import BLOCKS, ResNet
from recipes_lib.models.resnet_rs import ResNetRS
from recipes_lib.models.vit import ARCHS, Shape, VisionTransformer
from recipes_lib.models.wide_resnet import WideResNet

Backbone = VisionTransformer | ConViT | NeuralAttentiveCircuit | ResNet | ResNetRS | WideResNet | ConvNet | MLP
Network = TypeVar("Network", bound=nn.Module)
Layout = Literal["msn", "timm", "hf"]

_ALIKE = 1e-3
"""How far features of a network of timm may be from ours, by rounding; another activation moves them by a tenth and more."""


def layout_of(path: Path) -> Layout:
    """Whose layout a folder or file has, by its name and its ``config.json``: msn is an official MSN checkpoint.

    Raises: ``RunError`` where there is nothing, or something that none of them writes.
    """
    if path.is_dir():
        return "hf" if _read_config(path).get("model_type") == "vit_msn" else "timm"
    if not path.exists():
        raise RunError(f"{path} does not exist. Give a folder or a file of weights.")
    if path.suffix in (".pth", ".tar"):
        return "msn"
    if path.suffix == ".safetensors":
        return "timm"
    raise RunError(
        f"{path} is neither a folder with config.json and model.safetensors, nor an official .pth.tar file, nor a "
        ".safetensors file."
    )


def load(path: Path) -> Backbone:
    """The network in a folder or file of weights.

    Such are: an exported folder of either layout, a ViTMSN folder, a folder of timm, a ``.safetensors`` file under timm's keys,
    and an official MSN checkpoint. The last two do not say how many attention heads a Vision Transformer has: they are looked
    up by its width and depth among the known architectures. A classifier on top of the network is left behind.

    Raises: ``RunError`` for what is none of these; nothing is unpickled but tensors of an official ``.pth``/``.tar``.
    """
    layout = layout_of(path)
    if layout == "msn":
        return of_official(path, read_official(path))
    state = _read_tensors(path)
    if not path.is_dir():
        return _on_patches(path, {key: tensor for key, tensor in state.items() if not key.startswith("head.")})
    config = _read_config(path)
    if layout == "hf":
        return fill(_from_hf_config(config), from_hf(state))
    if isinstance(own := config.get("recipes_lib"), Mapping):
        return fill(_rebuilt(own), from_timm(state))
    if isinstance(config.get("architecture"), str):
        return _of_timm(path, config["architecture"])
    raise RunError(
        f"{path}/config.json describes neither a ViTMSN nor a network of timm, nor one that was exported here."
    )


def classifier(path: Path) -> nn.Linear | None:
    """The linear classifier beside the network in a folder or file of weights, or None if there is none.

    Raises: ``RunError`` as :func:`load`.
    """
    if layout_of(path) == "msn":
        return None
    state = _read_tensors(path)
    name = next((name for name in ("fc", "head", "classifier") if f"{name}.weight" in state), None)
    if name is None or state[f"{name}.weight"].dim() != 2:
        return None
    weight = state[f"{name}.weight"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    return fill(layer, {"weight": weight, "bias": state.get(f"{name}.bias", torch.zeros(len(weight)))})


def read_official(path: Path) -> Official:
    """What an official MSN checkpoint holds. Raises: ``RunError`` where the file is none; no pickle is run."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles, which are refused
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no tensors end torch's unpickler in many ways, KeyError among them
        raise RunError(
            f"{path} cannot be read as a file of tensors ({_first_line(error)}). Pickles are refused."
        ) from None
    if not isinstance(checkpoint, Mapping):
        raise RunError(f"{path} holds a {type(checkpoint).__name__}, not the dict of an MSN checkpoint.")
    return from_official(checkpoint)


def of_official(path: Path, found: Official) -> VisionTransformer:
    """The target's network in an official checkpoint. Raises: ``RunError`` where it is none of ours."""
    return _on_patches(path, found.backbone)


def preprocessing(path: Path) -> tuple[Normalize | None, Resize | None]:
    """How the network's input is normalised and resized, as ``views`` has it, where its folder says so and we can do the same.

    The official MSN checkpoints do not say it; their code normalises as ImageNet is, and resizes bilinearly.
    """
    layout = layout_of(path)
    if layout == "msn":
        return "imagenet", "bilinear"
    if not path.is_dir():
        return None, None
    if layout == "hf":
        file = path / "preprocessor_config.json"
        said = _json(file) if file.is_file() else {}
        resizes = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
        return _normalisation(said.get("image_mean"), said.get("image_std")), resizes.get(said.get("resample"))
    config = _read_config(path)
    said = config.get("pretrained_cfg", {})
    margin = said.get("interpolation") == "bicubic" and said.get("crop_pct") == 0.875
    resize = "bicubic_margin" if margin else said.get("interpolation")
    named = config.get("normalize")
    normalize = named if named in get_args(Normalize) else _normalisation(said.get("mean"), said.get("std"))
    return normalize, resize if resize in get_args(Resize) else None


def _normalisation(mean: Any, std: Any) -> Normalize | None:
    return next((name for name, known in CHANNELS.items() if [list(part) for part in known] == [mean, std]), None)


def _on_patches(path: Path, state: Mapping[str, Tensor]) -> VisionTransformer | ConViT:
    """The Vision Transformer or ConViT whose weights are ``state``, under timm's keys; their sizes say what it is."""
    places = ("patch_embed.proj.weight", "pos_embed")
    if missing := [key for key in places if key not in state]:
        raise RunError(f"{path} holds no Vision Transformer under timm's keys: it has no {listed(missing)}.")
    if state[places[0]].dim() != 4 or state[places[1]].dim() != 3:
        sizes = ", ".join(f"{key} {list(state[key].shape)}" for key in places)
        raise RunError(f"{path} holds no Vision Transformer on patches: {sizes}.")
    width, _, side, _ = state["patch_embed.proj.weight"].shape
    layers = depth(state, "blocks.")
    if gates := [tensor for key, tensor in state.items() if key.endswith("gating_param")]:
        pool, scaled = "cls" if "cls_token" in state else "mean", "blocks.0.ls1.gamma" in state
        shape = Shape(width, layers, gates[0].numel())
        model = _convit(shape, _square(state, 0) * side, side, len(gates), pool, scaled)
        return fill(model, state, f"the weights in {path}")
    shape = next((shape for shape in ARCHS.values() if (shape.width, shape.depth) == (width, layers)), None)
    if shape is None:
        ours = ", ".join(f"{name} {shape.width} x {shape.depth}" for name, shape in ARCHS.items())
        raise RunError(
            f"{path} holds a Vision Transformer of width {width} and {layers} blocks. It does not say how many attention heads "
            f"it has, which is known of these alone: {ours}."
        )
    options = {"pre_norm": "norm_pre.weight" in state, "layer_scale": "blocks.0.ls1.gamma" in state}
    model = VisionTransformer(shape, image_size=_square(state, 1) * side, patch_size=side, stem="patch", **options)
    return fill(model, state, f"the weights in {path}")


@torch.no_grad()
def _of_timm(folder: Path, architecture: str) -> VisionTransformer | ConViT | ResNet | ResNetRS:
    """The network of a folder that timm wrote. Raises: ``RunError`` where ours would give other features than timm's."""
    try:
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # as varied as what may be wrong with a folder
        raise RunError(f"timm cannot read {folder} ({_first_line(error)}).") from None
    theirs.reset_classifier(0)
    if isinstance(theirs, TimmVisionTransformer | TimmConViT):
        ours, side = _transformer_of_timm(folder, theirs)
    elif architecture in BLOCKS or architecture == "resnetrs50":
        ours = ResNetRS() if architecture == "resnetrs50" else ResNet(architecture, stem="imagenet")
        side = 64
    else:
        known = ", ".join([*BLOCKS, "resnetrs50"])
        raise RunError(f"{folder} holds {architecture} of timm: only Vision Transformers, ConViTs, {known} are read.")
    fill(ours, theirs.state_dict(), f"the weights in {folder}").eval()
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    wanted = theirs(images)
    apart = float((ours(images) - wanted).norm() / wanted.norm())
    if not apart < _ALIKE:
        raise RunError(
            f"{folder} fits our {type(ours).__name__} by its sizes, and gives other features than timm's network (by {apart:.0%}): "
            "its activation, norm or pooling is another. It cannot be used here."
        )
    return ours


def _transformer_of_timm(
    folder: Path, theirs: TimmVisionTransformer | TimmConViT
) -> tuple[VisionTransformer | ConViT, int]:
    """Our network of the same sizes, with first weights, and the side of its images."""
    (side, other), patch = theirs.patch_embed.img_size, theirs.patch_embed.patch_size
    if side != other or patch[0] != patch[1]:
        raise RunError(f"{folder} has images of {side}x{other}; our Vision Transformer takes squares only.")
    first = theirs.blocks[0]
    shape = Shape(theirs.embed_dim, len(theirs.blocks), first.attn.num_heads)
    if isinstance(theirs, TimmConViT):
        return _convit(shape, side, patch[0], theirs.local_up_to_layer, "cls"), side
    pre_norm = not isinstance(theirs.norm_pre, nn.Identity)
    scaled = not isinstance(first.ls1, nn.Identity)
    how = {"stem": "patch", "pre_norm": pre_norm, "layer_scale": scaled}
    return _transformer(shape, image_size=side, patch_size=patch[0], **how), side


def _read_config(folder: Path) -> Mapping[str, Any]:
    """``config.json``; empty where it is no table of facts. Raises: ``RunError`` where it is missing or no JSON."""
    config = _json(folder / "config.json")
    return config if isinstance(config, Mapping) else {}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a folder's ``model.safetensors``."""
    with _faults_told(path):
        return tensors_from_bytes((path / "model.safetensors" if path.is_dir() else path).read_bytes())


def _json(file: Path) -> Any:
    with _faults_told(file.parent):
        return json.loads(file.read_text())


@contextmanager
def _faults_told(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        names = [file.name for file in path.iterdir()]
        holds = f"{path} has: {listed(names)}" if names else f"{path} is empty"
        raise RunError(f"{error.filename} is missing; {holds}. Pickles (.bin, .pt) are refused.") from None
    except (SafetensorError, ValueError, OSError) as error:
        raise RunError(f"{path} cannot be read ({_first_line(error)}).") from None


def _rebuilt(own: Mapping[str, Any]) -> Backbone:
    """The network that was exported, with first weights. Raises: ``RunError`` for a fact that does not fit."""
    network, how = _plain(own), own.get("recast")
    if how is None:
        return network
    if not (isinstance(how, Mapping) and isinstance(how.get("layers"), list)):
        raise RunError(f"config.json has recast = {how!r}; layers, gate and head_dim are wanted.")
    try:
        gate = _one_of(how, "gate", ("linear", "near", "saturated"))
        return recast(network, how["layers"], gate=gate, head_dim=_count(how, "head_dim"))
    except ValueError as error:
        raise RunError(f"config.json has recast = {how!r}, which does not fit its network: {error}") from None


def _plain(own: Mapping[str, Any]) -> Backbone:
    """The network before any of its convolutions became attention."""
    match own.get("network"):
        case "VisionTransformer":
            flags = {name: _one_of(own, name, (False, True)) for name in ("pre_norm", "layer_scale") if name in own}
            flags |= {"pool": _one_of(own, "pool", ("cls", "mean"))} if "pool" in own else {}
            flags |= {"registers": _count(own, "registers")} if "registers" in own else {}
            sides = {name: _count(own, name) for name in ("image_size", "patch_size")}
            return _transformer(_shape(own), stem=_one_of(own, "stem", ("patch", "conv")), **sides, **flags)
        case "ConViT":
            shape, scaled = _shape(own), _one_of(own, "layer_scale", (False, True))
            layers = _one_of(own, "gpsa_layers", tuple(range(shape.depth + 1)))
            sides = [_count(own, name) for name in ("image_size", "patch_size")]
            return _convit(shape, *sides, layers, _one_of(own, "pool", ("cls", "mean")), scaled)
        case "NeuralAttentiveCircuit":
            return nac.of_description(own)
        case "ResNet":
            return ResNet(_one_of(own, "arch", tuple(BLOCKS)), stem=_one_of(own, "stem", ("imagenet", "cifar")))
        case "WideResNet":
            layers = _count(own, "depth")
            if layers < 10 or layers % 6 != 4:
                raise RunError(f"config.json has depth = {layers}; a wide ResNet's is 10, 16, 22, 28, ...")
            return WideResNet(depth=layers, width=_count(own, "width"))
        case "ConvNet" if "widths" in own:
            widths = _counts(own, "widths")
            return ConvNet(widths, _counts(own, "strides", of=len(widths)))
        case "ConvNet":
            return ConvNet()
        case "ResNetRS":
            return ResNetRS()
        case "MLP":
            return MLP(image_size=_count(own, "image_size"), width=_count(own, "width"))
    raise RunError(f"config.json has network = {own.get('network')!r}, and no network of ours is called that.")


def _shape(own: Mapping[str, Any]) -> Shape:
    """The sizes of a transformer of ours. Raises: ``RunError`` where they are no three counts."""
    shape = own.get("shape")
    if not (isinstance(shape, list) and len(shape) == 3 and all(_is_count(each) for each in shape)):
        raise RunError(f"config.json has shape = {shape!r}; width, depth and heads are wanted, as [384, 12, 6].")
    return Shape(*shape)


def _transformer(shape: Shape, *, image_size: int, patch_size: int, **options: Any) -> VisionTransformer:
    _check_sizes(shape, image_size, patch_size)
    return VisionTransformer(shape, image_size=image_size, patch_size=patch_size, **options)


def _convit(
    shape: Shape, image_size: int, patch_size: int, gpsa_layers: int, pool: str, layer_scale: bool = False
) -> ConViT:
    """A ConViT with a random start, which takes any number of heads."""
    _check_sizes(shape, image_size, patch_size)
    how = {"gpsa_layers": gpsa_layers, "pool": pool, "layer_scale": layer_scale, "locality_strength": None}
    return ConViT(shape, image_size=image_size, patch_size=patch_size, **how)


def _check_sizes(shape: Shape, image_size: int, patch_size: int) -> None:
    if shape.width % shape.heads:
        raise RunError(f"config.json has {shape.heads} attention heads; they do not divide the width {shape.width}.")
    if image_size % patch_size:
        raise RunError(f"config.json has patch_size = {patch_size}; it does not divide image_size = {image_size}.")


def _counts(config: Mapping[str, Any], field: str, of: int | None = None) -> list[int]:
    """A list of ``of`` (None: any number of) whole numbers from 1 on. Raises: ``RunError`` naming the field."""
    found = config.get(field)
    if not (isinstance(found, list) and found and all(map(_is_count, found)) and len(found) == (of or len(found))):
        raise RunError(f"config.json has {field} = {found!r}; {of or 'some'} whole numbers of at least 1 are wanted.")
    return found


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


def _from_hf_config(config: Mapping[str, Any]) -> VisionTransformer:
    for field, ours in HF_FIXED.items():
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


def _square(state: Mapping[str, Tensor], others: int) -> int:
    """Side of the grid of patches of a table of positions, of which the first ``others`` belong to no patch."""
    patches = state["pos_embed"].shape[1] - others
    side = math.isqrt(patches)
    if side * side != patches:
        raise RunError(
            f"pos_embed has {patches} patch positions, which are no square grid ({side}x{side} = {side * side})."
        )
    return side


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
