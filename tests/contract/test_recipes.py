# SPDX-License-Identifier: Apache-2.0
"""What holds of every recipe on the menu, whatever its method."""

import math
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
import yaml

from recipes_lib import recipes
from recipes_lib.config import DRAWN, from_dict, override, to_dict
from recipes_lib.data.loader import StepBatches
from recipes_lib.errors import ConfigError, RunError
from recipes_lib.launch import plan, trace
from recipes_lib.models import interchange
from recipes_lib.models.vit import VisionTransformer
from recipes_lib.pretraining import engine, runs
from recipes_lib.pretraining.recipe import Job, Recipe

CPU = torch.device("cpu")
JOBS = (
    "what_is_ssl",
    "evaluation",
    "knobs",
    "troubleshooting",
    "sieve",
    "imagenet_x",
)  # they compare, score or analyse
TRAINED = [name for name in recipes.MENU if name not in JOBS]
PRESETS = [(name, preset) for name in recipes.MENU for preset in recipes.MENU[name].presets]

SHORT = {
    "data.train_size": 96,
    "data.test_size": 24,
    "train.batch_size": 16,
    "train.steps": 2,
    "train.checkpoint_every": 1,
    "train.keep_checkpoints": 2,
    "train.device": "cpu",
    "eval.probes": [],
    "eval.baselines": "none",
    "eval.neighbours": 5,
    "eval.labels_per_class": 1,
    "eval.lowshot_splits": 1,
    "eval.corruptions": ["fog", "jpeg_compression"],
    "eval.corruption_severities": [1, 5],
    "eval.finetune_epochs": 1.0,
}
"""A run of a second, with the evaluation that would follow it."""
OWN = {"local_sgd": {"sync.workers": 0, "sync.name": "ddp"}, "paws": {"data.labels_per_class": 4}}
NEEDS = {
    ("imagenet_x", "score"): {"data.root": "somewhere", "model": "timm:vit_tiny_patch16_224"},
    ("imagenet_x", "report"): {"predictions": ["a.csv"], "annotations": "somewhere"},
    **{
        ("tcnn", name): {"model.init": "somewhere"}
        for name in ("finetune", "cnn_finetune_imagenet", "finetune_imagenet")
    },
}
"""What a user has to give with a preset, beside places of images."""


@pytest.fixture(scope="module", params=TRAINED)
def recipe(request):
    return recipes.named(request.param)


@pytest.fixture(scope="module")
def toy(recipe):
    """The recipe's ``toy`` on fewer images, with its method and two batches, as a run would have them."""
    changes = {"data.train_size": 192, "data.test_size": 8, "train.batch_size": 32, "train.steps": 2, "eval.probes": []}
    config = override(recipe.presets["toy"], changes)
    config.validate()
    splits = recipe.hide_labels(config, recipe.load(config, pytest.fail))
    method = engine.build(recipe, config, steps=2)
    batches = StepBatches(splits.train, seed=0, batch_size=32, encode=method.encode_texts)
    if recipe.support:
        batches.support = recipe.support(config, splits.train, rank=0, world_size=1)
    return config, method, list(batches.stream(0, 2, workers=0, device=CPU))


@pytest.mark.parametrize("name", recipes.MENU)
def test_the_menu_lists_the_presets_that_the_module_has_in_their_order(name):
    recipe = recipes.named(name)
    assert recipes.MENU[name].presets == tuple(recipe.presets)
    assert recipes.MENU[name].presets[:2] == ("toy", "simmer")
    assert isinstance(recipe, Recipe if name in TRAINED else Job)
    assert callable(recipe.run)
    assert all(isinstance(config, recipe.config) for config in recipe.presets.values())


def with_data(name: str, preset: str):
    """The preset with what a user has to give: places of data that is not embedded, and of weights to start from."""
    config = override(recipes.named(name).presets[preset], NEEDS.get((name, preset), {}))
    if name in JOBS:
        return config
    if config.data.name in DRAWN:
        return config
    places = {"data.root": "somewhere"}
    if config.data.name == "shards":
        places |= {"data.test_root": "elsewhere", "eval.imagenet": "imagenet"}
    return override(config, places)


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_preset_is_valid_once_it_has_data_needs_no_caution_and_survives_yaml(name, preset):
    recipe, config = recipes.named(name), with_data(name, preset)
    config.validate()
    written = yaml.safe_load(yaml.safe_dump(to_dict(config)))
    assert from_dict(recipe.config, written) == config
    assert name in JOBS or list(recipe.cautions(config)) == []


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_preset_of_a_recipe_that_trains_can_be_planned_before_there_is_data(name, preset, monkeypatch):
    """What a step computes and keeps is left out here: tests/launch holds it to real steps."""
    monkeypatch.setattr(trace, "measure", lambda *_, **__: trace.Trace(flops=10**12, activations=10**9, inputs=10**6))
    config = recipes.named(name).presets[preset]
    if name in JOBS:
        with pytest.raises(ConfigError, match="trains no"):
            plan.plan(name, config, world=1)
    else:
        found = plan.plan(name, config, world=1, images=100_000)
        assert found.parameters >= found.trained_parameters > 0
        assert found.images_seen == found.steps * config.train.batch_size > 0


