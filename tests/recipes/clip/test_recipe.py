# SPDX-License-Identifier: Apache-2.0
"""CLIP as a method: what goes into its loss and comes out of a run; what its config refuses."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from recipes_lib.config import override
from recipes_lib.data.loader import Batch
from recipes_lib.data.pantry import alt_text
from recipes_lib.data.pools import shards, uids
from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError, DataError
from recipes_lib.lowbit import Int8Linear
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.clip import recipe as clip

TINY = override(
    clip.PRESETS["toy"],
    {
        "data.train_size": 64,
        "data.test_size": 16,
        "model.dim": 16,
        "model.text_width": 32,
        "model.text_layers": 1,
        "train.batch_size": 16,
        "train.steps": 2,
        "train.checkpoint_every": 2,
    },
)
TEXTS = ["a red mug", "a blue plate on a table", "a red mug", "a jug"]


def method(config: clip.Config = TINY) -> clip.CLIP:
    return engine.build(clip.RECIPE, config, steps=2)


def batch(model: clip.CLIP) -> Batch:
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batch(torch.arange(4), 0, images, None, None, tokens=model.encode_texts(TEXTS))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# the loss


def test_a_step_compares_the_views_of_the_images_with_the_tokens_of_their_texts():
    model = method()
    views = model.views(batch(model), step=0)
    assert views["images"].shape == (4, 3, 32, 32)
    assert views["tokens"].shape == (4, 24)
    assert torch.equal(views["tokens"], model.encode_texts(TEXTS))
    parts = model(views)
    with torch.no_grad():
        images, texts = model.embed(model.backbone(views["images"])), model.embed_tokens(views["tokens"])
        torch.testing.assert_close(images.norm(dim=1), torch.ones(4))
        logits = model.log_scale.exp() * images @ texts.T
        right = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]])  # texts 0 and 2 are equal
        right = right / right.sum(dim=1, keepdim=True)
        loss = -(right * (logits.log_softmax(dim=1) + logits.T.log_softmax(dim=1))).sum() / 8
    torch.testing.assert_close(parts["loss"], loss, rtol=1e-5, atol=1e-5)


def test_patches_are_left_out_in_training_by_image_and_epoch_alone():
    vit = {"model.arch": "vit_pico", "model.stem": "patch", "model.patch_size": 8, "views.patch_dropout": 0.5}
    model = method(override(TINY, vit))
    views = model.views(batch(model), step=0)
    assert views["keep"].shape == (4, 8)  # half of 4 x 4
    assert torch.equal(views["keep"], model.views(batch(model), step=9)["keep"])
    assert not torch.equal(views["keep"], model.views(replace(batch(model), epoch=1), step=0)["keep"])
    seen = model(views)["loss"]
    del views["keep"]
    assert model(views)["loss"] != seen


@pytest.mark.parametrize(("arch", "layers"), [("convnet", 4), ("vit_pico", 4 + 2 * 4)])
def test_low_bit_layers_stand_in_the_blocks_of_both_towers_and_nowhere_else(arch, layers):
    stem = "patch" if arch == "vit_pico" else "imagenet"
    config = override(TINY, {"model.arch": arch, "model.stem": stem, "model.patch_size": 8, "model.linear": "int8"})
    model, plain = method(config), method(override(config, {"model.linear": "full"}))
    assert sum(isinstance(layer, Int8Linear) for layer in model.modules()) == layers
    assert type(model.image_projection) is nn.Linear
    for (name, ours), (same, theirs) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(ours, theirs)  # the same draw of weights, whatever the layers


def test_the_temperature_is_learned_without_decay_and_clamped_after_a_step():
    model = method()
    assert model.log_scale.item() == pytest.approx(2.659260)  # ln(1 / 0.07)
    free = [group for group in model.param_groups() if any(p is model.log_scale for p in group["params"])]
    assert [group["decays"] for group in free] == [False]
    for value, kept in ((9.0, math.log(100)), (-1.0, 0.0), (1.5, 1.5)):
        model.log_scale.data.fill_(value)
        model.after_step(0)
        assert model.log_scale.item() == pytest.approx(kept)


def test_siglip_has_a_bias_and_a_scale_of_its_own_and_clip_has_no_bias():
    model = method(override(TINY, {"loss.objective": "siglip"}))
    assert model.log_scale.exp().item() == pytest.approx(10)
    assert model.bias.item() == -10
    model(model.views(batch(model), step=0))["loss"].backward()
    assert model.bias.grad is not None
    assert method().bias is None


# runs


def test_the_scores_of_random_weights_do_not_depend_on_which_probes_are_asked_for():
    config = override(TINY, {"data.test_size": 64, "train.steps": 4})
    splits, model = clip.load(config, print), method(config)
    alone, beside = (
        engine.score(clip.RECIPE, config, model, splits, names, with_baselines=True)["scores"]
        for names in (["retrieval"], ["retrieval", "knn"])  # knn trains a supervised network for comparison
    )
    assert {name: beside[name] for name in alone} == alone


def test_a_run_writes_accuracy_and_recall_beside_those_of_random_weights(tmp_path):
    report = clip.RECIPE.run(TINY, tmp_path / "run").report
    assert set(report["scores"]) == {"zero_shot", "tr1", "tr5", "ir1", "ir5"}
    for arms in report["scores"].values():
        assert set(arms) == {"method", "random_init"}
        assert all(0 <= value <= 1 for value in arms.values())
    first, second = lines(tmp_path / "run")
    assert {"loss", "accuracy", "scale", "lr"} <= set(first)
    assert report["diagnostics"]["scale"] == pytest.approx(second["scale"], rel=0.1)
    again = runs.evaluate(clip.RECIPE, tmp_path / "run")
    assert {name: arms["method"] for name, arms in again["scores"].items()} == {
        name: arms["method"] for name, arms in report["scores"].items()
    }


def test_a_run_trains_on_shards_and_scores_retrieval_on_shards_held_out(tmp_path):
    for name, count in (("train", 40), ("test", 12)):
        split = {"size": 40, "seed": 5, "split": name}
        shards.write(alt_text.pool(count, mix=alt_text.CLEAN, **split), tmp_path / name, 16)
    from_shards = override(
        TINY,
        {
            "data.name": "shards",
            "data.root": tmp_path / "train",
            "data.test_root": tmp_path / "test",
            "eval.probes": ["retrieval"],
            "eval.baselines": "none",
        },
    )
    report = clip.RECIPE.run(from_shards, tmp_path / "run").report
    assert set(report["scores"]) == {"tr1", "tr5", "ir1", "ir5"}
    assert all(math.isfinite(line["loss"]) for line in lines(tmp_path / "run"))
    few = tmp_path / "few.npy"
    uids.save_subset(few, alt_text.pool(8, size=40, seed=5, mix=alt_text.CLEAN).uids)
    with pytest.raises(DataError, match="There are 8 training images, fewer than one batch"):
        clip.RECIPE.run(override(from_shards, {"data.subset": few}), tmp_path / "few")


def losses_of_two_steps(place: str) -> dict[str, list[float]]:
    """A run of two steps by objective; every rank returns what was logged."""
    found = {}
    for objective in ("clip", "siglip"):
        changes = {"loss.objective": objective, "eval.probes": []}
        out = Path(place) / f"{objective}-{collectives.world_size()}"
        clip.RECIPE.run(override(TINY, changes), out)
        found[objective] = [line["loss"] for line in lines(out)]
    return found


@pytest.mark.distributed
def test_two_ranks_take_the_steps_of_one(tmp_path):
    alone = losses_of_two_steps(str(tmp_path))
    for rank in run_ranks(losses_of_two_steps, 2, str(tmp_path)):
        for objective, losses in alone.items():
            assert rank[objective] == pytest.approx(losses, rel=1e-5), objective


# configs


def test_presets_of_shards_score_what_shards_can_serve():
    from_shards = [config for config in clip.PRESETS.values() if config.data.name == "shards"]
    assert [config.eval.probes for config in from_shards] == [("zero_shot", "retrieval")] * 5


@pytest.mark.parametrize(
    ("scale", "seen", "batch_size", "lr", "warmup", "beta"),
    [
        ("small", 12.8e6, 4096, 5e-4, 500, 0.98),
        ("medium", 128e6, 4096, 5e-4, 500, 0.98),
        ("large", 1.28e9, 8192, 5e-4, 500, 0.98),
        ("xlarge", 12.8e9, 90_112, 1e-3, 10_000, 0.95),
    ],
)
def test_datacomps_presets_see_as_many_samples_as_their_pool_has_pairs(scale, seen, batch_size, lr, warmup, beta):
    config = clip.PRESETS[f"datacomp_{scale}"]
    assert config.train.steps * config.train.batch_size == pytest.approx(seen, rel=1e-4)
    assert (config.train.batch_size, config.optim.lr, config.optim.warmup_steps) == (batch_size, lr, warmup)
    assert config.optim.betas == (0.9, beta)
    assert config.optim.eps == 1e-6
    arch = {
        "small": ("vit_base", 32),
        "medium": ("vit_base", 32),
        "large": ("vit_base", 16),
        "xlarge": ("vit_large", 14),
    }
    assert (config.model.arch, config.model.patch_size) == arch[scale]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.context": 2}, r"model\.context = 2 .*at least 3"),
        ({"model.text_layers": 0}, r"model\.text_layers = 0 .*at least 1"),
        ({"model.text_heads": 3}, r"model\.text_heads = 3 does not divide model\.text_width = 32"),
        ({"model.dim": 1}, r"model\.dim = 1 .*at least 2"),
        ({"data.image_size": 4}, r"data\.image_size = 4 .*at least 8"),
        ({"views.patch_dropout": 0.5}, r"views\.patch_dropout = 0\.5 has no patches to drop: model\.arch is convnet"),
        ({"views.patch_dropout": 1.0}, r"views\.patch_dropout = 1\.0 .*in \[0, 1\)"),
        ({"sync.period": 0}, r"sync\.period = 0 .*at least 1"),
        ({"optim.lr": 0.0, "optim.lr_start": 0.0}, r"optim\.lr = 0\.0 .*above 0"),
    ],
)
def test_a_value_that_is_not_allowed_is_one_line(changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        override(TINY, changes).validate()
    assert "\n" not in str(error.value)


def test_probes_that_shards_have_nothing_for_are_named_one_a_line():
    from_shards = override(TINY, {"data.name": "shards", "data.root": "pool"})
    with pytest.raises(ConfigError) as error:
        override(from_shards, {"eval.probes": ["zero_shot", "retrieval", "knn"]}).validate()
    zero_shot, retrieval, knn = str(error.value).splitlines()
    assert "zero_shot needs classes: add --eval.imagenet FOLDER" in zero_shot
    assert "retrieval needs pairs held out: add --data.test-root FOLDER" in retrieval
    assert "knn needs labels, and shards have none: leave it out" in knn
    override(from_shards, {"eval.probes": ["retrieval"], "data.test_root": "more"}).validate()


def test_a_missing_imagenet_is_told_before_anything_is_read_or_trained(tmp_path):
    config = replace(TINY, eval=replace(TINY.eval, imagenet=tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"eval\.imagenet = .*nowhere has no folder val"):
        clip.RECIPE.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_networks_of_one_tokenizer_learn_its_vocabulary_once():
    wide = replace(TINY.model, text_width=2 * TINY.model.text_width)
    assert clip.tokenizer_of(wide) is clip.tokenizer_of(TINY.model)
    longer = clip.tokenizer_of(replace(TINY.model, context=TINY.model.context + 1))
    assert longer.context == TINY.model.context + 1
