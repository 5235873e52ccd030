# SPDX-License-Identifier: Apache-2.0
"""Scoring of a tiny ImageNet folder by real loading code: networks of timm and torchvision, a run folder, and a kill."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from recipes_lib import cli
from recipes_lib.config import override
from recipes_lib.errors import ConfigError, DataError, Interrupted, RunError
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.imagenet_x import networks, score
from recipes_lib.recipes.imagenet_x import recipe as imagenet_x
from recipes_lib.recipes.msn import recipe as msn
from recipes_lib.training import folder

CLASSES = ("n01440764", "n01443537", "n01484850")
NAME = "test_vit"  # timm's own for tests: 160 px, 0.4 M weights
BASE = override(imagenet_x.PRESETS["score"], {"score.batch_size": 2, "score.device": "cpu"})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Three classes, two validation and two training images each, of one colour a class."""
    place, number = tmp_path_factory.mktemp("imagenet"), 0
    for split in ("val", "train"):
        for colour, name in enumerate(CLASSES):
            (place / split / name).mkdir(parents=True)
            for _ in range(2):
                number += 1
                pixels = np.random.default_rng(number).integers(0, 60, (70, 80, 3), dtype=np.uint8)
                pixels[..., colour] += 190
                Image.fromarray(pixels).save(place / split / name / f"ILSVRC2012_{split}_{number:08d}.JPEG")
    return place


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(NAME, num_classes=3)
        torch.nn.init.normal_(network.head.weight)
        save_file(network.state_dict(), path)
    return path


def config(root: Path, **changes):
    return override(BASE, {"model": f"timm:{NAME}", "data.root": root, **changes})


def table(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()[1:]]


def test_predictions_are_those_of_the_network_on_each_image_by_itself(root, weights, tmp_path):
    run = imagenet_x.RECIPE.run(config(root, **{"score.weights": weights}), tmp_path / "run")
    network = timm.create_model(NAME, num_classes=3).eval()
    network.load_state_dict(networks.checkpoint.read_weights(weights))
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    rows = table(run.folder / f"timm-{NAME}.csv")
    files = sorted((root / "val").rglob("*.JPEG"))
    assert [row[0] for row in rows] == [path.name for path in files]
    for row, path in zip(rows, files, strict=True):
        with torch.no_grad():
            chances = network(prepare(Image.open(path).convert("RGB"))[None]).softmax(dim=1)[0]
        assert int(row[1]) == int(chances.argmax())
        assert float(row[2]) == pytest.approx(float(chances.max()), abs=1e-5)
    right = np.mean([int(row[1]) == CLASSES.index(path.parent.name) for row, path in zip(rows, files, strict=True)])
    assert run.report["scores"] == {"top1": {"method": right}}
    assert (run.report["steps"], run.report["predictions"]) == (3, f"timm-{NAME}.csv")


def test_the_command_line_scores_and_says_what_it_did(root, weights, tmp_path, capsys):
    given = ["--model", f"timm:{NAME}", "--data.root", str(root), "--score.weights", str(weights)]
    assert cli.main(["run", "imagenet_x", "--preset", "score", *given, "--out", str(tmp_path / "run")]) == 0
    assert "top1" in capsys.readouterr().out


def _dies_while_it_keeps_its_third_batch(given, folder: Path) -> None:
    save, calls = np.savez, []

    def save_or_die(file, **arrays):
        calls.append(file)
        if len(calls) == 3:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(file, **arrays)

    score.np.savez = save_or_die
    torch.set_num_threads(1)
    imagenet_x.RECIPE.run(given, folder)


def test_killed_the_same_command_goes_on_after_the_last_finished_batch(root, weights, tmp_path):
    given = config(root, **{"score.weights": weights})
    process = multiprocessing.get_context("fork").Process(
        target=_dies_while_it_keeps_its_third_batch, args=(given, tmp_path / "run")
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "run" / "batches").glob("*.npz")) == ["000000.npz", "000001.npz"]
    before = (tmp_path / "run" / "batches" / "000000.npz").stat().st_mtime_ns
    resumed = runs.resume(imagenet_x.RECIPE, tmp_path / "run")
    whole = imagenet_x.RECIPE.run(given, tmp_path / "whole")
    name = f"timm-{NAME}.csv"
    assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert (tmp_path / "run" / "batches" / "000000.npz").stat().st_mtime_ns == before
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_a_signal_ends_between_batches_and_says_how_to_go_on(root, weights, tmp_path, monkeypatch):
    save = np.savez

    def save_then_ask(file, **arrays):
        save(file, **arrays)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(score.np, "savez", save_then_ask)
    with pytest.raises(Interrupted, match=rf"complete batches are kept\. Go on: recipes resume {tmp_path / 'run'}$"):
        imagenet_x.RECIPE.run(config(root, **{"score.weights": weights}), tmp_path / "run")
    assert len(list((tmp_path / "run" / "batches").iterdir())) == 1
    monkeypatch.undo()
    assert runs.resume(imagenet_x.RECIPE, tmp_path / "run").report["images"] == 6


