# SPDX-License-Identifier: Apache-2.0
"""The job of the chapter: what a run leaves behind, how it goes on, and what its config refuses."""

import json
import math
import shlex

import pytest

from recipes_lib.cli import flags
from recipes_lib.config import override
from recipes_lib.errors import ConfigError, Interrupted
from recipes_lib.pretraining import engine, runs
from recipes_lib.pretraining.recipe import Recipe
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.troubleshooting import recipe as trouble
from recipes_lib.recipes.troubleshooting.claims import CHAPTER
from recipes_lib.training.folder import RunFolder

TINY = override(
    trouble.PRESETS["toy"],
    {"train.steps": 2, "train.pathologies": ["no_negatives"], "data.train_size": 128, "data.test_size": 64},
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> engine.Result:
    return trouble.RECIPE.run(trouble.PRESETS["toy"], tmp_path_factory.mktemp("trouble") / "run")


def test_the_toy_finds_each_collapse_and_nothing_in_the_healthy_runs(toy):
    report = toy.report
    assert report["scores"] == {"found": {"broken": 1.0, "healthy": 0.0}}
    assert list(report["diagnostics"]) == ["no_negatives", "no_variance", "no_stop_gradient"]
    assert (report["recipe"], report["steps"], report["seed"]) == ("troubleshooting", 150, 0)
    assert RunFolder.open(toy.folder).state() == {"status": "done", "step": 150}
    assert (toy.folder / "no_negatives-broken" / "model.safetensors").is_file()


def test_every_metric_of_the_claims_on_collapses_is_in_the_report(toy):
    of_toy = [
        claim for claim in CHAPTER.claims if claim.name in ("full_collapse", "dimensional_collapse", "lying_loss")
    ]
    assert len(of_toy) == 3
    for claim in of_toy:
        for metric in (claim.ours, claim.control):
            assert math.isfinite(metric.read(toy.report))


def test_a_stopped_run_says_how_to_go_on_and_does_not_repeat_a_finished_network(tmp_path, monkeypatch, capsys):
    trained, train = [], Recipe.run

    def stop_at_the_second(recipe, config, out):
        trained.append(out.name)
        if len(trained) == 2:
            raise Interrupted("Stopped in a folder that nobody knows.")
        return train(recipe, config, out)

    path = tmp_path / "run"
    monkeypatch.setattr(Recipe, "run", stop_at_the_second)
    with pytest.raises(Interrupted, match=rf"finished ones are kept\. Go on: recipes resume {path}$"):
        trouble.RECIPE.run(TINY, path)
    assert RunFolder.open(path).state()["status"] == "interrupted"
    report = runs.resume(trouble.RECIPE, path).report
    assert trained == ["no_negatives-broken", "no_negatives-healthy", "no_negatives-healthy"]
    assert set(report["diagnostics"]["no_negatives"]) == {"broken", "healthy"}
    assert "no_negatives, broken run: healthy" in capsys.readouterr().err  # two steps cannot tell


def test_a_fingerprint_is_the_same_twice_and_another_seed_has_another():
    found = trouble.RECIPE.fingerprint(TINY)
    assert set(found) == {"losses_no_negatives", "losses_no_variance", "losses_no_stop_gradient"}
    assert trouble.RECIPE.fingerprint(TINY) == found == json.loads(json.dumps(found))
    assert trouble.RECIPE.fingerprint(override(TINY, {"train.seed": 5})) != found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.train_size", 63),
        ("data.test_size", 1),
        ("train.steps", 0),
        ("train.seed", -1),
        ("train.pathologies", ("flu",)),
        ("train.pathologies", ()),
    ],
)
def test_a_value_out_of_range_is_named(field, value, tmp_path):
    with pytest.raises(ConfigError, match=rf"^{field} = .* is not allowed"):
        trouble.RECIPE.run(override(trouble.PRESETS["toy"], {field: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_full_scale_command_is_one_that_can_start():
    for claim in CHAPTER.claims:
        for command in filter(None, (claim.full_scale, claim.full_scale_control)):
            words = shlex.split(command)
            if words[:2] == ["recipes", "doctor"]:
                continue
            name, *given = words[words.index("run") + 1 :]
            own, rest = flags.split(given)
            presets = {"families": families.PRESETS, "troubleshooting": trouble.PRESETS}[name]
            flags.parse(presets[own["preset"]], rest, prog="recipes run", about="").validate()
