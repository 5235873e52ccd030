# SPDX-License-Identifier: Apache-2.0
import itertools
import json

import pytest
import torch
import yaml

from recipes_lib import recipes
from recipes_lib.claim import Arm
from recipes_lib.claims import cook as kitchen
from recipes_lib.claims.cook import cook, thinned
from recipes_lib.claims.fingerprint import compare, fingerprint
from recipes_lib.config import override
from recipes_lib.data import embedded
from recipes_lib.errors import RunError
from recipes_lib.training import checkpoint


def test_cooking_stores_a_small_run_folder_at_half_precision(fake, tmp_path):
    place = cook("fake", runs=tmp_path / "runs")
    assert place == fake.data / "cooked" / "fake"
    names = {path.name for path in place.iterdir()}
    assert names == {"config.yaml", "fingerprint.json", "metrics.jsonl", "model.safetensors", "report.json"}
    weights = checkpoint.read_weights(place / "model.safetensors")
    assert weights["a"].dtype == torch.float16
    assert weights["count"].dtype == torch.int64
    torch.testing.assert_close(weights["a"].float(), torch.linspace(-1, 1, 5), atol=1e-3, rtol=0)
    assert json.loads((place / "fingerprint.json").read_text()) == fingerprint(Arm(recipe="fake", preset="simmer"))
    assert yaml.safe_load((place / "config.yaml").read_text())["recipe"] == "fake"
    assert len((place / "metrics.jsonl").read_text().splitlines()) <= kitchen.CURVE_POINTS
    assert [path.name for path in place.parent.iterdir()] == ["fake"]  # nothing left aside


def test_a_recipe_that_analyses_is_stored_without_weights_and_metrics(fake, tmp_path):
    def analysed(config, out, run=fake.recipe.run):
        result = run(config, out)
        (out / "model.safetensors").unlink()
        return result

    fake.recipe.run = analysed
    place = cook("fake", runs=tmp_path / "runs")
    assert {path.name for path in place.iterdir()} == {"config.yaml", "fingerprint.json", "report.json"}


def test_a_finished_run_is_not_cooked_twice_but_is_when_the_numerics_moved(fake, tmp_path):
    lengths = []

    def counted(config, out, run=fake.recipe.run):
        lengths.append(config.train.steps)
        return run(config, out)

    fake.recipe.run = counted
    cook("fake", runs=tmp_path / "runs")
    cook("fake", runs=tmp_path / "runs")
    assert lengths == [3, 1000, 3]
    fake.recipe.run = lambda config, out: counted(override(config, {"optim.lr": 0.02}), out)
    cook("fake", runs=tmp_path / "runs")
    assert lengths == [3, 1000, 3, 3, 1000]


def test_what_was_cooked_before_stays_until_the_new_one_is_whole(fake, tmp_path, monkeypatch):
    place = cook("fake", runs=tmp_path / "runs")
    before = (place / "report.json").read_text()
    monkeypatch.setattr(kitchen, "MOST_BYTES", 10)
    with pytest.raises(RunError, match="a chapter may store 10"):
        cook("fake", runs=tmp_path / "runs")
    assert (place / "report.json").read_text() == before
    assert [path.name for path in place.parent.iterdir()] == ["fake"]


def test_an_installation_without_a_checkout_is_told_before_anything_runs(fake, monkeypatch, tmp_path):
    (fake.checkout / "pyproject.toml").unlink()
    with pytest.raises(RunError, match="There is no checkout to store into"):
        cook("fake", runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("length", [0, 1, 299, 300, 301, 6000])
def test_a_thinned_curve_is_evenly_spaced_and_ends_where_the_curve_does(length):
    lines = thinned("".join(f"{step}\n" for step in range(length))).splitlines()
    assert len(lines) <= 300
    assert len(lines) >= min(length, 150)
    steps = list(map(int, lines))
    assert not steps or steps[-1] == length - 1
    assert len({b - a for a, b in itertools.pairwise(steps)}) <= 1


@pytest.mark.parametrize("name", recipes.MENU)
def test_what_a_chapter_cooked_earlier_is_what_this_code_cooks(name):
    place = embedded.path("") / "cooked" / name
    if not place.is_dir():
        pytest.skip(f"not cooked yet: recipes cook {name}")
    moved = compare(
        json.loads((place / "fingerprint.json").read_text()), fingerprint(Arm(recipe=name, preset=kitchen.PRESET))
    )
    assert not moved, f"{'; '.join(moved)}. Cook again: recipes cook {name}"
