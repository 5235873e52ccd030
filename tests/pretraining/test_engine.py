# SPDX-License-Identifier: Apache-2.0
"""What a run folder gives back, and what a run does not wait for its end to find out."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes_lib import recipes
from recipes_lib.config import override, to_yaml
from recipes_lib.data import embedded
from recipes_lib.data.load import Splits, load
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError, DataError, Interrupted, RunError
from recipes_lib.evaluation.features import extract
from recipes_lib.evaluation.knn import weighted_knn
from recipes_lib.pretraining import engine, runs
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.clip import recipe as clip
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.msn import recipe as msn
from recipes_lib.recipes.pmsn import recipe as pmsn
from recipes_lib.recipes.sieve import recipe as sieve
from recipes_lib.training import checkpoint

TINY = override(
    msn.PRESETS["toy"],
    {
        "data.name": "digits",
        "data.train_size": 40,
        "data.test_size": 16,
        "model.hidden": 16,
        "model.dim": 8,
        "model.prototypes": 4,
        "train.batch_size": 8,
        "train.steps": 1,
        "eval.probes": [],
        "eval.cooked": False,
    },
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that asked for no probe, with baselines ``all`` and a list of labelled images that is missing."""
    config = override(TINY, {"eval.baselines": "all", "data.labelled": "nowhere.txt"})
    return msn.RECIPE.run(config, tmp_path_factory.mktemp("runs") / "run").folder


def test_without_a_probe_no_baseline_is_trained_and_no_label_looked_up(run):
    report = json.loads((run / "report.json").read_text())
    assert (report["scores"], report["spread"]) == ({}, {"method": {}})


def test_images_without_labels_are_trained_on_where_no_probe_is_asked_for(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x_train=images, x_test=images)
    config = override(TINY, {"data.name": "npz", "data.root": tmp_path / "images.npz"})
    result = msn.RECIPE.run(config, tmp_path / "run")
    assert result.report["scores"] == {}
    with pytest.raises(DataError, match=r"no labels, .* --eval\.probes with no name"):
        runs.evaluate(msn.RECIPE, result.folder, ["knn"])


