# SPDX-License-Identifier: Apache-2.0
"""MAE, SimMIM and BEiT as methods: what enters the network, what is trained, ranks, and runs that go on."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recipes_lib.config import override
from recipes_lib.data.images import ImageSet
from recipes_lib.data.loader import Batch, StepBatches
from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError
from recipes_lib.models.predictor import sincos_positions
from recipes_lib.objectives.masked import patchify
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.families import visual_words
from recipes_lib.recipes.families.settings import Config
from recipes_lib.training import checkpoint

METHODS = ("mae", "simmim", "beit")
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


def small(name: str, **changes: object) -> Config:
    return override(families.PRESETS[f"{name}_toy"], SMALL | changes)


def build(config: Config) -> torch.nn.Module:
    return engine.build(families.RECIPE, config, steps=10).train()


def batch(first: int = 0, size: int = 8) -> Batch:
    images = torch.randint(0, 256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batch(torch.arange(first, first + size), 0, images[first : first + size], None, None)


# what enters


@pytest.mark.parametrize("name", METHODS)
def test_visible_and_hidden_patches_make_the_whole_image_and_depend_on_it_alone(name):
    model = build(small(name))
    views = model.views(batch(), 0)
    hidden = views["hidden"]
    if name == "mae":
        assert views["keep"].shape == (8, 4)
        both = torch.cat([views["keep"], hidden], dim=1).sort(dim=1).values
        assert torch.equal(both, torch.arange(16).expand(8, -1))
    else:
        assert torch.equal(views["mask"], torch.zeros(8, 16, dtype=torch.bool).scatter(1, hidden, True))
    later = model.views(batch(3, 2), 5)  # of another batch and step
    assert torch.equal(later["hidden"], hidden[3:5])


@pytest.mark.parametrize("name", METHODS)
def test_pixels_of_hidden_patches_reach_the_target_alone(name):
    model = build(small(name))
    if name == "beit":
        model.words.copy_(torch.randn(model.words.shape, generator=torch.Generator().manual_seed(1)))
    views = model.views(batch(), 0)
    seen = []
    model.backbone.blocks[0].register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    losses = [model(views)["loss"]]
    changed = views["large"].clone()
    for image, places in enumerate(views["hidden"].tolist()):
        for place in places:
            row, column = divmod(place, 4)
            changed[image, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] *= -2
    losses.append(model(views | {"large": changed})["loss"])
    assert torch.equal(seen[0], seen[1])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("name", METHODS)
def test_every_weight_is_trained_except_fixed_positions(name):
    model = build(small(name))
    parts = model(model.views(batch(), 0))
    parts["loss"].backward()
    assert parts["loss"].isfinite()
    without = {key for key, p in model.named_parameters() if p.grad is None}
    assert without == ({"backbone.pos_embed"} if name == "mae" else set())
    assert {id(p) for group in model.param_groups() for p in group["params"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }


def test_mae_has_fixed_positions_in_its_encoder_and_a_decoder_that_sees_the_class_token():
    model = build(small("mae"))
    assert torch.equal(model.backbone.pos_embed[0, 1:], sincos_positions(4, 64))
    views = model.views(batch(), 0)
    before = model(views)["loss"]
    with torch.no_grad():
        model.backbone.cls_token[..., 0] += 1
    assert model(views)["loss"] != before


def test_mae_predicts_normalised_patches_unless_told_otherwise():
    views = build(small("mae")).views(batch(), 0)
    normal, plain = (build(small("mae", **{"loss.normalise_targets": each}))(views)["loss"] for each in (True, False))
    assert normal != plain


# visual words


def test_words_are_found_among_the_run_s_first_images_and_every_patch_gets_the_nearest():
    model = build(small("beit", **{"loss.codes": 5}))
    data = ImageSet(images=batch(0, 40).images, labels=None, class_names=())
    model.fit_words(StepBatches(data, seed=0, batch_size=8))
    assert len(model.words.unique(dim=0)) == 5
    views = model.views(batch(), 0)
    words = visual_words.nearest(patchify(views["large"], 8), model.words)
    assert len(words.unique()) > 1
    assert model(views)["loss"].isfinite()
    again = build(small("beit", **{"loss.codes": 5}))
    again.fit_words(StepBatches(data, seed=0, batch_size=4, rank=1, world_size=2))
    assert torch.equal(again.words, model.words)  # whatever the rank and the batch


# runs


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(name, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    families.RECIPE.run(small(name), whole)
    shutil.copytree(whole, stopped)
    for file in ("report.json", "model.safetensors"):
        (stopped / file).unlink()
    shutil.rmtree(stopped / "checkpoints" / "step-000002")
    (stopped / "state.json").write_text('{"status": "running", "step": 1}\n')
    assert runs.resume(families.RECIPE, stopped).report["steps"] == 2
    weights = [checkpoint.read_weights(folder / "model.safetensors") for folder in (whole, stopped)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_resumed_run_takes_its_words_from_the_checkpoint(tmp_path, monkeypatch):
    families.RECIPE.run(small("beit"), tmp_path / "run")
    _, model = engine.reopen(families.RECIPE, tmp_path / "run")
    assert len(model.words.unique(dim=0)) == 64
    monkeypatch.setattr(visual_words, "k_means", None)  # an error if it were called
    for file in ("report.json", "model.safetensors"):
        (tmp_path / "run" / file).unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000002")
    (tmp_path / "run" / "state.json").write_text('{"status": "running", "step": 1}\n')
    assert runs.resume(families.RECIPE, tmp_path / "run").report["steps"] == 2


def step_of_a_share() -> dict[str, Tensor]:
    """The loss and all gradients of each method on this rank's half of the images, averaged as DDP does."""
    ranks, rank = collectives.world_size(), collectives.rank()
    results = {}
    for name in METHODS:
        model = build(small(name, **{"train.device": "cpu"})).double()
        if name == "beit":
            data = ImageSet(images=batch(0, 40).images, labels=None, class_names=())
            model.fit_words(StepBatches(data, seed=0, batch_size=8, rank=rank, world_size=ranks))
        views = model.views(batch(rank * 8 // ranks, 8 // ranks), 0)
        loss = model(views | {"large": views["large"].double()})["loss"]
        loss.backward()
        gradients = {f"{name}: {key}": p.grad for key, p in model.named_parameters() if p.grad is not None}
        results |= {f"{name}: loss": loss.detach(), **gradients}
    return {key: collectives.all_reduce_mean(value) for key, value in results.items()}


@pytest.mark.distributed
def test_two_ranks_give_the_losses_and_the_gradients_of_one_rank_on_the_whole_batch():
    alone = step_of_a_share()
    for rank in run_ranks(step_of_a_share, 2):
        assert rank.keys() == alone.keys()
        for key, value in alone.items():  # SimMIM adds 1e-5 to the hidden pixels of a rank
            torch.testing.assert_close(rank[key], value, rtol=1e-6, atol=1e-10, msg=key)


# configs


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mae", {"views.mask_ratio": 0.0}, r"views\.mask_ratio = 0\.0 .*With 0 there is nothing to predict"),
        (
            "mae",
            {"views.mask_ratio": 0.95},
            r"The masks of mae do not fit 4 x 4 patches: mask ratio 0\.95 keeps 0 of 16",
        ),
        ("simmim", {"views.mask_unit": 3}, "The masks of simmim do not fit 4 x 4 patches: a mask unit of 3 patches"),
        ("mae", {"views.mask_unit": 2}, r"views\.mask_unit = 2 has no use with loss\.objective mae"),
        (
            "mae",
            {"model.decoder_width": 6},
            r"model\.decoder_width = 6 .*multiple of 4 and of model\.decoder_heads = 2",
        ),
        ("beit", {"model.stem": "conv"}, "of a vit with stem patch: loss.objective beit hides patches"),
        ("simmim", {"views.global_views": 1}, "simmim sees one view"),
    ],
)
def test_settings_that_do_not_fit_are_named(name, changes, words):
    with pytest.raises(ConfigError, match=words):
        small(name, **changes).validate()


def test_the_papers_runs_hide_as_many_patches_as_the_papers():
    for name, hidden in (("mae_vitb16_imagenet", 147), ("simmim_vitb16_imagenet", 120), ("beit_vitb16_imagenet", 75)):
        config = families.PRESETS[name]
        tiny = replace(config.model, arch="vit_pico")
        model = build(replace(config, model=tiny, train=replace(config.train, device="cpu")))
        big = batch(0, 2)
        assert model.views(big, 0)["hidden"].shape == (2, hidden), name


def test_the_papers_learning_rates_are_scaled_to_their_batches():
    mae, simmim = (families.PRESETS[f"{name}_vitb16_imagenet"] for name in ("mae", "simmim"))
    assert mae.optim.lr == pytest.approx(1.5e-4 * mae.train.batch_size / 256)
    assert simmim.optim.lr == pytest.approx(1e-4 * simmim.train.batch_size / 512)
    assert simmim.optim.lr_start == pytest.approx(5e-7 * simmim.train.batch_size / 512)
