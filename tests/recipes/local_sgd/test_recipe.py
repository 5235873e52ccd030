# SPDX-License-Identifier: Apache-2.0
"""Local SGD's classifier as a recipe: what it learns from, what is scored, what its config refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recipes_lib import cli
from recipes_lib.config import PROBES, override
from recipes_lib.data.images import ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.data.loader import Batch
from recipes_lib.distributed.batch_norm import CrossRankBatchNorm
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError, DataError
from recipes_lib.models import interchange
from recipes_lib.pretraining import class_scores, engine, runs
from recipes_lib.recipes.local_sgd import recipe as local_sgd
from recipes_lib.views.multicrop import MultiCrop

TINY = override(
    local_sgd.PRESETS["toy"],
    {
        "data.train_size": 64,
        "data.test_size": 40,
        "train.batch_size": 16,
        "train.steps": 2,
        "train.checkpoint_every": 2,
    },
)


def method(config: local_sgd.Config = TINY) -> local_sgd.LocalClassifier:
    return engine.build(local_sgd.RECIPE, config, steps=2)


def batch(size: int = 8) -> Batch:
    images = torch.randint(0, 256, (6, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batch(torch.arange(6), 0, images, None, torch.tensor([0, 1, 2, 3, 4, 9]))


# the method


def test_the_loss_is_cross_entropy_of_the_head_on_the_view_and_the_accuracy_its_hits():
    model = method()
    views = model.views(batch(), step=0)
    assert views["images"].shape == (6, 3, 8, 8)
    assert torch.equal(views["labels"], batch().labels)
    logits = model.head(model.backbone(views["images"]))
    parts = model(views)
    torch.testing.assert_close(parts["loss"], F.cross_entropy(logits, batch().labels))
    assert parts["accuracy"].item() == pytest.approx((logits.argmax(1) == batch().labels).double().mean().item())
    assert not parts["accuracy"].requires_grad


def test_batch_norms_keep_to_their_worker():
    config = override(local_sgd.PRESETS["resnet50_imagenet"], {"model.arch": "resnet18", "model.classes": 10})
    kinds = {type(layer) for layer in method(config).modules()}
    assert nn.BatchNorm2d in kinds
    assert CrossRankBatchNorm not in kinds


# runs


def test_a_run_reports_the_heads_accuracy_beside_that_of_random_weights_and_what_was_sent(tmp_path):
    report = local_sgd.RECIPE.run(override(TINY, {"eval.probes": ["accuracy", "knn"]}), tmp_path / "run").report
    assert list(report["scores"]["accuracy"]) == ["method", "random_init"]
    assert set(report["scores"]["knn"]) == {"method", "random_init", "raw_pixels", "supervised"}
    assert report["sync"]["rounds"] == 1
    assert report["sync"]["bytes"] == 2 * 3 / 4 * 4 * (64 * 64 + 64 + 64 * 64 + 64 + 640 + 10)
    again = runs.evaluate(local_sgd.RECIPE, tmp_path / "run", ["accuracy"])
    assert again["scores"]["accuracy"] == {"method": report["scores"]["accuracy"]["method"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the toy."""
    return local_sgd.RECIPE.run(TINY, tmp_path_factory.mktemp("runs") / "run").folder


def test_the_command_line_takes_the_probe_that_a_run_of_this_recipe_has_by_default(folder, capsys):
    assert cli.main(["evaluate", str(folder), "--json", "--probe", *TINY.eval.probes]) == 0
    assert json.loads(capsys.readouterr().out)["scores"].keys() == {"accuracy"}


@pytest.mark.parametrize("probes", [["accuray"], ["knn", "zero_shot"]])
def test_a_probe_that_this_recipe_has_not_is_answered_in_one_line_with_those_it_has(folder, probes, capsys):
    assert cli.main(["evaluate", str(folder), "--probe", *probes]) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("recipes: ")]
    assert line.startswith(f"recipes: There is no probe {probes[-1]!r} for this recipe.")
    assert line.endswith(f"There are: {', '.join(('accuracy', *PROBES))}.")


