# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: trains the whole pretrained network on the labelled images, and measures its test accuracy.

There are two objectives, chosen by ``eval.finetune_objective``:

- ``cross_entropy``: a new linear layer, initialised with zeros, on the backbone, or on the first layer of the
  projection head if the recipe passes one. SGD with Nesterov momentum; the learning rate falls to 0 by a cosine
  schedule; random crops and mirroring; batch norm in training mode.
- ``suncet``: no new layer. The embeddings that soft nearest neighbours compare are trained to find their own class
  (:mod:`recipes_lib.objectives.suncet`), and soft nearest neighbours classify the test images. Batches are
  class-balanced, with two views per image: the whole image, mirrored at random. LARS; the learning rate falls to a
  tenth by a cosine schedule; batch norm keeps the statistics of pretraining.

Neither has weight decay. Fine-tuning is a run of its own, in a sub-folder of the run: if it is killed, it continues
from its last checkpoint, bit for bit.

Source: PAWS, Assran et al., ICCV 2021, arXiv 2104.13963, and its code: cross-entropy on ImageNet (50 epochs, batches of
1,024 images, learning rate 0.02), SuNCEt on CIFAR-10 (30 epochs, batches of 640 images, learning rate 0.1).
Differs: PAWS's code keeps the epoch that is best on held-out training images, or, on CIFAR-10, on the test images; here
the last epoch counts. Images are mirrored as often as in pretraining: a mirrored digit is no longer a digit.
"""

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from recipes_lib.config import EvalConfig, OptimConfig, TrainConfig
from recipes_lib.data.images import ImageFiles
from recipes_lib.data.load import Images, Splits
from recipes_lib.data.loader import Batch, StepBatches
from recipes_lib.distributed import collectives
from recipes_lib.distributed.world import World
from recipes_lib.errors import DataError, Diverged, Interrupted, RunError
from recipes_lib.evaluation.features import extract, read_chunks
from recipes_lib.evaluation.snn import nearest_neighbours
from recipes_lib.objectives.suncet import suncet_loss
from recipes_lib.training import checkpoint, loop
from recipes_lib.training.folder import RunFolder
from recipes_lib.views.multicrop import MultiCrop, ViewsConfig, eval_view

SCALE = (0.08, 1.0)
"""Range of a random crop's share of the image's area: the default of torchvision's ``RandomResizedCrop``."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The settings of a fine-tuning run, stored in its folder's ``config.yaml``."""

    weights: str
    """SHA-256 of the weights that it starts from."""
    images: int
    """Number of labelled images that it learns from."""
    classes: int
    """Number of classes."""
    objective: Literal["cross_entropy", "suncet"] = "cross_entropy"
    views: ViewsConfig
    optim: OptimConfig
    train: TrainConfig


class Classifier(nn.Module):
    """A copy of ``backbone`` and ``layer`` with the interface that :func:`training.loop.fit` trains.

    Under cross-entropy a linear layer follows ``layer``; under SuNCEt ``layer`` computes the embeddings.
    """

    def __init__(self, backbone: nn.Module, layer: nn.Module | None, config: FinetuneConfig) -> None:
        super().__init__()
        self.objective = config.objective
        self.backbone = copy.deepcopy(backbone).requires_grad_(True)
        self.layer = nn.Identity() if layer is None else copy.deepcopy(layer).requires_grad_(True)
        self.crop = MultiCrop(config.views, config.train.seed)
        if self.objective == "suncet":
            return
        widths = [module.out_features for module in self.layer.modules() if isinstance(module, nn.Linear)]
        width = widths[-1] if widths else backbone.num_features
        self.linear = nn.utils.skip_init(nn.Linear, width, config.classes)  # torch's init would use global random state
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all modules; under SuNCEt batch norms stay in evaluation mode, as in the released code."""
        super().train(mode)
        if self.objective == "suncet":
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def views(self, batch: Batch, step: int) -> dict[str, object]:
        """The random views of each image (one, or two under SuNCEt), view-major, and their labels.

        Shapes: ``images`` [V * B, 3, side, side], ``labels`` int64 [V * B].
        """
        views = self.crop(batch)
        return {"images": torch.cat(views), "labels": batch.labels.repeat(len(views))}

    def logits(self, images: Tensor) -> Tensor:
        """The class logits of images, under cross-entropy.  [batch, 3, side, side] -> [batch, classes]"""
        return self.linear(self.layer(self.backbone(images)))

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of a micro-batch, and its share of right answers (``accuracy``, or ``own_class`` under SuNCEt)."""
        labels = views["labels"]
        if self.objective == "suncet":
            return suncet_loss(self.layer(self.backbone(views["images"])), labels)
        logits = self.logits(views["images"]).float()
        right = (logits.detach().argmax(dim=1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels), "accuracy": right}

    def param_groups(self) -> list[dict[str, Any]]:
        """One parameter group of all parameters, without weight decay."""
        return [{"params": self.clipped_parameters(), "decays": False}]

    def clipped_parameters(self) -> list[nn.Parameter]:
        """All parameters: clipping covers the gradients of all of them."""
        return list(self.parameters())

    def after_step(self, step: int) -> None:
        """Does nothing: fine-tuning has no update after a step."""


def finetune(
    backbone: nn.Module,
    layer: nn.Module | None,
    data: Splits,
    config: Any,
    *,
    folder: Path,
    place: World,
    go_on: str,
) -> float:
    """Test accuracy, in [0, 1], after fine-tuning a copy of ``backbone`` (and ``layer``) on ``data.labelled_train``.

    ``layer`` takes the backbone's output: under cross-entropy its last ``nn.Linear`` gives its width, under SuNCEt it
    computes the embeddings. ``config`` is the recipe's config, of which ``data``, ``views``, ``train`` and ``eval`` are
    read. ``folder`` becomes a run folder: if it holds a finished run, the result is read from it; if it holds an
    unfinished one, that run continues. ``go_on`` is the command that is printed when the user interrupts. All ranks
    must call this function.

    Raises: ``RunError`` if ``folder`` belongs to other weights or settings; ``DataError``, ``Diverged``,
    ``Interrupted``.
    """
    train = data.labelled_train
    wanted = _config_of(_digest(backbone, layer), train, config, place)
    if _finished(folder, wanted):
        return RunFolder.open(folder).read_report()["accuracy"]
    with _in_our_words(config, folder, go_on), RunFolder.create_or_continue(folder, "finetune", wanted) as run:
        model = Classifier(backbone, layer, wanted).to(place.device)
        batches = StepBatches(
            train,
            seed=wanted.train.seed,
            batch_size=wanted.train.batch_size,
            rank=place.rank,
            world_size=place.size,
            classes_per_batch=balanced_classes(config.eval, train) if wanted.objective == "suncet" else None,
            crop=model.crop.crop_one if isinstance(train, ImageFiles) else None,
        )
        how = {"train": wanted.train, "optim_config": wanted.optim, "world": place, "workers": config.data.workers}
        given = loop.training(model, batches, **how)
        loop.fit(given, run)

        def conclude() -> None:
            checkpoint.write_weights(folder / "model.safetensors", model.state_dict())
            run.write_report({"accuracy": _accuracy(model, data, config), "steps": given.steps})

        collectives.from_main(conclude)
        run.set_state("done", given.steps)
        return run.read_report()["accuracy"]


def global_batch(wanted: int, available: int, processes: int, classes: int = 1) -> int:
    """The number of images per step: at most ``wanted`` and ``available``, a multiple of ``processes`` and ``classes``.

    Each process gets equally many images, and so does each class.

    Raises: ``DataError`` if a process would get fewer than two.
    """
    unit = math.lcm(processes, classes)
    batch = min(wanted, available) // unit * unit
    if batch < 2 * processes:
        each = f", equally many of {classes} classes" if classes > 1 else ""
        raise DataError(
            f"There are {available} labelled images to fine-tune on and eval.finetune_batch_size = {wanted}: too few for "
            f"{max(2 * processes, unit)} at a time, two per process{each}. Label more images, or use a larger batch."
        )
    return batch


def balanced_classes(config: EvalConfig, train: Images) -> int:
    """The number of classes of a class-balanced batch: all classes under SuNCEt, else 1 (batches are not balanced)."""
    return len(train.labels.unique()) if config.finetune_objective == "suncet" else 1


def _config_of(weights: str, train: Images, config: Any, place: World) -> FinetuneConfig:
    asked, kinds = config.eval, len(train.class_names)
    balanced = asked.finetune_objective == "suncet"
    batch = global_batch(asked.finetune_batch_size, len(train), place.size, balanced_classes(asked, train))
    plain = {"local_views": 0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
    views = ViewsConfig(
        image_size=config.views.image_size,
        global_views=1 if balanced else 0,  # in addition to the target view
        global_scale=(1.0, 1.0) if balanced else SCALE,
        flip=config.views.flip,
        normalize=config.views.normalize,
        resize=config.views.resize,
        **plain,
    )
    lr = asked.finetune_lr
    flat = {"warmup_epochs": 0.0, "weight_decay": 0.0, "weight_decay_final": 0.0, "clip": None}
    kind = (
        {"name": "lars", "lr_final": lr / 10, "lr_in_momentum": True} if balanced else {"name": "sgd", "lr_final": 0.0}
    )
    optim = OptimConfig(lr=lr, lr_start=lr, stretch=1.0, first_count=0, **flat, **kind)
    length = {"steps": None, "epochs": asked.finetune_epochs}
    schedule = replace(config.train, batch_size=batch, accumulate=1, **length)
    what = {"weights": weights, "images": len(train), "classes": kinds, "objective": asked.finetune_objective}
    return FinetuneConfig(views=views, optim=optim, train=schedule, **what)


def _digest(*parts: nn.Module | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for name, tensor in part.state_dict().items() if part is not None else ():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _finished(folder: Path, wanted: FinetuneConfig) -> bool:
    """Whether ``folder`` holds the result of ``wanted``.

    Raises: ``RunError`` if the folder's run has other settings.
    """
    if not (folder / "config.yaml").is_file():
        return False
    run = RunFolder.open(folder)
    if differs := list(dict.fromkeys(field.partition(".")[0] for field in run.differing("finetune", wanted))):
        what = "from other weights" if "weights" in differs else f"with other settings ({', '.join(differs)})"
        raise RunError(f"{folder} was fine-tuned {what}. Move it away or remove it, and fine-tuning starts anew.")
    return run.state()["status"] == "done"


@contextmanager
def _in_our_words(config: Any, folder: Path, go_on: str) -> Iterator[None]:
    """Rewrites the training loop's errors: they name flags of ``recipes run``, which do not apply to fine-tuning."""
    try:
        yield
    except Interrupted:
        raise Interrupted(f"Fine-tuning was interrupted; its steps so far are kept. Go on: {go_on}") from None
    except Diverged as error:
        fault = str(error).partition(" Try again")[0]
        raise Diverged(
            f"{fault} Fine-tune with a learning rate below eval.finetune_lr = {config.eval.finetune_lr:g}: "
            f"change it in {folder.parent / 'config.yaml'} and remove {folder}."
        ) from None


@torch.no_grad()
def _accuracy(model: Classifier, data: Splits, config: Any) -> float:
    model.eval()
    side, look, workers = config.data.image_size, config.views, config.data.workers
    if model.objective == "suncet":
        how = {"image_size": side, "normalize": look.normalize, "resize": look.resize, "workers": workers}
        sides = (data.labelled_train, data.test)
        train, test = (extract(model.backbone, images, embed=model.layer, **how) for images in sides)
        return nearest_neighbours(train.embedding, sides[0].labels, test.embedding, sides[1].labels)
    device = model.linear.weight.device
    chunks = read_chunks(data.test, side, batch_size=256, workers=workers, resize=look.resize)
    views = (eval_view(images.to(device), side, look.normalize, look.resize) for images in chunks)
    guesses = [model.logits(view).argmax(1) for view in views]
    return (torch.cat(guesses).cpu() == data.test.labels).double().mean().item()
