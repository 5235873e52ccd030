# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes_lib.config import override
from recipes_lib.distributed.local import run_ranks
from recipes_lib.distributed.world import World
from recipes_lib.errors import ConfigError, DataError
from recipes_lib.evaluation import hypersphere, spectrum
from recipes_lib.evaluation.knn import weighted_knn
from recipes_lib.pretraining import engine, monitor, runs
from recipes_lib.recipes import named
from recipes_lib.recipes.families import recipe as families
from recipes_lib.views.multicrop import eval_view

ALONE = World(0, 1, torch.device("cpu"))
WATCH = ("rankme", "std", "knn", "uniformity", "alpha_req")
CONFIG = override(
    families.PRESETS["vicreg_toy"],
    {
        "data.train_size": 120,
        "data.test_size": 24,
        "train.batch_size": 24,
        "train.steps": 7,
        "train.checkpoint_every": 3,
        "eval.probes": [],
        "eval.baselines": "none",
        "eval.neighbours": 5,
        "eval.watch": WATCH,
        "eval.watch_every": 3,
    },
)


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.RECIPE.run(CONFIG, tmp_path_factory.mktemp("watched") / "run").folder


def test_the_first_the_last_and_every_third_step_are_watched(run):
    watched = [line["step"] for line in lines(run) if "watch_knn" in line]
    assert watched == [0, 2, 5, 6]
    names = {name for name in lines(run)[0] if name.startswith("watch_")}
    of_both = {f"watch_{name}{part}" for name in WATCH if name != "knn" for part in ("", "_embedding")}
    assert names == of_both | {"watch_knn"}


def test_the_last_numbers_are_those_of_the_trained_weights(run):
    config, method = engine.reopen(families.RECIPE, run)
    splits = families.RECIPE.load(config, pytest.fail)
    found = monitor.of(config, splits, method, ALONE)(method.eval())
    last = lines(run)[-1]
    assert {name: pytest.approx(value) for name, value in found.items()} == {
        name: value for name, value in last.items() if name.startswith("watch_")
    }
    with torch.no_grad():
        features = method.backbone(eval_view(splits.train.images, 32, config.views.normalize))
        embeddings = method.embed(features)
    assert found["watch_rankme"] == pytest.approx(spectrum.rankme(features), rel=1e-4)
    assert found["watch_std_embedding"] == pytest.approx(hypersphere.normalized_std(embeddings), rel=1e-4)
    asked, labels = torch.arange(120) % 4 == 0, splits.train.labels
    by_hand = weighted_knn(features[~asked], labels[~asked], features[asked], labels[asked], k=5)
    assert found["watch_knn"] == pytest.approx(by_hand)


