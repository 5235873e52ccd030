# SPDX-License-Identifier: Apache-2.0
"""Runs commands as processes of their own, several at a time, each with one thread of torch and a log file.

One thread for each process keeps all cores busy with as many processes as there are cores, and gives bit-equal results.
"""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Command:
    """A command line, and the file that gets what the process writes to stdout and stderr."""

    words: tuple[str, ...]
    log: Path

    @property
    def last_line(self) -> str:
        """The last line of the log, which names the error if the process failed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        return next((line for line in reversed(lines) if line.strip()), "no output")


def each(commands: Sequence[Command], at_once: int) -> Iterator[tuple[int, int]]:
    """Runs ``commands`` in their order, ``at_once`` at a time; yields the index and the exit code of each that ends.

    Use it with ``contextlib.closing``: however the loop over it ends, by Ctrl-C too, no other command starts, and those
    at work are asked to stop (SIGTERM) and awaited. A second Ctrl-C kills them.
    """
    waiting = list(enumerate(commands))[::-1]
    running: dict[int, subprocess.Popen] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                index, command = waiting.pop()
                running[index] = _start(command)
            ended = [index for index, process in running.items() if process.poll() is not None]
            for index in ended:
                yield index, running.pop(index).returncode
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        _stop(list(running.values()))


def _start(command: Command) -> subprocess.Popen:
    command.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with command.log.open("w") as written:
        return subprocess.Popen(command.words, stdout=written, stderr=subprocess.STDOUT, env=environment)


def _stop(running: Sequence[subprocess.Popen]) -> None:
    """Asks processes to stop and waits for them.

    After Ctrl-C in a terminal they have got its signal already, and after a scheduler's signal to this process alone
    they have not. A second signal does no harm: the training loop ends after its current step, and writes a checkpoint.
    """
    try:
        for process in running:
            process.terminate()  # does nothing if it has ended
        for process in running:
            process.wait()
    except KeyboardInterrupt:
        for process in running:
            process.kill()
            process.wait()
        raise
