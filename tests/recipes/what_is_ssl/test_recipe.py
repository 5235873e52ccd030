# SPDX-License-Identifier: Apache-2.0
"""The opening chapter's comparison: what a run leaves behind, how it goes on, and what its config refuses."""

import json
import math
import shutil

import pytest

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.errors import ConfigError, Interrupted
from recipes_lib.pretraining import engine, runs
from recipes_lib.pretraining.recipe import Recipe
from recipes_lib.recipes.what_is_ssl import recipe as opening
from recipes_lib.recipes.what_is_ssl import study
from recipes_lib.training.folder import RunFolder

TINY = override(opening.PRESETS["toy"], {"data.train_size": 128, "data.test_size": 24, "train.steps": 2})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> engine.Result:
    return opening.RECIPE.run(TINY, tmp_path_factory.mktemp("opening") / "run")


def test_a_run_has_a_folder_for_each_network_and_reports_their_numbers(finished):
    for name in study.NETWORKS:
        assert RunFolder.open(finished.folder / name).state() == {"status": "done", "step": 2}
    assert RunFolder.open(finished.folder).state() == {"status": "done", "step": 2}
    report = finished.report
    assert (report["recipe"], report["steps"], report["seed"]) == ("what_is_ssl", 2, 0)
    assert set(report["scores"]["knn"]) == {"method", "random_init", "raw_pixels", "supervised"}
    assert set(report["diagnostics"]) == set(study.NETWORKS)
    assert all(set(told) == {"knn", "agreement", "spread", "loss"} for told in report["diagnostics"].values())
    assert report["diagnostics"]["simclr"]["knn"] == report["scores"]["knn"]["method"]


def test_a_run_prints_a_line_for_each_network(finished, capsys, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    (tmp_path / "run" / "state.json").write_text('{"status": "interrupted", "step": 0}')
    (tmp_path / "run" / "report.json").unlink()
    opening.RECIPE.run(TINY, tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == list(study.NETWORKS)
    spread = finished.report["diagnostics"]["simclr"]["spread"]
    assert f"spread {spread:.3f}, loss" in lines[0]


def test_every_metric_of_the_claims_is_in_the_report(finished):
    for claim in recipes.chapter("what_is_ssl").claims:
        for metric in (claim.ours, claim.control):
            assert math.isfinite(metric.read(finished.report))


def test_a_stopped_run_says_how_to_go_on_and_does_not_repeat_a_finished_network(finished, tmp_path, monkeypatch):
    trained, train = [], Recipe.run

    def stop_at_the_second(recipe, config, out):
        trained.append(out.name)
        if len(trained) == 2:
            raise Interrupted("Stopped in a folder that nobody knows.")
        return train(recipe, config, out)

    path = tmp_path / "run"
    monkeypatch.setattr(Recipe, "run", stop_at_the_second)
    with pytest.raises(Interrupted, match=rf"finished networks are kept\. Go on: recipes resume {path}$"):
        opening.RECIPE.run(TINY, path)
    assert RunFolder.open(path).state()["status"] == "interrupted"
    report = runs.resume(opening.RECIPE, path).report
    assert trained == ["simclr", "agreement", "agreement", "easy_views"]
    for key in ("scores", "diagnostics"):
        assert report[key] == finished.report[key]


def test_a_fingerprint_is_the_losses_of_three_steps_of_each_network():
    found = opening.RECIPE.fingerprint(TINY)
    assert set(found) == {"losses_simclr", "losses_agreement", "losses_easy_views", "knn"}
    assert all(len(values) == 3 for name, values in found.items() if name != "knn")
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("field", "value"),
    [("data.train_size", 127), ("data.test_size", 1), ("train.steps", 0), ("train.seed", -1), ("train.seed", 2**63)],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ConfigError, match=rf"^{field} = {value} is not allowed"):
        override(opening.PRESETS["toy"], {field: value}).validate()