def image_files(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (36, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_images_of_ones_own_without_classes_or_val_are_trained_on_where_no_probe_is_asked_for(tmp_path):
    root = image_files(tmp_path / "mine", *(f"{number}.png" for number in range(9)))
    config = override(TINY, {"data.name": "imagenet", "data.root": root})
    result = msn.RECIPE.run(config, tmp_path / "run")
    assert (result.report["steps"], result.report["scores"]) == (1, {})
    assert result.report["data"] | {"notes": None} == {"train": 9, "labelled": 0, "test": 9, "notes": None}
    with pytest.raises(DataError, match="The training images have no labels"):
        msn.RECIPE.run(override(config, {"eval.probes": ["knn"]}), tmp_path / "other")


def test_a_damaged_image_that_would_be_scored_ends_the_run_before_its_first_step(tmp_path):
    names = [f"{split}/{kind}/{number}.png" for split in ("train", "val") for kind in "ab" for number in range(4)]
    root = image_files(tmp_path / "mine", *names)
    (root / "val" / "b" / "3.png").write_bytes(b"")
    config = override(TINY, {"data.name": "imagenet", "data.root": root, "eval.probes": ["linear"]})
    with pytest.raises(DataError, match=r"val/b/3\.png cannot be read"):
        msn.RECIPE.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    result = msn.RECIPE.run(override(config, {"data.on_damage": "skip"}), tmp_path / "run")
    assert result.report["data"]["test"] == 7


def test_a_probe_that_needs_no_named_images_does_not_look_them_up(run):
    assert runs.evaluate(msn.RECIPE, run, ["knn"])["scores"]["knn"].keys() == {"method"}
    with pytest.raises(DataError, match=r"data\.labelled = nowhere\.txt"):
        runs.evaluate(msn.RECIPE, run, ["lowshot"])


def test_factors_are_scored_of_every_arm_beside_the_probes(tmp_path):
    config = override(TINY, {"eval.probes": ["factors", "knn"], "eval.baselines": "all"})
    report = msn.RECIPE.run(config, tmp_path / "run").report
    arms = {"method", "random_init", "raw_pixels", "supervised"}
    assert list(report["scores"]) == ["knn"]
    assert report["factors"].keys() == report["scores"]["knn"].keys() == arms
    for scores in report["factors"].values():
        assert list(scores) == ["label", "ink", "paper", "angle", "scale", "shift"]  # and not the number of the scan
        assert all(0 <= score <= 1 for score in scores.values())
    alone = runs.evaluate(msn.RECIPE, tmp_path / "run", ["factors"])
    assert alone["factors"] == {"method": report["factors"]["method"]}
    assert alone["scores"] == {}


def test_corruptions_are_scored_of_every_network_and_the_probe_can_be_narrowed_later(tmp_path):
    few = {"eval.corruptions": ["contrast", "fog"], "eval.corruption_severities": [5], "eval.corruption_images": 12}
    config = override(TINY, {"eval.probes": ["corruptions", "linear"], "eval.baselines": "all", **few})
    report = msn.RECIPE.run(config, tmp_path / "run").report
    arms = {"method", "random_init", "supervised"}
    assert report["scores"]["corruptions"].keys() == report["corruptions"].keys() == arms
    for arm, found in report["corruptions"].items():
        assert (found["images"], found["published"], list(found["errors"])) == (12, False, ["contrast", "fog"])
        assert report["scores"]["corruptions"][arm] == pytest.approx(1 - found["mean_error"])
        assert "mce" not in found
    given = {"eval.corruptions": ["fog"], "eval.corruption_images": 1000}
    alone = runs.evaluate(msn.RECIPE, tmp_path / "run", ["corruptions"], corruptions=given)["corruptions"]["method"]
    assert list(alone["errors"]) == ["fog"]
    assert alone["clean_error"] == pytest.approx(1 - report["scores"]["linear"]["method"], abs=0.05)
    with pytest.raises(
        ConfigError, match=r"eval\.corruptions is of the probe corruptions\. Add it: --probe corruptions"
    ):
        runs.evaluate(msn.RECIPE, tmp_path / "run", ["linear"], corruptions=given)


def test_published_images_that_are_missing_are_told_before_the_first_step(tmp_path):
    config = override(TINY, {"eval.probes": ["corruptions"], "eval.corruption_root": tmp_path / "nowhere"})
    with pytest.raises(DataError, match=r"eval\.corruption_root = .*nowhere is no folder"):
        msn.RECIPE.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def scores_of_a_convnet(folder: str) -> dict[str, dict[str, float]]:
    changes = {"data.name": "digits", "data.image_size": 16, "views.image_size": 16, "data.train_size": 96}
    changes |= {"data.test_size": 32, "train.batch_size": 32, "train.steps": 2, "eval.baselines": "all"}
    return families.RECIPE.run(override(families.PRESETS["simclr_toy"], changes), Path(folder)).report["scores"]


@pytest.mark.distributed
def test_baselines_with_batch_norm_are_those_of_one_process_on_two(tmp_path):
    one = scores_of_a_convnet(str(tmp_path / "one"))["knn"]
    first, second = run_ranks(scores_of_a_convnet, 2, str(tmp_path / "two"))
    assert first == second
    for arm in ("random_init", "raw_pixels", "supervised"):
        assert first["knn"][arm] == one[arm]


def test_the_untrained_network_beside_a_method_has_statistics_of_training_images(tmp_path):
    config = override(families.PRESETS["simclr_toy"], {"data.train_size": 256, "data.test_size": 64})
    splits, method = load(config.data, DATA_SEED), engine.build(families.RECIPE, config, steps=1)
    found = engine.score(families.RECIPE, config, method, splits, ["knn", "rankme"], with_baselines=True)
    # the method is untrained too, and has the statistics of a new network
    assert found["label_free"]["rankme"]["random_init"] > 1.2 * found["label_free"]["rankme"]["method"]
    assert found["scores"]["knn"]["random_init"] != found["scores"]["knn"]["method"]


def test_the_pixels_beside_a_method_are_what_it_sees_and_ignore_the_sign_where_its_views_invert():
    config = override(TINY, {"views.normalize": "grey", "views.invert": 0.5, "eval.neighbours": 1})
    images = load(config.data, 0).train
    negatives = replace(images, images=255 - images.images)  # in grey, and without a sign, the very same images
    splits, method = Splits(images, negatives), engine.build(msn.RECIPE, config, steps=1)
    found = engine.score(msn.RECIPE, config, method, splits, ["knn"], with_baselines=True)
    assert found["scores"]["knn"]["raw_pixels"] == 1.0


def test_the_network_cooked_earlier_is_probed_live_on_the_same_images(tmp_path):
    config = override(TINY, {"eval.probes": ["knn"], "eval.baselines": "all", "eval.cooked": True})
    report = msn.RECIPE.run(config, tmp_path / "run").report
    theirs, cooked = engine.reopen(msn.RECIPE, embedded.path("cooked/msn"))
    images = load(config.data, DATA_SEED)
    how = {"image_size": theirs.data.image_size, "normalize": theirs.views.normalize}
    rows = [extract(cooked.backbone, some, **how).final for some in (images.train, images.test)]
    expected = weighted_knn(rows[0], images.train.labels, rows[1], images.test.labels, k=config.eval.neighbours)
    assert report["scores"]["knn"]["cooked"] == expected
    assert report["cooked"] == {"steps": theirs.train.steps}


def test_a_recipe_with_scores_of_its_own_has_no_cooked_network_beside_them():
    config = override(clip.PRESETS["toy"], {"eval.cooked": True, "eval.baselines": "all"})
    with pytest.raises(ConfigError, match=r"eval\.cooked = True is not allowed with clip"):
        clip.RECIPE.run(config, None)


@pytest.mark.parametrize("recipe", [msn.RECIPE, pmsn.RECIPE], ids=lambda recipe: recipe.name)
def test_the_first_run_of_a_masked_method_drops_patches_and_stands_beside_the_cooked_one(recipe):
    toy = recipe.presets["toy"]
    assert toy.views.mask_ratio == recipe.presets["simmer"].views.mask_ratio == 0.15
    assert toy.eval.cooked


def test_finetuning_after_training_and_by_evaluate_is_one_run_with_one_score(tmp_path):
    config = override(TINY, {"eval.probes": ["finetune"], "eval.finetune_epochs": 1.0, "eval.finetune_batch_size": 20})
    report = msn.RECIPE.run(config, tmp_path / "run").report
    assert list(report["scores"]) == ["finetune"]
    tuned = json.loads((tmp_path / "run" / "finetune" / "report.json").read_text())
    assert report["scores"]["finetune"] == {"method": tuned["accuracy"]}
    assert tuned["steps"] == 2
    assert runs.evaluate(msn.RECIPE, tmp_path / "run", ["finetune"])["scores"] == report["scores"]


def test_a_run_that_is_stopped_while_it_is_fine_tuned_is_interrupted_and_goes_on(tmp_path, monkeypatch, after_step):
    config = override(TINY, {"eval.probes": ["finetune"], "eval.finetune_epochs": 2.0})
    after_step(1, lambda: signal.raise_signal(signal.SIGTERM))  # of the two runs, fine-tuning alone has a second step
    with pytest.raises(Interrupted, match=rf"Fine-tuning was interrupted; .* recipes resume {tmp_path}/run$"):
        msn.RECIPE.run(override(config, {"eval.finetune_batch_size": 20}), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "state.json").read_text())["status"] == "interrupted"
    monkeypatch.undo()
    assert runs.resume(msn.RECIPE, tmp_path / "run").report["scores"].keys() == {"finetune"}


def test_data_without_true_factors_is_told_before_training(tmp_path):
    images, labels = np.zeros((16, 32, 32, 3), np.uint8), np.arange(16) % 2
    np.savez(tmp_path / "images.npz", x_train=images, x_test=images, y_train=labels, y_test=labels)
    changes = {"data.name": "npz", "data.root": tmp_path / "images.npz", "eval.probes": ["factors"]}
    with pytest.raises(DataError, match="factors needs images whose true factors are known"):
        msn.RECIPE.run(override(TINY, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("was", "now", "fault"),
    [
        ("recipe: msn", "recipe: mns", "There is no recipe 'mns'"),
        ("steps: 1", "steps: one", '"train.steps"'),
        ("steps: 1", "stepz: 1", '"stepz"'),
    ],
)
def test_a_config_that_was_edited_is_named_with_its_fault(run, tmp_path, was, now, fault):
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text().replace(was, now))
    for act in (runs.resume, engine.reopen):
        with pytest.raises(RunError, match=rf"config\.yaml: .*{fault}"):
            act(recipes.of_run(tmp_path), tmp_path)


def test_weights_of_another_network_are_refused_in_one_line(run, tmp_path):
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    weights = checkpoint.read_weights(run / "model.safetensors")
    for other, reason in [
        ({"a": torch.zeros(1)}, "The keys of the weights in .* do not fit: missing"),
        ({**weights, "prototypes.weight": torch.zeros(5, 8)}, "The sizes of the weights in .* size mismatch"),
    ]:
        checkpoint.write_weights(tmp_path / "model.safetensors", other)
        with pytest.raises(RunError, match=reason) as caught:
            engine.reopen(msn.RECIPE, tmp_path)
        assert "\n" not in str(caught.value)


def test_labels_that_are_missing_leave_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"eval\.neighbours = 41"):
        msn.RECIPE.run(override(TINY, {"eval.probes": ["knn"], "eval.neighbours": 41}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_probe_of_another_recipe_is_refused():
    runs._allow(clip.RECIPE, clip.PRESETS["toy"], ("zero_shot", "knn"))
    with pytest.raises(ConfigError, match="There is no probe 'zero_shot' for this recipe"):
        runs._allow(msn.RECIPE, msn.PRESETS["toy"], ("knn", "zero_shot"))
    with pytest.raises(ConfigError, match=r"eval\.probes knn needs labels"):
        runs._allow(clip.RECIPE, override(clip.PRESETS["laptop"], {"data.root": "shards"}), ("knn",))


def test_a_run_without_a_backbone_has_nothing_to_evaluate(tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml("sieve", sieve.PRESETS["toy"]))
    with pytest.raises(RunError, match="trains no backbone"):
        recipes.that_trained(tmp_path)
