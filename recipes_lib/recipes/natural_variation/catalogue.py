# SPDX-License-Identifier: Apache-2.0
"""The models that can be studied, by name.

- ``timm:NAME``, ``torchvision:NAME``: with the weights that the library publishes;
- ``lite0``: EfficientNet-Lite0 with ImageNet's weights from a package; it needs no hub;
- ``convnet``: the book's small network, with random weights, to be trained here;
- a run folder of any recipe that trains a backbone, such as ``runs/msn-...``; ``cooked/NAME`` are those of this book;
- ``clip:RUN``: a run folder of a recipe with texts, which classifies zero-shot by the classes' names;
- ``pixels``: the image itself, scaled to 32 pixels;
- ``untrained:NAME`` before any of the first three: the same network with random weights.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from recipes_lib import randomness, recipes
from recipes_lib.data import embedded
from recipes_lib.data.images import ImageSet
from recipes_lib.errors import ConfigError
from recipes_lib.evaluation import zero_shot
from recipes_lib.models import packaged
from recipes_lib.models.convnet import ConvNet
from recipes_lib.models.published import Unknown, fetched, unknown
from recipes_lib.pretraining import engine, image_text_scores
from recipes_lib.views.multicrop import eval_view

PIXELS, CONVNET, LITE0 = "pixels", "convnet", "lite0"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_OTHERWISE = "choose lite0, whose weights are in a package, or a run folder"
Prepare = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Network:
    """A network without its classifier."""

    name: str
    body: nn.Module
    """Prepared images [B, 3, side, side] -> features [B, D], in evaluation mode."""
    prepare: Prepare
    """Images uint8 [B, 3, H, W] -> prepared images; the whole image is scaled, nothing is cut off."""

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The features of images: uint8 [B, 3, H, W] -> float32 [B, D], on the CPU."""
        device = next(self.body.parameters(), torch.empty(0)).device
        return self.body(self.prepare(images.to(device))).float().cpu()

    def trainable(self) -> nn.Module:
        """A copy of the body for training. Raises: ``ConfigError`` if there is nothing to train."""
        if not any(True for _ in self.body.parameters()):
            raise ConfigError(f"models: {self.name} has nothing to fine-tune: use regime probe.")
        return copy.deepcopy(self.body).requires_grad_(True)


@dataclass(frozen=True)
class ZeroShot:
    """A network that classifies by the names of the classes."""

    name: str
    towers: nn.Module
    weights: Tensor
    """float32 [C, d]: the embedding of each class."""

    def answers(self, images: Tensor) -> Tensor:
        """The class of each image: uint8 [B, 3, H, W] -> int64 [B]."""
        config = self.towers.config
        own = (255 * whole(images, config.data.image_size)).round().to(torch.uint8)
        found = image_text_scores.embed_images(self.towers, config, ImageSet(own, None, ()))
        return zero_shot.predict(found, self.weights)


def check(name: str) -> str | None:
    """The fault of a model's name as a line, or None. Nothing is loaded."""
    kind, _, rest = name.partition(":")
    bare = rest if kind == "untrained" else name
    if bare in (CONVNET, LITE0) or name == PIXELS:
        return None
    library, _, rest = bare.partition(":")
    if library in ("timm", "torchvision") and rest:
        return None
    if kind == "untrained":
        return f"models has {name}: untrained: goes before timm:NAME, torchvision:NAME, {LITE0} or {CONVNET}."
    folder = _folder(rest if library == "clip" else name)
    if not (folder / "config.yaml").is_file():
        return (
            f"models has {name}, which is no run folder and no known name: use timm:NAME, torchvision:NAME, {LITE0}, {CONVNET}, "
            f"{PIXELS}, a run folder, or clip:RUN."
        )
    return None


def load(name: str, *, class_names: Sequence[str], side: int, device: torch.device, seed: int) -> Network | ZeroShot:
    """Loads a model by its name. ``side``: the side to which images are scaled for a network that takes any.

    Raises: ``ConfigError`` for a name that a library does not know; ``RunError`` or ``DataError`` for weights that cannot
    be had.
    """
    kind, _, rest = name.partition(":")
    if kind == "clip":
        return _zero_shot(name, _folder(rest), class_names)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.step_key(seed, 0, "natural variation"))  # of random weights
            body, prepare = _open(rest if kind == "untrained" else name, side, pretrained=kind != "untrained")
    except Unknown as error:
        raise ConfigError(f"models has {name}: {error}") from None
    return Network(name, body.to(device).eval().requires_grad_(False), prepare)


