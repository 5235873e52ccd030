# SPDX-License-Identifier: Apache-2.0
import json
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes_lib import claims, processes, recipes
from recipes_lib.claim import HOLDS, Arm, Measurement
from recipes_lib.claims import verify as trial
from recipes_lib.claims.fingerprint import compare, fingerprint, takers
from recipes_lib.claims.verify import arm_config, plan, verify
from recipes_lib.data import embedded
from recipes_lib.errors import ConfigError, Interrupted, RunError


def arm_of(lr: float) -> Arm:
    """A run of 20 steps of the fake recipe."""
    return Arm(recipe="fake", changes={"train.steps": 20, "optim.lr": lr})


@pytest.fixture
def inside(fake, monkeypatch):
    """Jobs run in this process, where the fake recipe is; a list of what ran."""
    ran = []

    def each(commands, at_once):
        for index, command in enumerate(commands):
            name, arm, seed, folder = command.words[-4:]
            ran.append((arm, int(seed)))
            yield index, trial._worker(name, arm, int(seed), Path(folder))

    monkeypatch.setattr(processes, "each", each)
    return ran


def test_every_arm_seed_and_measurement_is_run_and_stored_with_its_fingerprint(fake, inside, tmp_path):
    path = verify("fake", runs=tmp_path / "runs")
    assert sorted(inside) == [(arm, seed) for arm in ("cost", "full", "slow") for seed in (0, 1, 2)]
    assert path == fake.data / "claims" / "fake.json"
    kept = json.loads(path.read_text())
    assert kept["figures"]["full"]["2"]["scores"]["knn"]["method"] == pytest.approx(0.62)
    assert kept["figures"]["full"]["2"]["steps"] == 20
    assert kept["figures"]["cost"]["2"]["cost"] == {"whole": 3.0}
    assert kept["fingerprints"] == {name: fingerprint(arm) for name, arm in fake.chapter.arms.items()}
    assert kept["versions"] == {"torch": "0"}
    assert kept["seconds"] >= 12
    assert [item.name for item in path.parent.iterdir()] == ["fake.json"]


def test_verdicts_come_from_the_stored_metrics(fake, inside, tmp_path):
    verify("fake", runs=tmp_path / "runs")
    found = claims.stored("fake")["fake.lr"]
    assert found.outcome == HOLDS
    assert found.ours == pytest.approx((0.6, 0.61, 0.62))
    assert (found.seeds, found.seconds) == ((0, 1, 2), 12.0)


def test_before_verification_the_command_is_named(fake):
    with pytest.raises(RunError, match="Make it: recipes verify fake"):
        claims.stored("fake")


def test_finished_runs_are_reused_and_only_those_of_a_changed_arm_are_run_again(fake, inside, tmp_path):
    verify("fake", runs=tmp_path / "runs")
    inside.clear()
    seen = []
    verify("fake", runs=tmp_path / "runs", progress=lambda *what: seen.append(what))
    assert inside == []
    assert seen[-1] == (9, 9, "9 of 9 runs were there")
    fake.change(arms={**fake.chapter.arms, "slow": arm_of(0.003)})
    verify("fake", runs=tmp_path / "runs")
    assert sorted(inside) == [("slow", 0), ("slow", 1), ("slow", 2)]


def test_arms_that_are_named_run_alone_and_the_others_metrics_stay(fake, inside, tmp_path):
    before = json.loads(verify("fake", runs=tmp_path / "runs").read_text())
    inside.clear()
    after = json.loads(verify("fake", ["slow"], runs=tmp_path / "other").read_text())
    assert inside == [("slow", 0), ("slow", 1), ("slow", 2)]
    assert after["figures"]["full"] == before["figures"]["full"]
    assert after["figures"].keys() == before["figures"].keys()
    assert after["versions"] == before["versions"]


def test_metrics_that_the_code_no_longer_gives_are_not_kept_beside_new_ones(fake, inside, tmp_path):
    verify("fake", runs=tmp_path / "runs")
    fake.change(arms={**fake.chapter.arms, "full": arm_of(0.02)})
    before = (fake.data / "claims" / "fake.json").read_text()
    with pytest.raises(RunError, match="The stored metrics of full are missing or are not what the code gives"):
        verify("fake", ["slow"], runs=tmp_path / "runs")
    assert (fake.data / "claims" / "fake.json").read_text() == before


