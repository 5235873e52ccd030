# SPDX-License-Identifier: Apache-2.0
"""Scores an image tower and a text tower: zero-shot classification, retrieval, and probes of the image tower."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recipes_lib.config import CLASS_PROBES, ClassProbe, EvalConfig, LabelFreeProbe
from recipes_lib.data import torchvision_sets
from recipes_lib.data.load import Images, Splits
from recipes_lib.errors import DataError, Faults
from recipes_lib.evaluation import zero_shot
from recipes_lib.evaluation.features import extract
from recipes_lib.evaluation.retrieval import recall
from recipes_lib.pretraining import scoring
from recipes_lib.pretraining.scoring import Scored, Scores

KS = (1, 5)
PANTRY_TEMPLATES = ("a {}", "a photo of a {}", "a {} on a table")


@dataclass(frozen=True, kw_only=True)
class PairEval(EvalConfig):
    """Zero-shot classification, retrieval, and the probes that all recipes have."""

    probes: tuple[Literal["zero_shot", "retrieval", ClassProbe, LabelFreeProbe], ...] = (
        "zero_shot",
        "retrieval",
    )
    """The probes to score with. zero_shot: each image gets the class whose sentences are nearest.
    retrieval: recall at 1 and 5, of the text for an image (tr1, tr5) and of the image for a text (ir1, ir5)."""
    imagenet: Path | None = None
    """Folder of ImageNet, for ``zero_shot`` of a model trained on shards. Class names are open_clip's."""

    def check_shards(self, faults: Faults, *, held_out: bool) -> None:
        """Adds to ``faults`` the probes that shards cannot serve.

        Shards have no classes, and have test pairs only with ``held_out``.
        """
        for probe in self.probes:
            if probe == "retrieval" and not held_out:
                faults.add("eval.probes retrieval needs pairs held out: add --data.test-root FOLDER, or leave it out.")
            elif probe == "zero_shot" and self.imagenet is None:
                faults.add("eval.probes zero_shot needs classes: add --eval.imagenet FOLDER, or leave it out.")
            elif probe in CLASS_PROBES:
                faults.add(f"eval.probes {probe} needs labels, and shards have none: leave it out.")


def score(scored: Scored) -> Scores:
    """Scores of the trained method by probe; if baselines are asked for, also of the untrained method.

    ``zero_shot`` is an accuracy in [0, 1]. ``tr1`` and ``tr5`` (``ir1`` and ``ir5``) are the shares of the test images
    (texts) that have a matching text (image) among their 1 or 5 nearest. All other probes are those of
    :func:`scoring.score`.
    """
    config, splits, names = scored.config, scored.splits, scored.probes
    others = tuple(name for name in names if name not in ("zero_shot", "retrieval"))
    scored.method.eval()
    if others:
        report = scoring.score(replace(scored, probes=others))
    else:
        report = {"scores": {}, "spread": {}, "diagnostics": scored.diagnostics(scored.method, None, splits)}
    arms = {"method": scored.method}
    if scored.untrained:
        arms["random_init"] = scoring.random_init(config, scored.untrained(), splits.train)
    for arm, towers in arms.items():
        found = {}
        if "zero_shot" in names:
            found["zero_shot"] = classify(towers, config, splits)
        if "retrieval" in names:
            images = embed_images(towers, config, splits.test)
            texts = embed_texts(towers, [splits.test.text(i) for i in range(len(splits.test))])
            found |= recall(images, texts, torch.arange(len(texts)), ks=KS)
        for name, value in found.items():
            report["scores"].setdefault(name, {})[arm] = value
    return report


def classify(towers: nn.Module, config: Any, splits: Splits) -> float:
    """Zero-shot accuracy in [0, 1] on the classes of the test images, or on ImageNet if the config names its folder."""
    if config.eval.imagenet is not None:
        images, prompts = _imagenet(config.eval.imagenet)
    else:
        images, names = splits.test, splits.test.class_names
        prompts = {name: [way.format(name) for way in PANTRY_TEMPLATES] for name in names}
    weights = zero_shot.class_weights(lambda texts: embed_texts(towers, texts), prompts)
    return zero_shot.accuracy(embed_images(towers, config, images), weights, images.labels).accuracy


@torch.no_grad()
def embed_images(towers: nn.Module, config: Any, images: Images) -> Tensor:
    """Embeddings of images, each of norm 1: float32 [N, dim], on the CPU."""
    how = {"image_size": config.data.image_size, "normalize": config.views.normalize, "workers": config.data.workers}
    how["resize"] = config.views.resize
    return extract(towers.backbone, images, embed=towers.embed, **how).embedding


@torch.no_grad()
def embed_texts(towers: nn.Module, texts: Sequence[str], chunk: int = 512) -> Tensor:
    """Embeddings of texts, each of norm 1: float32 [N, dim], on the CPU. ``chunk`` texts are encoded at once."""
    device = next(towers.parameters()).device
    parts = [texts[first : first + chunk] for first in range(0, len(texts), chunk)]
    return torch.cat([towers.embed_tokens(towers.encode_texts(part).to(device)).cpu() for part in parts])


def require_imagenet(root: Path) -> None:
    """Raises ``DataError`` if ``root`` has no validation images."""
    if not (root / "val").is_dir():
        raise DataError(
            f"eval.imagenet = {root} has no folder val. Give the folder that holds ImageNet's train and val."
        )


def _imagenet(root: Path) -> tuple[Images, dict[str, list[str]]]:
    """ImageNet's validation images, and open_clip's sentences for each of its classes."""
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    images = torchvision_sets.imagenet(root)[1]
    if len(images.class_names) != len(IMAGENET_CLASSNAMES):
        found, wanted = len(images.class_names), len(IMAGENET_CLASSNAMES)
        raise DataError(f"{root} has {found:,} classes; the sentences are of ImageNet's {wanted:,}. Give all of it.")
    prompts = {
        f"{row}: {name}": [way(name) for way in OPENAI_IMAGENET_TEMPLATES]
        for row, name in enumerate(IMAGENET_CLASSNAMES)
    }
    return images, prompts
