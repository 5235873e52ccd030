# SPDX-License-Identifier: Apache-2.0
"""I-JEPA as a method: what the encoder and the teacher see, what is trained, ranks, and runs that go on."""

import shutil

import pytest
import torch
from torch import Tensor

from recipes_lib.config import override
from recipes_lib.data.loader import Batch
from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError
from recipes_lib.objectives.latents import ijepa_loss
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.families.settings import Config
from recipes_lib.training import checkpoint

SMALL = {
    "data.name": "digits",
    "data.train_size": 40,
    "data.test_size": 20,
    "train.batch_size": 8,
    "train.steps": 2,
    "train.checkpoint_every": 1,
    "eval.probes": [],
    "eval.baselines": "none",
}
BROKEN = {"loss.stop_gradient": False, "model.ema": 0.0, "model.ema_final": 0.0}


def small(**changes: object) -> Config:
    return override(families.PRESETS["ijepa_toy"], SMALL | changes)


def build(config: Config, steps: int = 10) -> torch.nn.Module:
    return engine.build(families.RECIPE, config, steps=steps).train()


def batch(first: int = 0, size: int = 8) -> Batch:
    images = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batch(torch.arange(first, first + size), 0, images[first : first + size], None, None)


def test_the_encoder_sees_the_context_alone_and_the_teacher_the_whole_image():
    model = build(small())
    views = model.views(batch(), 0)
    counts = {}
    for name in ("encoder", "teacher"):
        block = getattr(model, name).blocks[0]
        block.register_forward_hook(lambda module, args, output, name=name: counts.update({name: args[0].shape[1]}))
    model(views)
    assert counts == {"encoder": 1 + views["context"].shape[1], "teacher": 1 + 64}


def test_each_block_is_predicted_by_itself_at_its_own_places():
    model = build(small())
    with torch.no_grad():  # so that encoder and teacher differ
        model.teacher.blocks[0].mlp.fc2.weight.normal_(std=0.3)
    views = model.views(batch(), 0)
    seen = model.encoder.tokens(views["large"], views["context"])[:, 1:]
    whole = model.teacher.tokens(views["large"])[:, 1:]
    rows = torch.arange(8)[:, None]
    losses = [
        ijepa_loss(model.predictor(seen, views["context"], places)[:, None], whole[rows, places][:, None])["loss"]
        for places in views["targets"].unbind(dim=1)
    ]
    torch.testing.assert_close(model(views)["loss"], torch.stack(losses).mean())


def test_the_teacher_gets_no_gradient_and_all_else_but_fixed_positions_does():
    model = build(small())
    model(model.views(batch(), 0))["loss"].backward()
    without = {key for key, p in model.named_parameters() if p.grad is None}
    assert without == {key for key, _ in model.named_parameters() if key.startswith("teacher.")} | {"encoder.pos_embed"}
    assert model.backbone is model.teacher


def test_without_stop_gradient_the_encoder_learns_from_its_targets_too():
    intact, broken = build(small(**{"model.ema": 0.0, "model.ema_final": 0.0})), build(small(**BROKEN))
    views, gradients = intact.views(batch(), 0), []
    for model in (intact, broken):
        parts = model(views)
        parts["loss"].backward()
        gradients.append((parts["loss"].detach(), model.encoder.blocks[0].mlp.fc1.weight.grad))
    torch.testing.assert_close(gradients[0][0], gradients[1][0])  # the same targets at the start
    assert (gradients[0][1] - gradients[1][1]).norm() > 0.1 * gradients[0][1].norm()


def test_without_stop_gradient_the_teacher_must_be_the_encoder():
    with pytest.raises(ConfigError, match=r"model\.ema and model\.ema_final = \(0\.99, 1\.0\) .*the encoder itself"):
        small(**{"loss.stop_gradient": False}).validate()
    small(**BROKEN).validate()


def test_the_teachers_momentum_rises_on_a_straight_line():
    model = build(small(**{"model.ema": 0.9}), steps=4)
    for step, momentum in enumerate((0.9, 0.925, 0.95, 0.975)):
        with torch.no_grad():
            for own, theirs in zip(model.encoder.parameters(), model.teacher.parameters(), strict=True):
                own.fill_(1)
                theirs.fill_(0)
        model.after_step(step)
        moved = torch.cat([p.flatten() for p in model.teacher.parameters()])
        torch.testing.assert_close(moved, torch.full_like(moved, 1 - momentum))


def test_blocks_that_may_cover_the_image_are_named():
    with pytest.raises(ConfigError, match="The masks of ijepa do not fit 4 x 4 patches: 4 target blocks of up to 4"):
        small(**{"model.patch_size": 8}).validate()


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    families.RECIPE.run(small(), whole)
    shutil.copytree(whole, stopped)
    for file in ("report.json", "model.safetensors"):
        (stopped / file).unlink()
    shutil.rmtree(stopped / "checkpoints" / "step-000002")
    (stopped / "state.json").write_text('{"status": "running", "step": 1}\n')
    assert runs.resume(families.RECIPE, stopped).report["steps"] == 2
    weights = [checkpoint.read_weights(folder / "model.safetensors") for folder in (whole, stopped)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def step_of_a_share() -> dict[str, Tensor]:
    """The loss and all gradients on this rank's half of the images, averaged as DDP does."""
    ranks, rank = collectives.world_size(), collectives.rank()
    model = build(small(**{"train.device": "cpu"})).double()
    views = model.views(batch(rank * 8 // ranks, 8 // ranks), 0)
    loss = model(views | {"large": views["large"].double()})["loss"]
    loss.backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {key: collectives.all_reduce_mean(value) for key, value in ({"loss": loss.detach()} | gradients).items()}


@pytest.mark.distributed
def test_two_ranks_give_the_loss_and_the_gradients_of_one_rank_on_the_whole_batch():
    alone = step_of_a_share()
    for rank in run_ranks(step_of_a_share, 2):
        assert rank.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(rank[key], value, rtol=1e-7, atol=1e-11, msg=key)


def test_the_papers_run_draws_the_papers_blocks():
    config = families.PRESETS["ijepa_vith14_imagenet"]
    model = build(override(config, {"model.arch": "vit_pico", "model.decoder_depth": 1, "train.device": "cpu"}))
    views = model.views(batch(size=2), 0)
    blocks, size = views["targets"].shape[1:]
    assert blocks == 4
    assert 0.13 * 256 <= size <= 0.22 * 256
    assert views["context"].shape[1] == 256 - 4 * size