def test_torchvisions_networks_are_scored_with_their_own_preprocessing(root, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "net.safetensors")
    given = config(root, **{"model": "torchvision:squeezenet1_1", "score.weights": tmp_path / "net.safetensors"})
    run = imagenet_x.RECIPE.run(given, tmp_path / "run")
    assert len(table(run.folder / "torchvision-squeezenet1_1.csv")) == 6


def test_a_run_folder_is_scored_by_its_nearest_training_images(root, tmp_path):
    short = {"data.train_size": 64, "data.test_size": 8, "train.batch_size": 32, "train.steps": 1, "eval.probes": []}
    trained = engine.pretrain(msn.RECIPE, override(msn.PRESETS["toy"], short), tmp_path / "msn").folder
    given = config(root, model=str(trained))
    run = imagenet_x.RECIPE.run(given, tmp_path / "run")
    name = run.report["predictions"]
    assert len(table(run.folder / name)) == 6
    assert run.report["scores"]["top1"]["method"] >= 2 / 3  # one colour a class is read by any network
    bank = (run.folder / "neighbours.safetensors").stat().st_mtime_ns
    state = {"status": "running", "step": 0}  # as if it had been killed just before its end
    (run.folder / "state.json").write_text(json.dumps(state))
    (run.folder / "batches" / "000001.npz").unlink()
    before = (run.folder / name).read_bytes()
    assert (runs.resume(imagenet_x.RECIPE, run.folder).folder / name).read_bytes() == before
    assert (run.folder / "neighbours.safetensors").stat().st_mtime_ns == bank


def test_a_process_whose_companion_ended_says_so_in_a_line(root, weights, tmp_path, monkeypatch):
    def barrier() -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(folder, "barrier", barrier)
    words = rf"Another process ended before its share was done.*Go on: recipes resume {tmp_path / 'run'}$"
    with pytest.raises(RunError, match=words):
        imagenet_x.RECIPE.run(config(root, **{"score.weights": weights}), tmp_path / "run")
    monkeypatch.undo()
    assert runs.resume(imagenet_x.RECIPE, tmp_path / "run").report["images"] == 6


# what cannot be scored


def fails(given, folder: Path, kind: type, words: str) -> None:
    with pytest.raises(kind, match=words) as error:
        imagenet_x.RECIPE.run(given, folder)
    assert "\n" not in str(error.value)
    assert not folder.exists()


def test_unknown_networks_are_named_with_the_nearest(root, tmp_path):
    for library, name, guess in (("timm", "restnet50", "resnet50"), ("torchvision", "resnet51", "resnet50")):
        words = f"model = {library}:{name}: {library} has no network '{name}'. Did you mean .*{guess}"
        fails(config(root, model=f"{library}:{name}"), tmp_path / "run", ConfigError, words)


def test_absent_weights_are_named(root, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network\nand a long story")

    monkeypatch.setattr(networks.timm, "create_model", offline)
    words = r"timm:test_vit: its weights are not on this machine .*\(OSError: no network\).*--score\.weights FILE"
    fails(config(root), tmp_path / "run", RunError, words)
    monkeypatch.undo()
    fails(
        config(root, **{"score.weights": "no.safetensors"}),
        tmp_path / "run",
        RunError,
        "no weights file no.safetensors",
    )


def test_weights_of_another_network_are_refused(root, tmp_path):
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    given = config(root, **{"score.weights": tmp_path / "other.safetensors"})
    fails(given, tmp_path / "run", RunError, "keys of .*other.safetensors do not fit")


def test_another_number_of_classes_is_refused(root, tmp_path, monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(networks.timm, "create_model", lambda name, **_: create(name))
    words = r"gives values of shape \[1000\], but .*val has 3 class folders"
    fails(config(root), tmp_path / "run", DataError, words)


def test_a_folder_without_validation_images_is_refused(tmp_path):
    fails(config(tmp_path), tmp_path / "run", DataError, "has no folder val. Image files are expected as .*/val/CLASS")
    (tmp_path / "val" / "n0").mkdir(parents=True)
    fails(config(tmp_path), tmp_path / "run", DataError, "Found no valid file .*expected as")


def test_a_damaged_image_is_named_and_what_was_scored_before_is_kept(root, weights, tmp_path):
    place = tmp_path / "imagenet"
    for path in (root / "val").rglob("*.JPEG"):
        copy = place / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    last = sorted((place / "val").rglob("*.JPEG"))[-1]
    last.write_bytes(last.read_bytes()[:300])
    given = config(place, **{"score.weights": weights})
    with pytest.raises(DataError, match=rf"{last.name} cannot be read .*Mend it: a report needs") as error:
        imagenet_x.RECIPE.run(given, tmp_path / "run")
    assert "\n" not in str(error.value)
    last.write_bytes((root / last.relative_to(place)).read_bytes())
    assert runs.resume(imagenet_x.RECIPE, tmp_path / "run").report["images"] == 6