def test_a_perceptron_is_exported_for_our_own_reader_and_the_command_line_says_who_cannot(folder, tmp_path, capsys):
    assert cli.main(["export", str(folder), "--format", "timm", "--out", str(tmp_path / "out")]) == 0
    assert "timm will refuse" in (said := capsys.readouterr().err)
    assert "timm has no MLP" in said
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    trained = engine.reopen(local_sgd.RECIPE, folder)[1].backbone.eval()
    assert torch.equal(interchange.load(tmp_path / "out").eval()(images), trained(images))
    assert cli.main(["export", str(folder), "--format", "hf"]) == 2
    assert "ViTMSN of Hugging Face has no place for this backbone: MLP" in capsys.readouterr().err


def test_accuracy_is_the_share_of_images_that_the_head_finds():
    model, images = method(), batch().images
    with torch.no_grad():
        right = model.classify(MultiCrop(TINY.views, 0)(batch())[0]).argmax(dim=1)  # the view is the image
        labels = right.clone()
        labels[:2] = (labels[:2] + 1) % 10
    assert class_scores.accuracy(model, TINY, ImageSet(images, labels, tuple("0123456789"))) == pytest.approx(4 / 6)


def test_under_corruption_it_is_the_trained_head_that_is_scored(folder):
    given = {"eval.corruptions": ["gaussian_noise", "contrast"], "eval.corruption_severities": [1, 5]}
    report = runs.evaluate(local_sgd.RECIPE, folder, ["accuracy", "corruptions"], corruptions=given)
    found = report["corruptions"]["method"]
    assert found["clean_error"] == pytest.approx(1 - report["scores"]["accuracy"]["method"])
    assert report["scores"]["corruptions"]["method"] == pytest.approx(1 - found["mean_error"])
    assert found["errors"]["gaussian_noise"]["5"] >= found["clean_error"]


def test_without_simulation_one_process_is_plain_sgd(tmp_path, capsys):
    report = local_sgd.RECIPE.run(override(TINY, {"sync.workers": 0}), tmp_path / "run").report
    assert "sync" not in report
    assert "it averages with itself" in capsys.readouterr().err


def test_images_of_more_classes_than_the_heads_and_images_without_labels_are_refused(monkeypatch):
    with pytest.raises(DataError, match=r"of 10 classes, but model.classes = 4. Add --model.classes 10"):
        local_sgd.RECIPE.load(override(TINY, {"model.classes": 4}), print)
    found = local_sgd.RECIPE.load(TINY, print)
    bare = Splits(replace(found.train, labels=None), found.test)
    monkeypatch.setattr(class_scores, "load_images", lambda *_, **__: bare)
    with pytest.raises(DataError, match="The training images have no labels"):
        local_sgd.RECIPE.load(TINY, print)


# configs


def test_imagenet_is_trained_as_the_slowmo_paper_says():
    config = local_sgd.PRESETS["resnet50_imagenet"]
    assert (config.train.batch_size, config.train.epochs, config.optim.lr_drops) == (8192, 90.0, (30.0, 60.0, 80.0))
    assert local_sgd.PRESETS["toy"].optim.lr_drops == local_sgd.PRESETS["laptop"].optim.lr_drops == ()
    assert 0.4 <= local_sgd.PRESETS["resnet50_imagenet_slowmo"].sync.momentum <= 0.8


