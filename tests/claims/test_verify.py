# SPDX-License-Identifier: Apache-2.0
import json
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from recipes_lib import claims, recipes
from recipes_lib.claim import HOLDS
from recipes_lib.claims import verify as trial
from recipes_lib.claims.fingerprint import compare, fingerprint
from recipes_lib.claims.verify import arm_config, plan, verify
from recipes_lib.data import embedded
from recipes_lib.errors import ConfigError, Interrupted, RunError


@pytest.fixture
def inside(fake, monkeypatch):
    """Jobs run in this process, where the fake recipe is; a list of what ran."""
    ran = []

    def run_one(name, job, halt):
        ran.append((job.arm, job.seed))
        assert trial._worker(name, job.arm, job.seed, job.folder) == 0
        return True

    monkeypatch.setattr(trial, "_run_one", run_one)
    return ran


def test_every_arm_seed_and_measurement_is_run_and_stored_with_its_fingerprint(fake, inside, tmp_path):
    path = verify("fake", runs=tmp_path / "runs")
    assert sorted(inside) == [(arm, seed) for arm in ("cost", "full", "slow") for seed in (0, 1, 2)]
    assert path == fake.data / "claims" / "fake.json"
    kept = json.loads(path.read_text())
    assert kept["figures"]["full"]["2"]["scores"]["knn"]["method"] == pytest.approx(0.62)
    assert kept["figures"]["full"]["2"]["steps"] == 20
    assert kept["figures"]["cost"]["2"]["cost"] == {"whole": 3.0}
    assert kept["fingerprints"] == {
        arm: fingerprint("fake", "toy", {**fake.facts.BASE, **changes}) for arm, changes in fake.facts.ARMS.items()
    }
    assert kept["versions"] == {"torch": "0"}
    assert kept["seconds"] >= 12
    assert [item.name for item in path.parent.iterdir()] == ["fake.json"]


def test_verdicts_come_from_the_stored_figures(fake, inside, tmp_path):
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
    fake.facts.ARMS["slow"]["optim.lr"] = 0.003
    verify("fake", runs=tmp_path / "runs")
    assert sorted(inside) == [("slow", 0), ("slow", 1), ("slow", 2)]


def test_arms_that_are_named_run_alone_and_the_others_figures_stay(fake, inside, tmp_path):
    before = json.loads(verify("fake", runs=tmp_path / "runs").read_text())
    inside.clear()
    after = json.loads(verify("fake", ["slow"], runs=tmp_path / "other").read_text())
    assert inside == [("slow", 0), ("slow", 1), ("slow", 2)]
    assert after["figures"]["full"] == before["figures"]["full"]
    assert after["figures"].keys() == before["figures"].keys()
    assert after["versions"] == before["versions"]


def test_figures_that_the_code_no_longer_gives_are_not_kept_beside_new_ones(fake, inside, tmp_path):
    verify("fake", runs=tmp_path / "runs")
    fake.facts.ARMS["full"]["optim.lr"] = 0.02
    before = (fake.data / "claims" / "fake.json").read_text()
    with pytest.raises(RunError, match="The stored figures of full are missing or are not what the code gives"):
        verify("fake", ["slow"], runs=tmp_path / "runs")
    assert (fake.data / "claims" / "fake.json").read_text() == before


def test_the_first_verification_cannot_leave_arms_out(fake, inside, tmp_path):
    with pytest.raises(RunError, match="stored figures of full, cost are missing"):
        verify("fake", ["slow"], runs=tmp_path / "runs")


def test_an_arm_that_the_chapter_lacks_is_named_with_the_nearest(fake, inside, tmp_path):
    with pytest.raises(ConfigError, match=r"Chapter fake has no arm 'slwo'\. Did you mean 'slow'\?"):
        verify("fake", ["slwo"], runs=tmp_path / "runs")


