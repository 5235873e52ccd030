# SPDX-License-Identifier: Apache-2.0
"""PAWS as a recipe: which views meet, what its gradient reaches, which labels it sees, what its config refuses."""

import numpy as np
import pytest
import torch

from recipes_lib.config import override
from recipes_lib.data.images import UNLABELLED
from recipes_lib.data.load import load
from recipes_lib.data.loader import Batch
from recipes_lib.errors import ConfigError, DataError
from recipes_lib.objectives import snn
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.paws import recipe as paws
from recipes_lib.training import checkpoint

TINY = override(
    paws.PRESETS["toy"],
    {
        "data.name": "digits",
        "data.train_size": 100,
        "data.test_size": 20,
        "data.labels_per_class": 2,
        "data.support_images": 2,
        "data.replacement": False,
        "data.image_size": 32,
        "model.arch": "vit_pico",
        "model.stem": "conv",
        "model.patch_size": 8,
        "model.hidden": 32,
        "model.dim": 64,
        "model.predictor": True,
        "views.image_size": 32,
        "views.local_views": 2,
        "views.local_size": 16,
        "train.batch_size": 8,
        "train.steps": 2,
        "eval.baselines": "none",
        "eval.probes": ["snn"],
    },
)


def method(config: paws.Config = TINY) -> paws.PAWS:
    return engine.build(paws.RECIPE, config, steps=2)


def pixels(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def batch() -> Batch:
    support = Batch(torch.arange(6), 0, pixels(6, seed=1), None, torch.arange(6) % 3)
    return Batch(torch.arange(8), 0, pixels(8, seed=0), None, None, support)


def test_views_are_two_large_ones_the_small_ones_and_the_supports():
    views = method().views(batch(), step=0)
    assert views["large"].shape == (16, 3, 32, 32)
    assert views["small"].shape == (16, 3, 16, 16)
    assert views["support"].shape == (6, 3, 32, 32)
    torch.testing.assert_close(views["labels"], snn.support_labels(torch.arange(6) % 3, 3, 0.1))


def test_views_of_a_support_repeat_its_label_and_differ():
    views = method(override(TINY, {"data.support_views": 2, "data.support_classes": 3})).views(batch(), step=0)
    assert views["support"].shape == (12, 3, 32, 32)
    assert torch.equal(views["labels"][:6], views["labels"][6:])
    assert (views["support"][:6] - views["support"][6:]).flatten(1).abs().amax(dim=1).min() > 0.1


def test_copies_of_one_image_are_other_views_and_share_none_with_the_unlabelled_ones():
    copies = Batch(torch.arange(8), 0, pixels(1, seed=0).expand(8, -1, -1, -1), None, torch.arange(8) % 2)
    same = Batch(torch.arange(8), 0, copies.images, None, None, copies)
    views = method().views(same, step=0)
    every = torch.cat([views["support"], views["large"]]).flatten(1)
    assert torch.cdist(every, every).add(torch.eye(24) * 1e9).min() > 1


def test_gradient_reaches_every_parameter_through_anchors_and_supports():
    model = method()
    views = model.views(batch(), step=0)
    views["support"].requires_grad_(True)
    model(views)["loss"].backward()
    assert (views["support"].grad.flatten(1).abs().amax(dim=1) > 0).all()
    assert all(p.grad is not None for p in model.parameters())


def test_targets_come_before_the_predictor_and_pass_no_gradient():
    model = method().double()
    views = {name: value.double() for name, value in model.views(batch(), step=0).items()}
    with torch.no_grad():
        model.predictor.fc2.weight.zero_()  # every prediction is the same: the anchors say nothing
        model.predictor.fc2.bias.fill_(1.0)
    figures = model(views)
    assert float(figures["entropy"]) == pytest.approx(np.log(3), abs=1e-6)
    assert float(figures["target_entropy"]) < 1.0  # but the targets do
    figures["loss"].backward()
    grads = [p.grad for p in model.projection.parameters()]
    assert all(grad is None or not grad.abs().max() > 1e-9 for grad in grads)  # the way to them leads through targets


def test_supports_and_large_views_share_their_batch_statistics():
    model = method()
    sizes = []
    model.projection.bn1.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    model(model.views(batch(), step=0))
    assert sizes == [6 + 16, 16]


def test_without_a_predictor_embeddings_are_projections():
    model = method(override(TINY, {"model.predictor": False})).eval()
    features = torch.randn(4, model.backbone.num_features, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.embed(features), model.projection(features))
    torch.testing.assert_close(model.finetune_layer(features), model.projection.first_layer(features))


def test_simclr_is_scored_without_a_predictor_that_nothing_trained():
    config = override(TINY, {"loss.objective": "simclr"})
    model = method(config).eval()
    features = torch.randn(4, model.backbone.num_features, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.embed(features), model.projection(features))
    (line,) = paws.cautions(config)
    assert "model.predictor = True has no effect" in line
    assert paws.cautions(TINY) == []


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"data.labels_per_class": 3}, 30),
        ({"data.labels_per_class": None, "data.label_share": 0.2}, 20),
        ({"data.labels_per_class": None}, 100),
    ],
)
def test_so_many_training_images_keep_their_label_and_all_test_images_do(changes, kept):
    config = override(TINY, changes)
    splits = load(config.data, 0)
    hidden = paws.hide_labels(config, splits)
    known = hidden.train.labels != UNLABELLED
    assert abs(int(known.sum()) - kept) <= 2
    assert torch.equal(hidden.train.labels[known], splits.train.labels[known])
    assert torch.equal(hidden.train.images, splits.train.images)
    assert torch.equal(hidden.test.labels, splits.test.labels)