def test_the_first_verification_cannot_leave_arms_out(fake, inside, tmp_path):
    with pytest.raises(RunError, match="stored metrics of full, cost are missing"):
        verify("fake", ["slow"], runs=tmp_path / "runs")


def test_an_arm_that_the_chapter_lacks_is_named_with_the_nearest(fake, inside, tmp_path):
    with pytest.raises(ConfigError, match=r"Chapter fake has no arm 'slwo'\. Did you mean 'slow'\?"):
        verify("fake", ["slwo"], runs=tmp_path / "runs")


def test_a_claim_whose_arm_has_no_metrics_yet_is_one_sentence(fake, inside, tmp_path):
    path = verify("fake", runs=tmp_path / "runs")
    stored = json.loads(path.read_text())
    del stored["figures"]["slow"]
    path.write_text(json.dumps(stored))
    assert claims.measured("fake") == ({}, ["Claim fake.lr has no metrics of arm slow yet."])
    fake.change(
        arms={"full": fake.chapter.arms["full"]},
        measurements={**fake.chapter.measurements, "slow": Measurement("a:b", needs_data=True)},
    )
    with pytest.raises(
        RunError, match=r"no metrics of arm slow yet; it needs data that RECIPES_DATA names\. Make them"
    ):
        claims.stored("fake")


def test_moved_numerics_reuse_no_run(fake, inside, tmp_path):
    verify("fake", runs=tmp_path / "runs")
    inside.clear()
    run = fake.recipe.run

    def moved(config, out):
        result = run(config, out)
        text = (out / "metrics.jsonl").read_text().replace('"loss": 4', '"loss": 5')
        (out / "metrics.jsonl").write_text(text)
        return result

    fake.recipe.run = moved
    verify("fake", runs=tmp_path / "runs")
    assert {arm for arm, _ in inside} == {"full", "slow"}


def test_an_unfinished_run_is_not_taken_for_a_metric(fake, inside, tmp_path):
    verify("fake", runs=tmp_path / "runs")
    marks = {name: fingerprint(arm) for name, arm in fake.chapter.arms.items()}
    run = plan("fake", marks, tmp_path / "runs" / "verify-fake")[0]
    assert trial.report_of(run)
    (run.folder / "state.json").write_text(json.dumps({"status": "interrupted", "step": 5}))
    assert trial.report_of(run) is None


def program(monkeypatch, text):
    """Every job becomes this Python program, in a process of its own."""

    def command(name, run):
        words = (sys.executable, "-c", text, run.arm, str(run.folder))
        return processes.Command(words, run.folder.with_suffix(".log"))

    monkeypatch.setattr(trial, "_command", command)


def test_jobs_run_in_processes_of_one_thread_and_at_most_so_many_at_once(fake, monkeypatch, tmp_path):
    log = tmp_path / "log"
    program(
        monkeypatch,
        "import json, os, pathlib, sys\n"
        f"log = open({str(log)!r}, 'a'); log.write('start\\n'); log.flush()\n"
        "folder = pathlib.Path(sys.argv[2]); folder.mkdir(parents=True)\n"
        "report = {'seconds': 1.0, 'scores': {'threads': os.environ['OMP_NUM_THREADS']}}\n"
        "(folder / 'report.json').write_text(json.dumps(report)); log.write('end\\n')",
    )
    kept = json.loads(verify("fake", jobs=2, runs=tmp_path / "runs").read_text())
    assert {row["scores"]["threads"] for arm in kept["figures"].values() for row in arm.values()} == {"1"}
    running = [1 if line == "start" else -1 for line in log.read_text().splitlines()]
    assert len(running) == 18
    assert max(sum(running[: n + 1]) for n in range(18)) <= 2


def test_a_run_that_fails_is_named_with_its_last_line_and_its_log(fake, monkeypatch, tmp_path):
    program(monkeypatch, "import sys\nprint('working')\nsys.exit('recipes_lib.errors.DataError: no digits')")
    with pytest.raises(
        RunError, match=r"Arm full, seed 0 of fake failed: recipes_lib\.errors\.DataError: no digits"
    ) as told:
        verify("fake", jobs=1, runs=tmp_path / "runs")
    assert "full-seed0-" in str(told.value)
    assert not (fake.data / "claims").exists()
    assert len(list((tmp_path / "runs" / "verify-fake").glob("*.log"))) == 1  # no further run was started


