# SPDX-License-Identifier: Apache-2.0
"""``recipes verify NAME``: every arm and seed of a chapter's claims, each in a process of its own.

Finished runs are kept and reused while config and numerics stay as they are, so a stopped verification goes on. The
metrics are stored in ``data/claims/NAME.json``; verdicts and ledger are made from there. ``--arm`` runs the named arms
alone; the stored metrics of the others stay, provided that their fingerprints are still what the code gives.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes_lib import durable, recipes
from recipes_lib.claim import Arm
from recipes_lib.claims.cook import digest, finished, storage
from recipes_lib.claims.fingerprint import Fingerprint, compare, function, takers
from recipes_lib.config import override, to_yaml
from recipes_lib.errors import ConfigError, Interrupted, RunError, nearest

Progress = Callable[[int, int, str], None]
"""Called with (runs done, runs in all, what was just done)."""


@dataclass(frozen=True)
class SeedRun:
    """One arm with one seed, and the folder that its report goes to."""

    arm: str
    seed: int
    folder: Path


def verify(
    name: str,
    arms: Sequence[str] = (),
    *,
    jobs: int = 2,
    runs: Path = Path("runs"),
    progress: Progress = lambda *_: None,
) -> Path:
    """Runs what is missing of ``arms`` (default: all), ``jobs`` at a time, and stores the metrics; returns the file.

    Raises: ``ConfigError`` for an arm that the chapter does not have, ``Interrupted`` after Ctrl-C (finished runs stay),
    ``RunError`` naming the log of a run that failed, or the arms left out whose stored metrics the code no longer gives.
    """
    storage()  # without a checkout all the runs would be for nothing
    chapter = recipes.chapter(name)
    every = chapter.every_arm
    for arm in arms:
        if arm not in every:
            raise ConfigError(f"Chapter {name} has no arm {arm!r}. {nearest(arm, every)}")
    marks, taken = {}, takers(chapter)
    for number, (arm, take) in enumerate(taken.items()):
        progress(0, 0, f"fingerprint of arm {arm}, {number + 1} of {len(taken)}")
        marks[arm] = take()
    left_out = [arm for arm in every if arms and arm not in arms]
    _refuse_stale(name, left_out, marks)
    todo = [run for run in plan(name, marks, runs / f"verify-{name}") if run.arm not in left_out]
    _run_all(name, todo, jobs, progress)
    return _store(name, todo, marks, left_out)


def _refuse_stale(name: str, left_out: Sequence[str], marks: dict[str, Fingerprint]) -> None:
    """Raises ``RunError`` where metrics that are to be kept are missing, or are not what the code gives any more."""
    if not left_out:
        return
    before = _stored(name)
    stale = [
        arm
        for arm in left_out
        if arm not in before["figures"] or (arm in marks and compare(before["fingerprints"][arm], marks[arm]))
    ]
    if stale:
        raise RunError(
            f"The stored metrics of {', '.join(stale)} are missing or are not what the code gives any more. "
            f"Name these arms too: recipes verify {name} --arm ARM ..."
        )


def _stored(name: str) -> dict[str, Any]:
    """What was stored before, or nothing."""
    path = storage() / "claims" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {"figures": {}, "fingerprints": {}, "versions": {}}


def plan(name: str, marks: dict[str, Fingerprint], place: Path) -> list[SeedRun]:
    """Every arm and seed of recipe ``name``, arms in turn so that all seeds of one are there early.

    Arms on data that may not be shipped are left out where ``RECIPES_DATA`` is not set.
    """
    chapter = recipes.chapter(name)
    absent = () if os.environ.get("RECIPES_DATA") else chapter.needs_data
    found = []
    for name_of_arm in chapter.every_arm:
        if name_of_arm in absent:
            continue
        arm = chapter.arms.get(name_of_arm)
        for seed in chapter.seeds:
            text = to_yaml(arm.recipe, arm_config(arm, seed)) if arm else name_of_arm
            folder = place / f"{name_of_arm}-seed{seed}-{digest(text, marks.get(name_of_arm))}"
            found.append(SeedRun(name_of_arm, seed, folder))
    return found


def arm_config(arm: Arm, seed: int) -> Any:
    """The checked config of one arm and seed. Raises: ``ConfigError`` where the recipe does not allow it."""
    config = override(recipes.named(arm.recipe).presets[arm.preset], {**arm.changes, "train.seed": seed})
    config.validate()
    return config


def report_of(run: SeedRun) -> dict[str, Any] | None:
    """The report of a run that is finished, or None."""
    if (run.folder / "config.yaml").is_file():
        return finished(run.folder)
    path = run.folder / "report.json"  # a measurement: nothing but its report, written at once
    return json.loads(path.read_text()) if path.is_file() else None


def _run_all(name: str, todo: list[SeedRun], jobs: int, progress: Progress) -> None:
    missing = [run for run in todo if report_of(run) is None]
    done = len(todo) - len(missing)
    progress(done, len(todo), f"{done} of {len(todo)} runs were there")
    halt = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        futures: dict[Future, SeedRun] = {pool.submit(_run_one, name, run, halt): run for run in missing}
        try:
            for future in as_completed(futures):
                if future.result():
                    done += 1
                    progress(done, len(todo), f"{futures[future].arm}, seed {futures[future].seed}")
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted(f"Stopped with {done} of {len(todo)} runs done. Go on: recipes verify {name}") from None
        finally:
            halt.set()  # the runs in flight end by themselves: Ctrl-C reached them too; no other one starts


def _run_one(name: str, run: SeedRun, halt: threading.Event) -> bool:
    """Runs one arm and seed to its end in a process of its own; False where ``halt`` was set before."""
    if halt.is_set():
        return False
    log = run.folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # two runs side by side on two cores, and bit-stable
    with log.open("w") as written:
        ended = subprocess.run(_command(name, run), stdout=written, stderr=subprocess.STDOUT, env=environment)
    if ended.returncode != 0:
        halt.set()  # here, not where the error is met: by then this thread would have begun another run
    if ended.returncode == Interrupted.exit_code:
        raise Interrupted(f"arm {run.arm}, seed {run.seed}")
    if ended.returncode != 0:
        last = (log.read_text().splitlines() or ["no output"])[-1]
        raise RunError(f"Arm {run.arm}, seed {run.seed} of {name} failed: {last} (the whole log: {log})")
    return True


def _command(name: str, run: SeedRun) -> list[str]:
    """What runs one arm and seed: this file, as a program."""
    return [sys.executable, "-m", "recipes_lib.claims.verify", name, run.arm, str(run.seed), str(run.folder)]


def _store(name: str, todo: list[SeedRun], marks: dict[str, Fingerprint], left_out: Sequence[str] = ()) -> Path:
    chapter = recipes.chapter(name)
    path = storage() / "claims" / f"{name}.json"
    before = _stored(name)["figures"]
    # what was not asked for, and what needs data that is not here, stays as it was measured before
    absent = {*left_out, *chapter.needs_data} - {run.arm for run in todo}
    reports: dict[str, dict[str, Any]] = {arm: before[arm] for arm in before if arm in absent}
    versions: dict[str, str] = _stored(name)["versions"] if left_out else {}
    for run in todo:
        report = report_of(run)
        kept = report if run.arm in chapter.measurements else ("scores", "diagnostics", "factors", "seconds", "steps")
        reports.setdefault(run.arm, {})[str(run.seed)] = {key: report[key] for key in kept if key in report}
        versions |= report.get("versions", {})
    seconds = round(sum(report["seconds"] for arm in reports.values() for report in arm.values()))
    content = {"recipe": name, "seconds": seconds, "versions": versions, "fingerprints": marks, "figures": reports}
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def _worker(name: str, arm: str, seed: int, folder: Path) -> int:
    """One arm and seed, in its own process; returns the exit code."""
    import time

    chapter = recipes.chapter(name)
    try:
        if arm in chapter.arms:
            recipes.named(chapter.arms[arm].recipe).run(arm_config(chapter.arms[arm], seed), folder)
            return 0
        start = time.perf_counter()
        report = {**function(chapter.measurements[arm].function)(seed), "seconds": time.perf_counter() - start}
        folder.mkdir(parents=True, exist_ok=True)
        durable.write_text(folder / "report.json", json.dumps(report))
    except Interrupted:
        return Interrupted.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_worker(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