def test_which_labels_are_kept_goes_by_their_own_seed():
    chosen = []
    for changes in ((0, 0), (0, 5), (1, 0), (None, 1)):
        config = override(TINY, dict(zip(("data.label_seed", "train.seed"), changes, strict=True)))
        chosen.append(paws.hide_labels(config, load(config.data, 0)).train.labels != UNLABELLED)
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    assert torch.equal(chosen[2], chosen[3])  # without one, by the run's


def test_images_in_memory_keep_the_labels_whose_numbers_a_list_names(tmp_path):
    """As in the label lists of CIFAR-10 that come with the paper's code."""
    (tmp_path / "numbers.txt").write_text("7\n30\n0\n")
    config = override(TINY, {"data.labels_per_class": None, "data.labelled": tmp_path / "numbers.txt"})
    whole = load(config.data, seed=0)
    train = paws.hide_labels(config, whole).train
    assert (train.labels != UNLABELLED).nonzero()[:, 0].tolist() == [0, 7, 30]
    assert torch.equal(train.labels[[0, 7, 30]], whole.train.labels[[0, 7, 30]])


def test_a_run_scores_its_own_classifier_and_can_be_evaluated_again(tmp_path):
    result = paws.RECIPE.run(TINY, tmp_path / "run")
    found = result.report["diagnostics"]
    assert result.report["scores"]["snn"]["method"] == pytest.approx(found["snn_accuracy"])
    assert 1 <= found["classes_predicted"] <= 10
    assert runs.evaluate(paws.RECIPE, result.folder, ["snn"])["scores"] == result.report["scores"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"data.support_images": 3},
            r"2 labelled images, but the support takes 3 .* at most 2, or --data\.replacement",
        ),
        ({"data.labels_per_class": 90}, r"90 per class are wanted\. Use data\.labels_per_class of at most"),
        ({"data.support_classes": 11}, r"data\.support_classes = 11, but there are 10 classes"),
    ],
)
def test_labels_that_do_not_suffice_are_told_before_training(changes, text, tmp_path):
    with pytest.raises(DataError, match=text):
        paws.RECIPE.run(override(TINY, changes), tmp_path / "run")