def test_an_interrupted_run_stops_the_rest_and_says_how_to_go_on(fake, monkeypatch, tmp_path):
    program(monkeypatch, "import sys\nsys.exit(3)")
    with pytest.raises(Interrupted, match=r"Stopped with 0 of 9 runs done\. Go on: recipes verify fake"):
        verify("fake", jobs=1, runs=tmp_path / "runs")


def test_ctrl_c_waits_for_the_runs_in_flight_and_starts_no_other(fake, monkeypatch, tmp_path):
    log = tmp_path / "log"
    program(monkeypatch, f"import time\nopen({str(log)!r}, 'a').write('x')\ntime.sleep(0.5)\nraise SystemExit(3)")

    def press():
        while not log.exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(Interrupted):
        verify("fake", jobs=2, runs=tmp_path / "runs")
    assert len(log.read_text()) <= 2


def test_an_arm_on_data_that_is_not_here_is_left_out_and_what_was_stored_of_it_stays(fake, monkeypatch):
    fake.change(measurements={"cost": Measurement("a:b", needs_data=True)})
    monkeypatch.setenv("RECIPES_DATA", "somewhere")
    assert {run.arm for run in plan("fake", {}, Path("runs"))} == {"full", "slow", "cost"}
    monkeypatch.delenv("RECIPES_DATA")
    assert {run.arm for run in plan("fake", {}, Path("runs"))} == {"full", "slow"}
    (fake.data / "claims").mkdir()
    stored = {"figures": {"cost": {"0": {"cost": {"whole": 7.0}, "seconds": 1}}, "gone": {"0": {"seconds": 1}}}}
    stored |= {"fingerprints": {}, "versions": {}}
    (fake.data / "claims" / "fake.json").write_text(json.dumps(stored))
    figures = json.loads(trial._store("fake", [], {}).read_text())["figures"]
    assert figures == {"cost": stored["figures"]["cost"]}


def test_a_measurement_may_have_a_fingerprint_of_its_own(fake, monkeypatch):
    fake.change(measurements={"cost": Measurement("a:b", fingerprint=f"{__name__}:mark")})
    monkeypatch.setattr(trial, "_run_all", lambda *_: None)
    monkeypatch.setattr(trial, "report_of", lambda run: {"cost": {"whole": 1.0}, "seconds": 0.0})
    kept = json.loads(trial.verify("fake").read_text())
    assert kept["fingerprints"]["cost"] == mark()
    assert set(kept["fingerprints"]) == {"full", "slow", "cost"}


def mark() -> dict:
    """A fingerprint of its own."""
    return {"accuracies": [1.0], "rms": 0.5}


def test_an_arm_may_be_a_run_of_another_recipe(fake, inside, monkeypatch, tmp_path):
    ran = []

    def run_other(config, out):
        ran.append(config.train.seed)
        return fake.recipe.run(config, out)

    other = SimpleNamespace(config=fake.recipe.config, presets=fake.recipe.presets, run=run_other)
    monkeypatch.setattr(recipes, "named", lambda name: other if name == "other" else fake.recipe)
    fake.change(arms={"full": arm_of(0.01), "slow": Arm(recipe="other", preset="simmer", changes={"train.steps": 5})})
    kept = json.loads(verify("fake", runs=tmp_path / "runs").read_text())
    assert {report["steps"] for report in kept["figures"]["slow"].values()} == {5}
    assert {report["steps"] for report in kept["figures"]["full"].values()} == {20}
    assert len(ran) == 1 + 3  # its fingerprint, and each seed of the one arm that is its own
    assert claims.stored("fake")["fake.lr"].outcome == HOLDS


@pytest.mark.parametrize("name", recipes.MENU)
def test_every_arm_of_a_chapter_is_a_config_that_its_recipe_allows(name):
    for arm in recipes.chapter(name).arms.values():
        assert arm_config(arm, 1).train.seed == 1


@pytest.mark.parametrize("name", recipes.MENU)
def test_a_chapters_metrics_are_what_this_code_gives(name):
    path = embedded.path("") / "claims" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"not verified yet: recipes verify {name}")
    stored = json.loads(path.read_text())["fingerprints"]
    taken = takers(recipes.chapter(name))
    assert set(stored) == set(taken)
    for arm, take in taken.items():
        moved = compare(stored[arm], take())
        assert not moved, f"arm {arm}: {'; '.join(moved)}. Verify again: recipes verify {name}"