def test_a_claim_whose_arm_has_no_figures_yet_is_one_sentence(fake, inside, tmp_path):
    path = verify("fake", runs=tmp_path / "runs")
    stored = json.loads(path.read_text())
    del stored["figures"]["slow"]
    path.write_text(json.dumps(stored))
    assert claims.measured("fake") == ({}, ["Claim fake.lr has no figures of arm slow yet."])
    fake.facts.NEEDS_DATA = ("slow",)
    with pytest.raises(
        RunError, match=r"no figures of arm slow yet; it needs data that RECIPES_DATA names\. Make them"
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


def test_an_unfinished_run_is_not_taken_for_a_figure(fake, inside, tmp_path):
    verify("fake", runs=tmp_path / "runs")
    marks = {arm: fingerprint("fake", "toy", {**fake.facts.BASE, **fake.facts.ARMS[arm]}) for arm in fake.facts.ARMS}
    job = plan("fake", marks, tmp_path / "runs" / "verify-fake")[0]
    assert trial.report_of(job)
    (job.folder / "state.json").write_text(json.dumps({"status": "interrupted", "step": 5}))
    assert trial.report_of(job) is None


def program(monkeypatch, text):
    """Every job becomes this Python program, in a process of its own."""
    monkeypatch.setattr(trial, "_command", lambda name, job: [sys.executable, "-c", text, job.arm, str(job.folder)])


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
    fake.facts.NEEDS_DATA, fake.facts.SEEDS = ("cost",), (0, 1, 2)
    monkeypatch.setenv("RECIPES_DATA", "somewhere")
    assert {job.arm for job in plan("fake", {}, Path("runs"))} == {"full", "slow", "cost"}
    monkeypatch.delenv("RECIPES_DATA")
    assert {job.arm for job in plan("fake", {}, Path("runs"))} == {"full", "slow"}
    (fake.data / "claims").mkdir()
    stored = {"figures": {"cost": {"0": {"cost": {"whole": 7.0}, "seconds": 1}}, "gone": {"0": {"seconds": 1}}}}
    stored |= {"fingerprints": {}, "versions": {}}
    (fake.data / "claims" / "fake.json").write_text(json.dumps(stored))
    figures = json.loads(trial._store("fake", [], {}).read_text())["figures"]
    assert figures == {"cost": stored["figures"]["cost"]}


def test_a_measurement_may_have_a_fingerprint_of_its_own(fake, monkeypatch):
    fake.facts.MARKS, fake.facts.ARMS = {"cost": lambda: {"losses": [1.0], "knn": 0.5}}, {}
    monkeypatch.setattr(trial, "_run_all", lambda *_: None)
    monkeypatch.setattr(trial, "report_of", lambda job: {"cost": {"whole": 1.0}, "seconds": 0.0})
    kept = json.loads(trial.verify("fake").read_text())
    assert kept["fingerprints"] == {"cost": {"losses": [1.0], "knn": 0.5}}


@pytest.mark.parametrize("name", recipes.MENU)
def test_every_arm_of_a_chapter_is_a_config_that_its_recipe_allows(name):
    for arm in claims.module(name).ARMS:
        assert arm_config(name, arm, 1).train.seed == 1


@pytest.mark.parametrize("name", recipes.MENU)
def test_a_chapters_figures_are_what_this_code_gives(name):
    path = embedded.path("") / "claims" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"not verified yet: recipes verify {name}")
    facts = claims.module(name)
    stored = json.loads(path.read_text())["fingerprints"]
    marks = getattr(facts, "MARKS", {})
    assert set(stored) == {*facts.ARMS, *marks}
    for arm, mark in marks.items():
        moved = compare(stored[arm], mark() if callable(mark) else fingerprint(*mark))
        assert not moved, f"arm {arm}: {'; '.join(moved)}. Verify again: recipes verify {name}"
    for arm, changes in facts.ARMS.items():
        moved = compare(stored[arm], fingerprint(name, facts.PRESET, {**facts.BASE, **changes}))
        assert not moved, f"arm {arm}: {'; '.join(moved)}. Verify again: recipes verify {name}"