def test_watching_changes_no_bit_of_the_run(run, tmp_path):
    alone = families.RECIPE.run(override(CONFIG, {"eval.watch": ()}), tmp_path / "run").folder
    assert (alone / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    kept = [{name: value for name, value in line.items() if "watch" not in name} for line in lines(run)]
    assert kept == lines(alone)


def test_a_resumed_run_writes_the_same_rows(run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    for step in (6, 7):
        shutil.rmtree(folder / "checkpoints" / f"step-{step:06d}", ignore_errors=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    (folder / "model.safetensors").unlink()
    (folder / "report.json").unlink()
    (folder / "state.json").write_text('{"status": "interrupted", "step": 0}\n')
    runs.resume(families.RECIPE, folder)
    assert (folder / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_the_modes_the_statistics_and_the_random_state_stay_as_they_were():
    method = engine.build(families.RECIPE, CONFIG, 7).train()
    method.encoder.projector.eval()  # a part that is frozen
    splits = families.RECIPE.load(CONFIG, pytest.fail)
    watching = monitor.of(CONFIG, splits, method, ALONE)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    modes, state = [part.training for part in method.modules()], torch.get_rng_state()
    assert watching(method) == watching(method)
    assert [part.training for part in method.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_a_collapsed_network_has_no_spread_and_no_spectrum():
    method = engine.build(families.RECIPE, CONFIG, 7)
    for parameter in method.parameters():
        parameter.data.zero_()
    splits = families.RECIPE.load(CONFIG, pytest.fail)
    found = monitor.of(CONFIG, splits, method, ALONE)(method)
    assert found["watch_std"] == found["watch_std_embedding"] == 0
    assert np.isnan(found["watch_rankme"])
    method.encoder.backbone.layers[0][0].weight.data.fill_(float("nan"))
    assert np.isnan(monitor.of(CONFIG, splits, method, ALONE)(method)["watch_std"])


def test_fsdp_on_several_processes_is_refused_in_a_line():
    method = engine.build(families.RECIPE, CONFIG, 7)
    splits = families.RECIPE.load(CONFIG, pytest.fail)
    config = override(CONFIG, {"sync.name": "fsdp"})
    assert monitor.of(config, splits, method, ALONE) is not None
    with pytest.raises(ConfigError, match=r"^eval\.watch = .* needs whole weights, .* fsdp gives each of 2 [^\n]*$"):
        monitor.of(config, splits, method, replace(ALONE, size=2))


def test_neighbours_that_are_lacking_are_told_before_training():
    method = engine.build(families.RECIPE, CONFIG, 7)
    splits = families.RECIPE.load(CONFIG, pytest.fail)
    few = replace(splits, train=replace(splits.train, labels=None))
    with pytest.raises(DataError, match=r"eval\.neighbours = 5 labelled training images, and there are 0 to compare"):
        monitor.of(CONFIG, few, method, ALONE)
    assert monitor.of(override(CONFIG, {"eval.watch": ("std",)}), few, method, ALONE) is not None
    labels = torch.where(torch.arange(120) < 60, splits.train.labels, -1)
    half = monitor.of(CONFIG, replace(splits, train=replace(splits.train, labels=labels)), method, ALONE)
    assert (len(half.images), len(half.labelled)) == (120, 60)
    assert 0 <= half(method)["watch_knn"] <= 1


def test_image_files_are_read_once(tmp_path, monkeypatch):
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (36, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02d}.png")
    changes = {"data.name": "imagenet", "data.root": tmp_path, "eval.watch": ("std",)}
    config = override(CONFIG, changes)
    splits = families.RECIPE.load(config, lambda line: None)
    method = engine.build(families.RECIPE, config, 7)
    watching = monitor.of(config, splits, method, ALONE)
    monkeypatch.setattr(type(splits.train), "open", lambda *_: pytest.fail("read again"))
    assert watching(method)["watch_std"] > 0


def test_an_interval_below_1_is_refused():
    with pytest.raises(ConfigError, match=r"eval\.watch_every = 0 is not allowed: use a value of at least 1"):
        override(CONFIG, {"eval.watch_every": 0}).validate()


def test_simulated_workers_are_watched_as_their_mean(tmp_path):
    recipe = named("local_sgd")
    short = {"train.steps": 5, "data.train_size": 120, "data.test_size": 20, "train.batch_size": 24, "eval.probes": []}
    watch = {"eval.watch": ("std", "knn"), "eval.watch_every": 2, "eval.neighbours": 5, "eval.baselines": "none"}
    config = override(recipe.presets["toy"], short)
    plain = recipe.run(config, tmp_path / "plain").folder
    run = recipe.run(override(config, watch), tmp_path / "watched").folder
    assert [line["step"] for line in lines(run) if "watch_knn" in line] == [0, 1, 3, 4]
    assert (plain / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def two_ranks(folder: str) -> int:
    families.RECIPE.run(CONFIG, Path(folder, "run"))
    return 0


@pytest.mark.distributed
def test_two_processes_write_what_one_writes(run, tmp_path):
    run_ranks(two_ranks, 2, str(tmp_path), max_seconds=120.0)
    ours, alone = lines(tmp_path / "run"), lines(run)
    for two, one in zip(ours, alone, strict=True):
        watched = {name: value for name, value in one.items() if "watch" in name}
        assert {name: two.get(name) for name in watched} == pytest.approx(watched, rel=0.1)  # rounding, after 7 steps
