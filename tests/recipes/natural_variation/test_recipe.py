# SPDX-License-Identifier: Apache-2.0
import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from recipes_lib.config import override
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError, DataError, Interrupted
from recipes_lib.pretraining import runs
from recipes_lib.recipes.natural_variation import measure, recipe

SMALL = {
    "models": ["pixels"],
    "learn.regime": "probe",
    "data.name": "pantry_twins",
    "data.image_size": 16,
    "data.train_instances": 4,
    "data.test_instances": 3,
    "data.values": 2,
    "diversity.shares": [0.5, 1.0],
    "transfer.draws": 2,
    "transfer.twins": True,
    "transfer.names": "ngrams",
    "report.pairs": True,
    "report.resamples": 100,
}


def config(**changes) -> recipe.Config:
    return override(
        recipe.PRESETS["toy"], {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}}
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run of one process."""
    return recipe.RECIPE.run(config(), tmp_path_factory.mktemp("whole") / "run").folder


def _facts(folder: Path) -> dict:
    report = json.loads((folder / "report.json").read_text())
    return {key: report[key] for key in ("models", "diversity", "transfer", "twins", "source", "notes")}


def test_a_report_has_gaps_of_factors_and_pairs_and_all_other_parts(whole):
    found = _facts(whole)
    row = found["models"]["pixels"]
    assert len(row["gaps"]) == 15
    assert len(row["interactions"]) == 10
    assert sorted(row["ranking"]) == sorted(recipe.FACTORS)
    assert found["source"] == {"name": "pantry_twins", "classes": 12, "train_instances": 48, "test_instances": 36}
    assert list(found["diversity"]["pixels"]["pose"]) == ["0", "50", "100"]
    transfer, twins = found["transfer"]["pixels"]["pose"], found["twins"]["pixels"]["pose"]
    assert len(transfer["draws"]) == len(twins["draws"]) == 2
    assert set(transfer["similarity"]) == {"features", "names"}
    assert found["diversity"]["pixels"]["pose"]["100"]["still_instances"] is None


def test_metrics_are_those_of_the_stored_answers(whole):
    """Computed again from files alone, without the code that collects them."""
    source = recipe.open_source(config().data)
    row = _facts(whole)["models"]["pixels"]
    for varied in ((), ("pose",), ("pose", "size")):
        files = sorted((whole / "answers").glob(f"test-{'+'.join(varied) or 'canonical'}-*.npz"))
        answers = np.concatenate([np.load(file)["0-canonical"] for file in files])
        accuracy = (answers == source.shots("test", varied).labels.numpy()).mean()  # classes have equal sizes
        told = row["gaps"]["+".join(varied)]["accuracy"] if varied else row["canonical"]
        assert told == pytest.approx(accuracy)


def test_a_page_tables_and_figures_are_written(whole):
    page = (whole / "index.html").read_text()
    assert page.count("<img") == 4
    assert "<script" not in page
    for name in ("images", "gaps", "diversity", "transfer"):
        assert (whole / "plots" / f"{name}.png").stat().st_size > 1000
    rows = {
        name: list(csv.DictReader((whole / f"{name}.csv").open()))
        for name in ("models", "gaps", "interactions", "diversity", "transfer", "twins")
    }
    assert [len(rows[name]) for name in ("models", "gaps", "interactions", "diversity", "transfer", "twins")] == [
        1,
        15,
        10,
        3,
        2,
        2,
    ]
    assert float(rows["gaps"][0]["gap"]) == pytest.approx(_facts(whole)["models"]["pixels"]["gaps"]["pose"]["gap"])


def test_a_stopped_run_goes_on_after_its_last_unit(whole, tmp_path, monkeypatch):
    save = np.savez

    def save_then_ask(file, **arrays):
        save(file, **arrays)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(measure.np, "savez", save_then_ask)
    with pytest.raises(Interrupted, match=r"complete parts are kept\. Go on: recipes resume"):
        recipe.RECIPE.run(config(), tmp_path / "run")
    monkeypatch.undo()
    (first,) = (tmp_path / "run" / "features").iterdir()
    before = first.stat().st_mtime_ns
    assert _facts(runs.resume(recipe.RECIPE, tmp_path / "run").folder) == _facts(whole)
    assert first.stat().st_mtime_ns == before


def _run(folder: str, regime: str) -> list[float]:
    changes = {"models": ["convnet"], "learn__steps": 2, "report__pairs": False} if regime == "finetune" else {}
    found = recipe.RECIPE.run(config(learn__regime=regime, **changes), Path(folder)).report["models"]
    return [cell["gap"] for row in found.values() for cell in row["gaps"].values()]


@pytest.mark.distributed
@pytest.mark.parametrize("regime", ["probe", "finetune"])
def test_two_ranks_give_the_report_of_one(tmp_path, regime):
    one = _run(str(tmp_path / "one"), regime)
    assert run_ranks(_run, 2, str(tmp_path / "two"), regime) == [one, one]
    assert _facts(tmp_path / "two") == _facts(tmp_path / "one")


def test_a_chance_level_model_gets_a_note(tmp_path):
    changes = {"transfer__draws": 0, "transfer__twins": False, "report__pairs": False}
    changes |= {"models": ["convnet"], "learn__regime": "finetune", "learn__steps": 1, "diversity__factors": []}
    found = recipe.RECIPE.run(config(**changes), tmp_path / "run").report
    assert any("is near chance (0.083), so its gaps say little: train longer" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": []}, "models is empty"),
        ({"models": ["pixels", "pixels"]}, "models has pixels twice"),
        ({"models": ["resnet50"]}, "models has resnet50, which is no run folder"),
        ({"learn.regime": "finetune"}, "pixels, which has nothing to fine-tune"),
        ({"diversity.factors": ["poze"]}, "diversity.factors has poze: there are pose, position"),
        ({"transfer.factors": ["pose", "pose"]}, "transfer.factors names a factor twice"),
        ({"diversity.shares": [0.05]}, r"diversity.shares has 0.05, of 4 instances 0: .* above 0.125"),
        ({"transfer.classes": 1.0}, r"transfer.classes = 1.0 is not allowed: use a value in \(0, 1\)"),
        ({"transfer.twins": True, "data.name": "pantry"}, "have no known near twins"),
        ({"data.name": "folder"}, "data.root is missing: data.name folder needs it"),
        ({"data.root": "here"}, "data.root = here has no use with data.name = pantry_twins"),
        ({"data.pairs": 31}, "data.pairs = 31 is not allowed: use a value of 1 to 30"),
        ({"report.level": 1.0}, "report.level = 1.0 is not allowed"),
        ({"learn.lr": 0.0}, "learn.lr = 0.0 is not allowed: use a value above 0"),
    ],
)
def test_bad_input_is_named(changes, said):
    with pytest.raises(ConfigError, match=said):
        override(recipe.PRESETS["toy"], {**SMALL, **changes}).validate()


@pytest.mark.parametrize("name", recipe.PRESETS)
def test_every_preset_is_valid(name):
    recipe.PRESETS[name].validate()


def test_objects_without_their_package_are_told_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(recipe.objects3d, "missing", lambda: "pybullet is not installed")
    with pytest.raises(DataError, match=r"data.name = objects: pybullet is not installed"):
        recipe.RECIPE.run(config(data__name="objects"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_seven_million_are_seven_million():
    full = recipe.PRESETS["seven_million"]
    instances = 2 * full.data.pairs * full.data.test_instances
    images = instances * (1 + 15 * full.data.values) + instances * (1 + 5 * full.data.values)
    assert images > 7_000_000
