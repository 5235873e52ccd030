# SPDX-License-Identifier: Apache-2.0
"""Trains the small captioner that replaces BLIP at toy scale, on clean captions and in its own run folder.

At full scale nothing is trained here: Sieve takes a captioner that others pretrained on small clean data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.config import OptimConfig, TrainConfig
from recipes_lib.data.loader import Batch, StepBatches
from recipes_lib.data.pairs import PairSet
from recipes_lib.data.tokenizer import Tokenizer
from recipes_lib.distributed import collectives
from recipes_lib.distributed.world import World
from recipes_lib.models import interchange
from recipes_lib.models.captioner import ToyCaptioner
from recipes_lib.models.sampling import Sampling
from recipes_lib.optim import groups
from recipes_lib.training import checkpoint, loop, stages
from recipes_lib.training.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class CaptioningConfig:
    """The config of a captioner's training."""

    images: int
    """Number of captioned images."""
    draw: int
    """Seed of the images and captions."""
    image_size: int
    sampling: Sampling
    optim: OptimConfig
    train: TrainConfig


class Captioning(nn.Module):
    """A captioner with the methods that the training loop calls."""

    def __init__(self, captioner: ToyCaptioner, seed: int) -> None:
        super().__init__()
        self.captioner = captioner
        self._seed = seed

    def views(self, batch: Batch, step: int) -> dict[str, object]:
        """The images, a random half of them mirrored (captions do not name sides), and the tokens of their captions.

        Shapes: ``images`` as :meth:`ToyCaptioner.prepare` gives them, ``tokens`` int64 [batch, longest caption].
        """
        keys = randomness.sample_keys(self._seed, batch.epoch, batch.indices.cpu())
        mirrored = (randomness.uniform(keys, "mirrored", 1) < 0.5).view(-1, 1, 1, 1).to(batch.images.device)
        images = torch.where(mirrored, batch.images.flip(3), batch.images)
        longest = int((batch.tokens == self.captioner.tokenizer.end).int().argmax(dim=1).max()) + 1
        return {"images": self.captioner.prepare(images), "tokens": batch.tokens[:, :longest]}

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of a micro-batch, in nats per token."""
        return {"loss": self.captioner.loss(views["images"], views["tokens"])}

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups: weights decay; biases and norms do not."""
        return groups.decay_groups(self)

    def clipped_parameters(self) -> list[nn.Parameter]:
        """All parameters."""
        return list(self.parameters())

    def after_step(self, step: int) -> None:
        """Does nothing: no other weights follow a step."""


def captioner_of(
    images: PairSet, config: CaptioningConfig, words: Tokenizer, *, folder: Path, place: World, go_on: str
) -> ToyCaptioner:
    """Trains a captioner on ``images`` in the run folder ``folder``, or loads it from there if it is finished.

    ``go_on`` is the command that an interrupted user is told to resume with. All ranks call it.

    Raises: ``RunError`` if ``folder`` was trained with other settings; ``Diverged``; ``Interrupted``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.step_key(config.train.seed, 0, "captioner"))
        captioner = ToyCaptioner(words, image_size=config.image_size, sampling=config.sampling)
    method = Captioning(captioner, config.train.seed).to(place.device)
    if not stages.finished(folder, "captioning", config):
        _train(method, images, config, words, folder, place, go_on)
    interchange.fill(method, checkpoint.read_weights(folder / "model.safetensors"), f"the weights in {folder}")
    return captioner.eval()


def _train(
    method: Captioning,
    images: PairSet,
    config: CaptioningConfig,
    words: Tokenizer,
    folder: Path,
    place: World,
    go_on: str,
) -> None:
    with (
        stages.tell_how_to_go_on("Training the captioner was interrupted; its steps are kept.", go_on),
        RunFolder.create_or_continue(folder, "captioning", config) as run,
    ):
        batches = StepBatches(
            images,
            seed=config.train.seed,
            batch_size=config.train.batch_size,
            rank=place.rank,
            world_size=place.size,
            encode=words.encode,
        )
        given = loop.training(method, batches, train=config.train, optim_config=config.optim, world=place)
        loop.fit(given, run)
        collectives.from_main(lambda: checkpoint.write_weights(folder / "model.safetensors", method.state_dict()))
        run.set_state("done", given.steps)
