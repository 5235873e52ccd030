# SPDX-License-Identifier: Apache-2.0
"""Turns weights that others trained into a run folder of this recipe: ``recipes import``.

It reads official MSN checkpoints, timm's folders and files, and ViTMSN folders of Hugging Face. ``recipes evaluate``
and ``recipes export`` work on the result. The architecture is read from the file; the user names the evaluation data.
"""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from recipes_lib.errors import RunError, printable
from recipes_lib.models import interchange
from recipes_lib.models.interchange import Layout
from recipes_lib.models.layouts import State
from recipes_lib.models.vit import ARCHS, Shape, VisionTransformer
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.engine import Result
from recipes_lib.recipes.msn.recipe import PRESETS, RECIPE, Config
from recipes_lib.training import checkpoint, folder

_PAPER = PRESETS["vits16_imagenet"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights in a folder or file, and the config of a run with this architecture."""

    source: Path
    layout: Layout
    backbone: VisionTransformer
    head: State = field(default_factory=dict)
    """State of the projection head; empty if the file has none."""
    prototypes: Tensor | None = None
    """Prototypes [count, dim]; ``None`` if the file has none."""
    config: Config
    """The paper's config, with the architecture and the preprocessing that the file has."""
    assumed: tuple[str, ...] = ()
    """Names of the fields of ``views`` that the file does not give, so that the paper's values are used."""


def read(source: Path, layout: Layout) -> Weights:
    """Reads the weights in ``source``, which must have the given ``layout``.

    Raises: ``RunError`` if it has another layout, cannot be read, or its architecture is no ``model.arch`` of MSN.
    """
    found = interchange.layout_of(source)
    if found != layout:
        raise RunError(f"{source} has the layout of {found}, not of {layout}. Use --format {found}.")
    head, prototypes = {}, None
    if layout == "msn":
        official = interchange.read_official(source)
        backbone, head, prototypes = interchange.of_official(source, official), official.head, official.prototypes
    else:
        backbone = interchange.load(source)
    if not isinstance(backbone, VisionTransformer):
        raise RunError(
            f"{source} holds a {type(backbone).__name__}; recipes import makes runs of Vision Transformers alone."
        )
    normalize, resize = interchange.preprocessing(source)
    config = _config_of(source, backbone, head, prototypes)
    said = {"normalize": normalize, "resize": resize}
    views = replace(config.views, **{name: value for name, value in said.items() if value is not None})
    return Weights(
        source=source,
        layout=layout,
        backbone=backbone,
        head=head,
        prototypes=prototypes,
        config=replace(config, views=views),
        assumed=tuple(name for name, value in said.items() if value is None),
    )


def write(weights: Weights, config: Config, out: Path | None = None) -> Result:
    """Writes the weights as a finished run of ``config`` into the folder ``out`` (default ``runs/msn-DATE``).

    Anchor and target both get the backbone. Parts that the file lacks are initialised as at the start of a run, and a
    warning names them.

    Raises: ``ConfigError`` if the config is not valid; ``RunError`` if ``out`` exists or the weights do not fit.
    """
    config.validate()
    out = out or folder.default_path(RECIPE.name)
    if out.exists():
        raise RunError(f"{out} exists and is not overwritten. Choose another --out.")
    method = engine.build(RECIPE, config, steps=1)
    for encoder in (method.anchor, method.target):
        interchange.fill(encoder.backbone, weights.backbone.state_dict(), f"the weights in {weights.source}")
        if weights.head:
            interchange.fill(encoder.head, weights.head, f"the projection head in {weights.source}")
    if weights.prototypes is not None:
        interchange.fill(method.prototypes, {"weight": weights.prototypes}, f"the prototypes in {weights.source}")
    fresh = ["projection head"] * (not weights.head) + ["prototypes"] * (weights.prototypes is None)
    with folder.RunFolder.create_or_continue(out, RECIPE.name, config) as run:
        if fresh:
            run.warn(
                printable(f"{weights.source} has no {' and no '.join(fresh)}: initialised as at the start of a run.")
            )
        for name in weights.assumed:
            value = getattr(config.views, name)
            run.warn(printable(f"{weights.source} does not say its {name}: views.{name} {value} is taken."))
        checkpoint.write_weights(out / "model.safetensors", method.state_dict())
        origin = {"source": str(weights.source), "format": weights.layout, "sha256": _digest(weights.source)}
        report = {"recipe": RECIPE.name, "scores": {}, "imported": {**origin, "initialised": fresh}}
        run.write_report(report | {"seconds": 0.0, "steps": 0, "seed": config.train.seed, **engine.provenance()})
        run.set_state("done", 0)
        return Result(run.path, run.read_report())


def _config_of(source: Path, backbone: VisionTransformer, head: State, prototypes: Tensor | None) -> Config:
    """The paper's config with the architecture of ``backbone``. Raises: ``RunError`` if it is no ``model.arch``."""
    shape = Shape(backbone.embed_dim, len(backbone.blocks), backbone.blocks[0].attn.num_heads)
    arch = next((name for name, known in ARCHS.items() if known == shape), None)
    if arch is None:
        known = ", ".join(f"{name} {', '.join(map(str, each))}" for name, each in ARCHS.items())
        raise RunError(
            f"{source} holds a Vision Transformer of width, depth and heads {', '.join(map(str, shape))}, for which there is no "
            f"model.arch. There are: {known}."
        )
    side, patch = backbone.image_size, backbone.patch_size
    sizes = {"hidden": head["fc1.weight"].shape[0], "dim": head["fc3.weight"].shape[0]} if _is_whole(head) else {}
    sizes |= {"prototypes": prototypes.shape[0]} if prototypes is not None else {}
    model = replace(
        _PAPER.model,
        arch=arch,
        patch_size=patch,
        stem=backbone.stem,
        pre_norm=not isinstance(backbone.norm_pre, nn.Identity),
        layer_scale=not isinstance(backbone.blocks[0].ls1, nn.Identity),
        **sizes,
    )
    local = _PAPER.views.local_size * side // _PAPER.views.image_size
    views = replace(_PAPER.views, image_size=side, local_size=max(8, patch, local // patch * patch))
    return replace(_PAPER, data=replace(_PAPER.data, image_size=side), views=views, model=model)


def _is_whole(head: State) -> bool:
    return {"fc1.weight", "fc3.weight"} <= set(head)


def _digest(source: Path) -> str:
    with (source / "model.safetensors" if source.is_dir() else source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
