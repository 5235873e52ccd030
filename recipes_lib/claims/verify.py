# SPDX-License-Identifier: Apache-2.0
"""``recipes verify NAME``: runs every arm and seed of a chapter's claims, each in its own process.

Finished runs are reused as long as config and numerics do not change, so a stopped verification can be continued. The
metrics are stored in ``data/claims/NAME.json``, from which verdicts and ledger are made. ``--arm`` runs only the named
arms; the stored metrics of the others stay if their fingerprints still match the code.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes_lib import durable, processes, recipes
from recipes_lib.claim import Arm
from recipes_lib.claims.cook import digest, storage
from recipes_lib.claims.fingerprint import Fingerprint, compare, function, takers
from recipes_lib.config import override, to_yaml
from recipes_lib.errors import ConfigError, Interrupted, RunError, nearest
from recipes_lib.training.folder import finished

Progress = Callable[[int, int, str], None]
"""Called with the number of finished runs, the number of all runs, and a text about what was just done."""


@dataclass(frozen=True)
class SeedRun:
    """One arm with one seed, and the folder for its report."""

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
    """Makes the missing runs of ``arms`` (default: all), ``jobs`` at a time; stores the metrics and returns their file.

    Raises: ``ConfigError`` for an arm that the chapter does not have; ``Interrupted`` after Ctrl-C (finished runs
    stay); ``RunError`` naming the log of a run that failed, or the arms left out whose stored metrics no longer match
    the code.
    """
    storage()  # raises without a checkout: the metrics of all runs could not be stored
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
    """Raises ``RunError`` if stored metrics of the arms left out are missing, or no longer match the code."""
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
    """The stored metrics, fingerprints and versions of chapter ``name``; all empty if nothing was stored before."""
    path = storage() / "claims" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {"figures": {}, "fingerprints": {}, "versions": {}}


def plan(name: str, marks: dict[str, Fingerprint], place: Path) -> list[SeedRun]:
    """All runs of chapter ``name``, sorted by arm, so that all seeds of an arm are finished early.

    Arms that need data that may not be shipped are left out if ``RECIPES_DATA`` is not set.
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
    """The validated config of one arm and seed. Raises: ``ConfigError`` if the recipe does not allow it."""
    config = override(recipes.named(arm.recipe).presets[arm.preset], {**arm.changes, "train.seed": seed})
    config.validate()
    return config


def report_of(run: SeedRun) -> dict[str, Any] | None:
    """The report of a finished run, or ``None`` if the run is not finished."""
    if (run.folder / "config.yaml").is_file():
        return finished(run.folder)
    path = run.folder / "report.json"  # the folder of a measurement has only this file, which is written at the end
    return json.loads(path.read_text()) if path.is_file() else None


def _run_all(name: str, todo: list[SeedRun], jobs: int, progress: Progress) -> None:
    missing = [run for run in todo if report_of(run) is None]
    done = len(todo) - len(missing)
    progress(done, len(todo), f"{done} of {len(todo)} runs were there")
    try:
        with contextlib.closing(processes.each([_command(name, run) for run in missing], jobs)) as ends:
            for index, code in ends:
                _refuse_failed(name, missing[index], code)
                done += 1
                progress(done, len(todo), f"{missing[index].arm}, seed {missing[index].seed}")
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(f"Stopped with {done} of {len(todo)} runs done. Go on: recipes verify {name}") from None


def _refuse_failed(name: str, run: SeedRun, code: int) -> None:
    """Raises ``Interrupted`` or ``RunError`` unless the process of this run ended with exit code 0."""
    if code == Interrupted.exit_code:
        raise Interrupted(f"arm {run.arm}, seed {run.seed}")
    if code != 0:
        command = _command(name, run)
        raise RunError(
            f"Arm {run.arm}, seed {run.seed} of {name} failed: {command.last_line} (the whole log: {command.log})"
        )


def _command(name: str, run: SeedRun) -> processes.Command:
    """The command that runs one arm and seed: this file as a program."""
    words = (sys.executable, "-m", "recipes_lib.claims.verify", name, run.arm, str(run.seed), str(run.folder))
    return processes.Command(words, run.folder.with_name(f"{run.folder.name}.log"))


def _store(name: str, todo: list[SeedRun], marks: dict[str, Fingerprint], left_out: Sequence[str] = ()) -> Path:
    chapter = recipes.chapter(name)
    path = storage() / "claims" / f"{name}.json"
    before = _stored(name)["figures"]
    # arms that were not asked for, or whose data is not here, keep their stored metrics
    absent = {*left_out, *chapter.needs_data} - {run.arm for run in todo}
    reports: dict[str, dict[str, Any]] = {arm: before[arm] for arm in before if arm in absent}
    versions: dict[str, str] = _stored(name)["versions"] if left_out else {}
    for run in todo:
        report = report_of(run)
        kept = (
            report
            if run.arm in chapter.measurements
            else ("scores", "diagnostics", "factors", "corruptions", "label_free", "seconds", "steps")
        )
        reports.setdefault(run.arm, {})[str(run.seed)] = {key: report[key] for key in kept if key in report}
        versions |= report.get("versions", {})
    reports = {arm: reports[arm] for arm in chapter.every_arm if arm in reports}  # in one order, whatever was run anew
    seconds = round(sum(report["seconds"] for arm in reports.values() for report in arm.values()))
    content = {"recipe": name, "seconds": seconds, "versions": versions, "fingerprints": marks, "figures": reports}
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def _worker(name: str, arm: str, seed: int, folder: Path) -> int:
    """Runs one arm and seed in this process, which :func:`_run_all` started; returns the exit code."""
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
