# SPDX-License-Identifier: Apache-2.0
"""The methods of deep metric learning: what their gradients reach, what their queues and teachers hold."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recipes_lib.config import override
from recipes_lib.data.loader import Batch
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import Interrupted
from recipes_lib.objectives import contrastive as objectives
from recipes_lib.pretraining import engine
from recipes_lib.recipes.families import contrastive, recipe
from recipes_lib.training import checkpoint, loop

NAMES = ["simclr", "dcl", "nnclr", "moco_v2", "moco_v3"]
QUEUED = ["nnclr", "moco_v2"]
TINY = {
    "data.train_size": 64,
    "data.test_size": 16,
    "model.hidden": 32,
    "model.dim": 16,
    "train.batch_size": 16,
    "train.steps": 6,
    "train.checkpoint_every": 2,
    "optim.name": "sgd",  # AdamW divides a gradient by its own size, which raises the rounding of small ones
    "optim.lr": 0.05,
    "eval.probes": [],
    "eval.baselines": "none",
}


def tiny(name: str, **changes: object) -> recipe.Config:
    own = {"loss.queue": 32} if name in QUEUED else {}
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return override(recipe.PRESETS[f"{name}_toy"], TINY | own | named)


def built(name: str, **changes: object) -> contrastive.Siamese:
    return engine.build(recipe.RECIPE, tiny(name, **changes), steps=6).train()


def batch(size: int = 8, seed: int = 0) -> Batch:
    images = torch.randint(0, 256, (size, 3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Batch(torch.arange(size), 0, images, None, None)


# what the methods compute


def test_simclr_compares_the_two_views_and_without_negatives_only_their_agreement():
    for negatives, loss in ((True, objectives.nt_xent), (False, objectives.agreement)):
        method = built("simclr", loss__negatives=negatives)
        views = method.views(batch(), 0)
        wanted = loss(*method.embeddings(views), temperature=0.2)["loss"]
        torch.testing.assert_close(method(views)["loss"], wanted)


def test_dcl_compares_the_two_views():
    method = built("dcl")
    views = method.views(batch(), 0)
    wanted = objectives.dcl_loss(*method.embeddings(views), temperature=method.config.loss.temperature)["loss"]
    torch.testing.assert_close(method(views)["loss"], wanted)


def test_nnclr_asks_the_queue_before_the_first_views_enter_it():
    method = built("nnclr")
    views, before = method.views(batch(), 0), method.queue.rows.clone()
    z = method.embeddings(views)
    p = method.predictor(z.flatten(0, 1)).unflatten(0, (2, -1))
    wanted = objectives.nnclr_loss(tuple(z), tuple(p), before, temperature=method.config.loss.temperature)
    got = method(views)
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value)
    torch.testing.assert_close(method.queue.rows[:8], torch.nn.functional.normalize(z[0], dim=1))
    assert torch.equal(method.queue.rows[8:], before[:-8])


def test_moco_v2_finds_the_teachers_second_view_among_earlier_keys_which_then_enter():
    method = built("moco_v2")
    views, before = method.views(batch(), 0), method.queue.rows.clone()
    first, second = views["large"].chunk(2)
    keys = method.teacher(second)
    wanted = objectives.info_nce(method.encoder(first), keys, temperature=0.2, queue=before)
    torch.testing.assert_close(method(views)["loss"], wanted["loss"])
    torch.testing.assert_close(method.queue.rows[:8], torch.nn.functional.normalize(keys, dim=1))
    assert torch.equal(method.queue.rows[8:], before[:-8])


def test_moco_v3_adds_both_directions_times_twice_the_temperature():
    method = built("moco_v3")
    views, temperature = method.views(batch(), 0), method.config.loss.temperature
    q1, q2 = method.predictor(method.encoder(views["large"])).chunk(2)
    k1, k2 = method.teacher(views["large"]).chunk(2)
    there, back = (objectives.info_nce(q, k, temperature=temperature) for q, k in ((q1, k2), (q2, k1)))
    parts = method(views)
    torch.testing.assert_close(parts["loss"], 2 * temperature * (there["loss"] + back["loss"]))
    torch.testing.assert_close(parts["found"], (there["found"] + back["found"]) / 2)


@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_trained_has_a_gradient_and_teacher_and_queue_have_none(name):
    method = built(name)
    parts = method(method.views(batch(), 0))
    parts["loss"].backward()
    assert {key for key, value in parts.items() if value.requires_grad} == {"loss"}
    weights = dict(method.named_parameters())
    assert all(weight.grad is None for key, weight in weights.items() if key.startswith("teacher."))
    # a batch norm behind the last layer takes the gradient of its bias, which it does not have; NNCLR's projector
    # learns through the predictions
    assert [key for key, weight in weights.items() if weight.requires_grad and weight.grad is None] == []
    assert [name for name, buffer in method.named_buffers() if buffer.requires_grad] == []


@pytest.mark.parametrize("name", QUEUED)
def test_under_accumulation_each_micro_batch_enters_the_queue_and_both_go_backwards(name):
    method = built(name, train__accumulate=2)
    before = method.queue.rows.clone()
    losses = [method(method.views(batch(seed=seed), 0))["loss"] for seed in range(2)]
    sum(losses).backward()  # the queue has moved on since each of the two
    assert torch.equal(method.queue.rows[16:], before[:-16])
    assert not torch.isclose(method.queue.rows[:8], method.queue.rows[8:16]).all()


def test_a_head_without_layers_compares_the_features_themselves():
    for name in ("nnclr", "moco_v2", "moco_v3"):
        method = built(name, model__projector_layers=0)
        method(method.views(batch(), 0))["loss"].backward()


def test_the_papers_projectors_and_predictors_are_those_of_their_tables():
    shapes = {}
    for name in ("nnclr_rn50", "moco_v3_rn50", "moco_v3_vits16"):
        config = recipe.PRESETS[f"{name}_imagenet"]
        with torch.device("meta"):
            method = recipe.build(config, steps=10)
        heads = (method.encoder.projector, method.predictor)
        shapes[name] = [[tuple(w.shape) for w in head.parameters() if w.dim() == 2] for head in heads]
        shapes[name].append([head.layers[-1].__class__.__name__ for head in heads])
    narrow = [(4096, 256), (256, 4096)]  # the predictor's weights
    assert shapes == {
        "nnclr_rn50": [[(2048, 2048), (2048, 2048), (256, 2048)], narrow, ["CrossRankBatchNorm", "Linear"]],
        "moco_v3_rn50": [[(4096, 2048), (256, 4096)], narrow, ["CrossRankBatchNorm", "Linear"]],
        "moco_v3_vits16": [
            [(4096, 384), (4096, 4096), (256, 4096)],
            narrow,
            ["CrossRankBatchNorm", "CrossRankBatchNorm"],
        ],
    }


# runs


def weights_of(name: str, folder: str, **changes: object) -> dict[str, Tensor]:
    """The weights, teacher, queue and statistics at the end of a tiny run."""
    recipe.RECIPE.run(tiny(name, **changes), Path(folder))
    return checkpoint.read_weights(Path(folder) / "model.safetensors")


@pytest.mark.parametrize("name", ["nnclr", "moco_v2", "moco_v3"])
def test_an_interrupted_run_ends_with_the_same_bits_queue_and_teacher_included(name, tmp_path, monkeypatch):
    whole = weights_of(name, str(tmp_path / "whole"))
    kinds = {key.split(".")[0] for key in whole}
    assert ("queue" in kinds) == (name in QUEUED)
    assert ("teacher" in kinds) == (name != "nnclr")
    told = loop._any_rank
    calls = iter(range(100))
    monkeypatch.setattr(loop, "_any_rank", lambda flag, world: told(flag, world) or next(calls) == 2)
    with pytest.raises(Interrupted, match="after step 3 of 6"):
        weights_of(name, str(tmp_path / "run"))
    monkeypatch.undo()
    resumed = weights_of(name, str(tmp_path / "run"))
    assert whole.keys() == resumed.keys()
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []


def of_all(folder: str) -> dict[str, dict[str, Tensor]]:
    return {name: weights_of(name, f"{folder}/{name}", train__steps=4) for name in ("nnclr", "moco_v2", "moco_v3")}


@pytest.mark.distributed
def test_two_processes_end_with_the_weights_the_teacher_and_the_queue_of_one(tmp_path):
    alone = of_all(str(tmp_path / "one"))
    first, second = run_ranks(of_all, 2, str(tmp_path / "two"))
    for name, ours in first.items():
        assert all(torch.equal(ours[key], second[name][key]) for key in ours)
        start = built(name).state_dict()
        keys = [key for key in ours if ours[key].is_floating_point()]
        moved = torch.cat([(alone[name][key] - start[key]).flatten() for key in keys])
        apart = torch.cat([(ours[key] - alone[name][key]).flatten() for key in keys])
        # float32 sums over the batch come in another order on two ranks
        assert apart.norm() <= 0.02 * moved.norm(), name
        assert moved.norm() > 0.1


def test_presets_have_teachers_and_queues_that_fit_their_length():
    for size in ("toy", "simmer", "laptop"):
        for name in ("moco_v2", "moco_v3"):
            config = recipe.PRESETS[f"{name}_{size}"]
            assert 1 / (1 - config.model.ema) <= 0.07 * config.train.steps
        for name in QUEUED:
            config = recipe.PRESETS[f"{name}_{size}"]
            assert config.loss.queue <= 0.1 * config.train.steps * config.train.batch_size


def test_the_toys_differ_in_what_their_method_needs_alone():
    simclr = recipe.PRESETS["simclr_toy"]
    for name in NAMES:
        toy = recipe.PRESETS[f"{name}_toy"]
        assert (toy.data, toy.views, toy.train, toy.eval) == (simclr.data, simclr.views, simclr.train, simclr.eval)
        heads = {"predictor_layers": 0, "predictor_hidden": 4096, "last_norm": False}
        assert replace(toy.model, ema=simclr.model.ema, ema_final=1.0, **heads) == simclr.model
        assert replace(toy.optim, lr=simclr.optim.lr) == simclr.optim