def _open(name: str, side: int, *, pretrained: bool) -> tuple[nn.Module, Prepare]:
    library, _, rest = name.partition(":")
    if name == PIXELS:
        return nn.Flatten(), functools.partial(scaled, side=32, normalize=_HALVES)
    if name == CONVNET:
        return ConvNet(), functools.partial(scaled, side=side, normalize=_HALVES)
    if name == LITE0:
        body = packaged.efficientnet_lite0(pretrained=pretrained)
        body.reset_classifier(0)
        return body, functools.partial(scaled, side=side, normalize=_HALVES)
    if library == "timm":
        return _of_timm(rest, pretrained)
    if library == "torchvision":
        return _of_torchvision(rest, pretrained)
    config, method = engine.reopen(recipes.that_trained(_folder(name)), _folder(name))
    views, own = config.views, config.data.image_size

    def prepare(images: Tensor) -> Tensor:
        return eval_view(whole(images, own), own, views.normalize, views.resize)  # of this size nothing is cut off

    return _Backbone(method.backbone), prepare


def _of_timm(name: str, pretrained: bool) -> tuple[nn.Module, Prepare]:
    try:
        make = functools.partial(timm.create_model, name, pretrained=pretrained, num_classes=0)
        body = fetched(f"timm:{name}", make, otherwise=_OTHERWISE) if pretrained else make()
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        raise Unknown(unknown("timm", name, timm.list_models())) from None
    own = timm.data.resolve_model_data_config(body)
    return body, functools.partial(scaled, side=own["input_size"][-1], normalize=(own["mean"], own["std"]))


def _of_torchvision(name: str, pretrained: bool) -> tuple[nn.Module, Prepare]:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise Unknown(unknown("torchvision", name, known))
    weights = torchvision.models.get_model_weights(name).DEFAULT if pretrained else None
    make = functools.partial(torchvision.models.get_model, name, weights=weights)
    body = fetched(f"torchvision:{name}", make, otherwise=_OTHERWISE) if pretrained else make()
    # the classifier is the last linear layer, whatever a network calls it
    path = [part for part, module in body.named_modules() if isinstance(module, nn.Linear)][-1]
    body.set_submodule(path, nn.Identity())
    return body, functools.partial(scaled, side=224, normalize=_IMAGENET)


class _Backbone(nn.Module):
    """A recipe's backbone with its last normalisation."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.norm(self.backbone.before_norm(images))


def scaled(images: Tensor, *, side: int, normalize: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """Whole images, scaled to ``side`` and normalised: uint8 [B, 3, H, W] -> float32 [B, 3, side, side]."""
    values = whole(images, side)
    mean, std = (values.new_tensor(part).view(3, 1, 1) for part in normalize)
    return (values - mean) / std


def whole(images: Tensor, side: int) -> Tensor:
    """Whole images, scaled to ``side``: uint8 [B, 3, H, W] -> float32 [B, 3, side, side] in [0, 1]."""
    values = images.float() / 255
    if images.shape[-2:] == (side, side):
        return values
    return F.interpolate(values, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


def _zero_shot(name: str, path: Path, class_names: Sequence[str]) -> ZeroShot:
    _, towers = engine.reopen(recipes.that_trained(path), path)
    if towers.encode_texts is None:
        raise ConfigError(f"models has {name}, whose recipe has no texts: leave clip: out, and a probe is trained.")
    prompts = {label: [way.format(label) for way in image_text_scores.PANTRY_TEMPLATES] for label in class_names}
    weights = zero_shot.class_weights(functools.partial(image_text_scores.embed_texts, towers.eval()), prompts)
    return ZeroShot(name, towers, weights)


def _folder(name: str) -> Path:
    return embedded.path(name) if name.startswith("cooked/") and not Path(name).is_dir() else Path(name)