def test_the_papers_presets_have_the_released_values():
    full = paws.PRESETS["rn50_imagenet_10pct"]
    assert (full.data.support_classes, full.data.support_images, full.train.batch_size) == (960, 7, 4096)
    assert (full.optim.lr_start, full.optim.lr, full.optim.lr_final, full.optim.weight_decay) == (0.3, 6.4, 0.064, 1e-6)
    assert (full.views.global_scale, full.views.local_scale, full.views.local_views) == ((0.14, 1), (0.05, 0.14), 6)
    assert (full.views.brightness, full.views.hue, full.model.predictor, full.model.dim) == (0.8, 0.2, True, 2048)
    one = paws.PRESETS["rn50_imagenet_1pct_100"]
    assert (one.data.label_share, one.train.epochs, one.loss) == (0.01, 100, full.loss)
    cifar = paws.PRESETS["wrn28_2_cifar10"]
    assert (cifar.data.support_images * cifar.data.support_classes * cifar.data.support_views) == 1280
    assert (cifar.data.labels_per_class, cifar.train.epochs, cifar.train.batch_size) == (400, 600, 256)
    assert (cifar.optim.lr_start, cifar.optim.lr, cifar.optim.lr_final) == (0.8, 3.2, 0.032)
    assert (cifar.views.solarize, cifar.views.equalize, cifar.views.brightness, cifar.views.hue) == (0.2, 0.2, 0.4, 0.1)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("data.label_share", 0.2, r"data.labels_per_class and data.label_share both say which images"),
        ("data.support_images", 0, r"data.support_images = 0 .*at least 1"),
        ("views.global_views", 2, r"views.global_views = 2 .*PAWS has two large views"),
        ("views.local_size", 18, r"model.patch_size = 8 does not divide views.local_size = 18"),
        ("model.stem", "cifar", r"model.stem = cifar .*of patch or conv with vit_pico"),
        ("model.dim", 18, r"model.dim = 18 .*multiple of 4"),
        ("loss.temperature", 0.0, r"loss.temperature = 0.0 .*above 0"),
        ("loss.sharpen_temperature", 1.5, r"loss.sharpen_temperature = 1.5 .*\(0, 1\]"),
        ("loss.smoothing", 1.0, r"loss.smoothing = 1.0 .*\[0, 1\)"),
        ("model.layer_scale", True, r"model.layer_scale = True .*batch norm would divide rounding noise"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(field, value, words):
    with pytest.raises(ConfigError, match=words):
        override(TINY, {field: value}).validate()


def test_the_cifar10_preset_is_the_released_recipe():
    config = paws.PRESETS["wrn28_2_cifar10"]
    assert (config.views.normalize, config.views.solarize_threshold) == ("cifar10", (0.0, 1.0))
    assert (config.views.solarize, config.views.equalize, config.views.grayscale) == (0.2, 0.2, 0.0)
    assert (config.data.labels_per_class, config.data.support_images, config.data.support_views) == (400, 64, 2)
    tuning = config.eval
    assert (tuning.finetune_objective, tuning.finetune_epochs, tuning.finetune_lr) == ("suncet", 30, 0.1)
    assert (tuning.finetune_batch_size, tuning.probes) == (640, ("snn", "finetune"))


def test_a_run_is_fine_tuned_by_suncet_through_the_head_that_its_neighbours_compare(tmp_path):
    changes = {"eval.probes": ["snn", "finetune"], "eval.finetune_objective": "suncet", "eval.finetune_epochs": 1.0}
    result = paws.RECIPE.run(override(TINY, {**changes, "eval.finetune_batch_size": 20}), tmp_path / "run")
    tuned = checkpoint.read_weights(tmp_path / "run" / "finetune" / "model.safetensors")
    assert {key.split(".")[1] for key in tuned if key.startswith("layer.")} == {"0", "1"}  # projection, predictor
    assert 0 <= result.report["scores"]["finetune"]["method"] <= 1
