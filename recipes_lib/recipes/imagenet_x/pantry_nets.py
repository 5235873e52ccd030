# SPDX-License-Identifier: Apache-2.0
"""The models that are tested on Pantry-X: classifiers trained with labels, CLIPs trained with captions, the cooked MSN.

Classifiers and CLIPs are trained on the same images, plainly or with one augmentation. The factors that each
augmentation touches (:data:`TOUCHES`) were written down before any run. MSN and SimCLR, trained without labels or
captions on these 2,400 images, were tried too (seed 100, 300 steps, with one augmentation each or all of MSN's). Their
k-NN accuracy was only 16 to 28 % on the test images, so their errors would say little. The MSN that was cooked for its
own chapter, on other images of the Pantry, is used instead.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.data import embedded
from recipes_lib.data.images import ImageSet
from recipes_lib.data.loader import StepBatches
from recipes_lib.data.pairs import PairSet
from recipes_lib.data.pantry import captions
from recipes_lib.data.pantry.factors import Factors
from recipes_lib.evaluation import baselines, zero_shot
from recipes_lib.models.convnet import ConvNet
from recipes_lib.pretraining import engine, image_text_scores
from recipes_lib.pretraining.image_text_data import PairViews
from recipes_lib.recipes.clip import recipe as clip
from recipes_lib.recipes.imagenet_x import networks, pantry_x
from recipes_lib.views.multicrop import MultiCrop, ViewsConfig, eval_view

STEPS, BATCH, LR = 300, 64, 3e-3
"""Steps, batch size and learning rate of a classifier trained with labels."""
CLIP_STEPS = 150
"""Steps of a CLIP; its batch size and learning rate are those of the toy preset. With seed 100, the accuracy of the
plain CLIP was 38 % after 150 steps and 33 % after 300."""
PLAIN = ViewsConfig(
    image_size=pantry_x.SIZE,
    global_views=0,
    local_views=0,
    global_scale=(1.0, 1.0),
    jitter=0.0,
    grayscale=0.0,
    blur=0.0,
)
"""Views without augmentation, except that half of the images are mirrored."""
AUGMENTATIONS: dict[str, ViewsConfig] = {
    "plain": PLAIN,
    "jitter": replace(PLAIN, jitter=1.0, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
    "crop": replace(PLAIN, global_scale=(0.2, 1.0)),
    "blur": replace(PLAIN, blur=1.0, blur_sigma=(0.1, 1.5)),
}
TOUCHES: dict[str, tuple[str, ...]] = {
    "jitter": ("color", "darker", "brighter"),
    "crop": ("smaller", "larger", "partial_view"),
    "blur": ("pattern", "texture", "style"),
}
"""The factors that each augmentation varies."""
AfterStep = Callable[[int, dict[str, float]], None]


def with_labels(
    images: ImageSet,
    views: ViewsConfig,
    seed: int,
    steps: int = STEPS,
    progress: AfterStep = lambda step, metrics: None,
) -> nn.Module:
    """Trains a classifier with labels: [B, 3, 32, 32] -> [B, classes].

    Classifiers of one seed have the same initial weights and see the images in the same order. ``progress`` is called
    after each step with its number and loss.
    """
    model = untrained(len(images.class_names), seed)
    crop, batches = MultiCrop(views, seed), StepBatches(images, seed=seed, batch_size=BATCH)

    def views_and_labels() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches.stream(0, steps, workers=0, device=torch.device("cpu")):
            yield crop(batch)[0], batch.labels

    def loss_of(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(model(batch[0]), batch[1])}

    how = {"steps": steps, "lr": LR, "weight_decay": 0.05, "warmup": 0.05, "clip": 3.0}
    baselines.descend(model, views_and_labels(), loss_of, **how, progress=progress)
    return model.eval()


def untrained(classes: int, seed: int) -> nn.Module:
    """The untrained classifier that :func:`with_labels` starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.step_key(seed, 0, "pantry-x net"))
        backbone = ConvNet()
    return baselines.classifier(backbone, width=backbone.num_features, classes=classes, seed=seed)


@torch.no_grad()
def answers(model: nn.Module, images: ImageSet) -> np.ndarray:
    """The class that a classifier of :func:`with_labels` predicts for each image: int16 [N]."""
    parts = [eval_view(part, pantry_x.SIZE, PLAIN.normalize) for part in images.images.split(500)]
    return torch.cat([model(part).argmax(dim=1) for part in parts]).to(torch.int16).numpy()


def with_captions(
    images: ImageSet,
    views: ViewsConfig,
    seed: int,
    steps: int = CLIP_STEPS,
    progress: AfterStep = lambda step, metrics: None,
) -> clip.CLIP:
    """Trains the book's toy CLIP with a true caption per image; otherwise as :func:`with_labels`."""
    towers = untrained_clip(views, seed, steps)
    optim, batch_size = towers.config.optim, towers.config.train.batch_size
    batches = StepBatches(captioned(images, seed), seed=seed, batch_size=batch_size, encode=towers.encode_texts)

    def views_and_texts() -> Iterator[dict[str, object]]:
        for step, batch in enumerate(batches.stream(0, steps, workers=0, device=torch.device("cpu"))):
            towers.after_step(step)
            yield towers.views(batch, step)

    how = {"lr": optim.lr, "weight_decay": optim.weight_decay, "warmup": 0.1, "clip": optim.clip}
    baselines.descend(towers, views_and_texts(), towers, steps=steps, **how, progress=progress)
    return towers.eval()


def untrained_clip(views: ViewsConfig, seed: int, steps: int = CLIP_STEPS) -> clip.CLIP:
    """The untrained CLIP that :func:`with_captions` starts from."""
    toy = clip.PRESETS["toy"]
    config = replace(toy, views=PairViews(**asdict(views)), train=replace(toy.train, seed=seed, steps=steps))
    return engine.build(clip.RECIPE, config, steps)


def captioned(images: ImageSet, seed: int) -> PairSet:
    """The images with a true caption each."""
    texts = captions.captions(Factors(**images.factors), randomness.step_key(seed, 0, "pantry-x captions"))
    uids = (hashlib.sha256(f"pantry-x {seed} {row}".encode()).hexdigest()[:32] for row in range(len(images)))
    return PairSet(**vars(images), texts=tuple(texts), uids=tuple(uids))


def named_by_sentences(towers: clip.CLIP, images: ImageSet) -> np.ndarray:
    """The class that a CLIP predicts for each image, zero-shot by the nearest sentences: int16 [N]."""
    prompts = {name: [way.format(name) for way in image_text_scores.PANTRY_TEMPLATES] for name in images.class_names}
    weights = zero_shot.class_weights(lambda texts: image_text_scores.embed_texts(towers, texts), prompts)
    found = zero_shot.predict(image_text_scores.embed_images(towers, towers.config, images), weights)
    return found.to(torch.int16).numpy()


def named_by_neighbours(run: Path, train: ImageSet, images: ImageSet, bank: Path) -> np.ndarray:
    """The class that k-NN on a run's features predicts for each image: int16 [N].

    The neighbours are from ``train``; their features are stored in the file ``bank``.
    """
    classify = networks.neighbours(run, train, bank, workers=0)
    ((found, _),) = classify(images, [torch.arange(len(images))])
    return found.to(torch.int16).numpy()


def cooked_msn() -> Path:
    """The run folder that ``recipes cook msn`` stored."""
    return embedded.path("cooked/msn")
