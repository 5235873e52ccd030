# SPDX-License-Identifier: Apache-2.0
import math
import shlex
import shutil

import pytest

from recipes_lib.cli import flags
from recipes_lib.config import override
from recipes_lib.errors import ConfigError, Interrupted
from recipes_lib.pretraining import runs
from recipes_lib.pretraining.recipe import Recipe
from recipes_lib.recipes.evaluation import recipe as evaluation
from recipes_lib.recipes.evaluation.claims import ACROSS, CHAPTER
from recipes_lib.recipes.evaluation.ranking import ACCURACIES, LABEL_FREE
from recipes_lib.recipes.families import recipe as families
from recipes_lib.training.folder import RunFolder

TINY = override(evaluation.PRESETS["toy"], {"data.train_size": 160, "data.test_size": 130, "train.steps": 2})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return evaluation.RECIPE.run(TINY, tmp_path_factory.mktemp("evaluation") / "run")


def test_a_run_has_a_folder_for_each_network_and_reports_every_metric_of_it(finished):
    for name in ("simclr", "vicreg"):
        assert RunFolder.open(finished.folder / name).state() == {"status": "done", "step": 2}
    report = finished.report
    assert (report["recipe"], report["steps"], report["seed"]) == ("evaluation", 2, 0)
    assert set(report["label_free"]) == set(LABEL_FREE)
    assert set(report["scores"]) == {"knn", *ACCURACIES}
    for found in (*report["scores"].values(), *report["label_free"].values()):
        assert list(found) == ["method", "vicreg", "random_init"]
        assert all(math.isfinite(value) for value in found.values())


def test_a_run_prints_a_line_for_each_network_when_all_are_there(finished, capsys, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    (tmp_path / "run" / "state.json").write_text('{"status": "interrupted", "step": 0}')
    (tmp_path / "run" / "report.json").unlink()
    again = evaluation.RECIPE.run(TINY, tmp_path / "run").report
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["simclr", "vicreg", "untrained"]
    assert again["scores"] == finished.report["scores"]
    assert again["label_free"] == finished.report["label_free"]


def test_a_stopped_run_says_how_to_go_on_and_does_not_repeat_a_finished_network(tmp_path, monkeypatch):
    trained, train = [], Recipe.run

    def stop_at_the_second(recipe, config, out):
        trained.append(out.name)
        if len(trained) == 2:
            raise Interrupted("Stopped in a folder that nobody knows.")
        return train(recipe, config, out)

    path = tmp_path / "run"
    monkeypatch.setattr(Recipe, "run", stop_at_the_second)
    with pytest.raises(Interrupted, match=rf"finished networks are kept\. Go on: recipes resume {path}$"):
        evaluation.RECIPE.run(TINY, path)
    assert RunFolder.open(path).state()["status"] == "interrupted"
    runs.resume(evaluation.RECIPE, path)
    assert trained == ["simclr", "vicreg", "vicreg"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data.train_size": 100}, "data.train_size = 100"),
        ({"data.test_size": 100}, "data.test_size = 100"),
        ({"train.steps": 0}, "train.steps = 0"),
        ({"train.methods": ["simclr", "simclr"]}, "none of them twice"),
        ({"train.methods": []}, "at least one method"),
    ],
)
def test_a_config_with_a_fault_is_refused_before_there_is_a_folder(changes, text, tmp_path):
    with pytest.raises(ConfigError, match=text):
        evaluation.RECIPE.run(override(TINY, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_any_method_of_the_zoo_can_be_compared():
    override(TINY, {"train.methods": list(ACROSS)}).validate()
    with pytest.raises(ConfigError):
        override(TINY, {"train.methods": ["mae"]})


def test_a_fingerprint_is_the_same_twice_and_another_seed_has_another():
    one = override(TINY, {"train.methods": ["simclr"]})
    first = evaluation.fingerprint(one)
    assert set(first) == {"loss_simclr", "knn_simclr", "loss_untrained", "knn_untrained"}
    assert first == evaluation.fingerprint(one)
    assert first != evaluation.fingerprint(override(one, {"train.seed": 1}))


def test_every_full_scale_command_is_one_that_can_start():
    for claim in CHAPTER.claims:
        for command in filter(None, (claim.full_scale, claim.full_scale_control)):
            words = shlex.split(command)
            name, *given = words[words.index("run") + 1 :]
            own, rest = flags.split(given)
            assert name == "families"
            flags.parse(families.PRESETS[own["preset"]], rest, prog="recipes run", about="").validate()