def test_two_steps_give_finite_losses_and_the_same_figures(toy):
    _, method, batches = toy
    outputs = [method(method.views(batch, step)) for step, batch in enumerate(batches)]
    assert outputs[0].keys() == outputs[1].keys()
    for output in outputs:
        assert output["loss"].isfinite()
        assert output["loss"].requires_grad
        assert not any(value.requires_grad for name, value in output.items() if name != "loss")


def test_every_trainable_parameter_is_given_to_the_optimiser_once_and_gets_a_gradient(toy):
    _, method, batches = toy
    method.zero_grad()
    method(method.views(batches[0], 0))["loss"].backward()
    trainable = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None] == []
    given = [id(p) for group in method.param_groups() for p in group["params"]]
    assert sorted(given) == sorted(map(id, trainable.values()))
    assert {id(p) for p in method.clipped_parameters()} <= set(given)


def test_a_state_travels_into_a_fresh_method_and_gives_the_same_features(recipe, toy):
    config, method, _ = toy
    fresh = engine.build(recipe, override(config, {"train.seed": 1}), steps=2)
    fresh.load_state_dict(method.state_dict())
    side = config.data.image_size
    images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(fresh.backbone.eval()(images), method.backbone.eval()(images))


def test_the_largest_preset_can_be_built_on_the_meta_device(recipe):
    with torch.device("meta"):
        method = recipe.method(list(recipe.presets.values())[-1], 1000)
    assert sum(p.numel() for p in method.backbone.parameters()) > 1e7


# a run on disk


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> Path:
    """The folder of a finished run of two steps, with a checkpoint after each."""
    config = override(recipe.presets["toy"], {**SHORT, **OWN.get(recipe.name, {})})
    return recipe.run(config, tmp_path_factory.mktemp(recipe.name) / "run").folder


def stopped(run: Path, folder: Path) -> Path:
    """The run as it was after its first step."""
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints" / "step-000002")
    for name in ("model.safetensors", "report.json"):
        (folder / name).unlink()
    (folder / "state.json").write_text('{"status": "interrupted", "step": 1}\n')
    return folder


def older(config) -> dict:
    """What a version would have written that did not know one field of each group; the field has its default."""
    values = to_dict(config)
    for group in fields(config):
        part = getattr(config, group.name)
        if is_dataclass(part):
            defaults = [field.name for field in fields(part) if getattr(part, field.name) == field.default]
            del values[group.name][defaults[-1]]
    return values


def test_a_run_of_an_older_version_goes_on_and_ends_with_the_same_bits(recipe, run, tmp_path):
    folder = stopped(run, tmp_path / "run")
    text = yaml.safe_dump({"recipe": recipe.name, **older(engine.reopen(recipe, run)[0])})
    assert len(text.splitlines()) < len((run / "config.yaml").read_text().splitlines())
    (folder / "config.yaml").write_text(text)
    runs.resume(recipe, folder)
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert (folder / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_a_run_is_evaluated_by_every_probe_that_the_recipe_lists(recipe, run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / "run"))  # fine-tuning writes
    found = runs.evaluate(recipe, folder, recipe.probes)
    named = {"retrieval" if name in ("ir1", "ir5", "tr1", "tr5") else name for name in found["scores"]}
    assert named | ({"factors"} & set(found)) | set(found["label_free"]) == set(recipe.probes)
    scores = [score for probe in found["scores"].values() for score in probe.values()]
    assert all(0 <= score <= 1 for score in [*scores, *found["factors"]["method"].values()]), found
    corrupted = found["corruptions"]["method"]
    assert corrupted["mean_error"] == pytest.approx(1 - found["scores"]["corruptions"]["method"])
    assert [list(errors) for errors in corrupted["errors"].values()] == [["1", "5"]] * 2
    numbers = [number for probe in found["label_free"].values() for number in probe.values()]
    assert all(map(math.isfinite, numbers)), found["label_free"]


def test_baselines_leave_the_trained_method_as_it_was(recipe, run):
    config, method = engine.reopen(recipe, run)
    splits = recipe.hide_labels(config, recipe.load(config, pytest.fail))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    trained = [parameter.requires_grad for parameter in method.parameters()]
    probe = next(name for name in recipe.presets["toy"].eval.probes if name != "finetune")
    scores = engine.score(recipe, config, method, splits, [probe], with_baselines=True)["scores"][probe]
    assert {"method", "random_init"} <= set(scores)
    assert all(map(math.isfinite, scores.values()))
    assert [key for key, value in method.state_dict().items() if not torch.equal(value, before[key])] == []
    assert [parameter.requires_grad for parameter in method.parameters()] == trained


@pytest.mark.parametrize("layout", ["timm", "hf"])
def test_a_run_is_exported_and_read_again_or_refused_in_one_line(recipe, run, layout, tmp_path):
    config, method = engine.reopen(recipe, run)
    out = tmp_path / "out"
    if layout == "hf" and not (isinstance(method.backbone, VisionTransformer) and method.backbone.stem == "patch"):
        with pytest.raises(RunError, match=r"^[^\n]*Export it with --format timm\.$"):
            runs.export(recipe, run, layout, out)
        assert not out.exists()
        return
    loaded = interchange.load(runs.export(recipe, run, layout, out)).eval()
    weights, control = loaded.state_dict(), method.backbone.state_dict()
    assert [key for key, value in control.items() if not torch.equal(weights[key], value)] == []
    if config.model.linear == "full":  # a low-bit layer rounds what the plain one that is read does not
        images = torch.rand(2, 3, *[config.data.image_size] * 2, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), method.eval().backbone(images))