def test_the_imagenet_presets_differ_in_how_the_workers_agree_and_in_nothing_else():
    plain = local_sgd.PRESETS["resnet50_imagenet"]
    assert plain.optim.lr == pytest.approx(0.1 * plain.train.batch_size / 256)
    assert (plain.optim.warmup_epochs, plain.optim.weight_decay, plain.optim.name) == (5.0, 1e-4, "sgd")
    for name in ("local", "post_local", "slowmo"):
        config = local_sgd.PRESETS[f"resnet50_imagenet_{name}"]
        assert replace(config, sync=plain.sync) == plain
        assert (config.sync.period, config.sync.buffers, config.sync.lr) == (12, "reset", 1.0)
    assert local_sgd.PRESETS["resnet50_imagenet_post_local"].sync.start == 1_281_167 // 8192 * 90 // 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sync.workers": -1}, r"sync\.workers = -1 .* 0 leaves it to torchrun"),
        ({"model.arch": "resnet18"}, r"model\.arch = resnet18 .*no batch norm.*--sync\.workers 0, under torchrun"),
        (
            {"model.arch": "vit_nano", "model.stem": "conv", "model.patch_size": 4},
            r"model\.arch = vit_nano .*with model\.stem patch",
        ),
        (
            {"model.arch": "vit_nano", "model.stem": "patch", "model.patch_size": 4, "model.linear": "switchback"},
            r"model\.linear = switchback .*of full",
        ),
        ({"optim.name": "lars"}, r"optim\.name = lars .*sgd or adamw"),
        ({"train.batch_size": 18}, r"train\.batch_size = 18 .*share evenly.*sync\.workers = 4"),
        ({"train.accumulate": 2}, r"train\.accumulate = 2 .*of 1"),
        ({"train.precision": "bf16"}, r"train\.precision = bf16 .*fp32"),
        ({"views.global_views": 1}, r"views\.global_views = 1 .*one view is classified"),
        ({"views.image_size": 16}, r"views\.image_size = 16 and data\.image_size = 8 differ"),
        ({"model.width": 0}, r"model\.width = 0"),
        ({"model.classes": 1}, r"model\.classes = 1"),
        ({"sync.period": 0}, r"sync\.period = 0"),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_allowed(changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        override(TINY, changes).validate()
    assert len(str(error.value).splitlines()) == 1


def test_without_simulation_a_batch_norm_is_allowed():
    override(TINY, {"model.arch": "resnet18", "model.stem": "cifar", "sync.workers": 0}).validate()


def test_a_vision_transformer_can_be_simulated(tmp_path):
    small = {"model.arch": "vit_pico", "model.stem": "patch", "model.patch_size": 4, "eval.baselines": "none"}
    local_sgd.RECIPE.run(override(TINY, small), tmp_path / "run")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(2.3, abs=0.4)


# ranks


def simulate_in_each(place: str) -> str:
    """What a run says that simulates workers in one of several processes."""
    try:
        local_sgd.RECIPE.run(TINY, Path(place) / "run")
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_simulated_workers_are_refused_in_one_of_several_processes_and_leave_no_folder(tmp_path):
    for said in run_ranks(simulate_in_each, 2, str(tmp_path)):
        assert said.startswith(
            "sync.workers = 4 simulates workers in one process, and this is one of 2. Use --sync.workers 0"
        )
    assert not (tmp_path / "run").exists()


def train_with_an_image_each(place: str, arch: str) -> str:
    """What a run says whose processes have one image each."""
    changes = {"sync.workers": 0, "sync.name": "ddp", "model.arch": arch, "eval.probes": []}
    config = override(TINY, {**changes, "train.batch_size": 2, "eval.baselines": "none"})
    try:
        local_sgd.RECIPE.run(config, Path(place) / arch)
    except ConfigError as error:
        return str(error)
    return "done"


@pytest.mark.distributed
def test_one_image_a_process_is_refused_before_training_where_batch_norm_has_no_statistics_of_it(tmp_path):
    for said in run_ranks(train_with_an_image_each, 2, str(tmp_path), "convnet"):
        assert said.startswith("train.batch_size = 2 leaves each of 2 processes one image at a time")
        assert said.endswith("Use a batch of at least 4, or fewer processes.")
        assert "\n" not in said
    assert not (tmp_path / "convnet").exists()
    assert run_ranks(train_with_an_image_each, 2, str(tmp_path), "mlp") == ["done", "done"]
