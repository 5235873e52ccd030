# SPDX-License-Identifier: Apache-2.0
"""Notices processes that hang, and a launcher that has ended, from a thread beside the main thread.

A collective waits for every process. If one process is stopped, or waits for a disk that does not answer, all others
wait too. :class:`Watch` then names this process and ends the process that it runs in.
"""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch.distributed as dist

from recipes_lib import terminal
from recipes_lib.distributed import collectives
from recipes_lib.errors import Interrupted

_LAUNCHER = "watches the launcher"
_INTERVAL = 5.0  # largest number of seconds between two signs of life


class Watch:
    """Ends this process with ``Interrupted.exit_code`` if its main thread makes no progress for ``seconds``.

    Inside the context, the main thread calls :meth:`at` whenever it makes progress. If it stops, one line on standard
    error names the process that all others wait for, and its step. Before that, ``ended`` is called on one process that
    is alive. A process without others is not watched.
    """

    def __init__(self, seconds: float, ended: Callable[[], None]) -> None:
        self._seconds, self._ended = seconds, ended
        self._interval = min(_INTERVAL, seconds / 8)
        self._left = threading.Event()
        self._place = (0, "", time.monotonic())
        self._beats = 0

    def at(self, step: int, doing: str) -> None:
        """Notes that the main thread has reached ``step``, and what it is ``doing`` there."""
        self._place = (step, doing, time.monotonic())

    def __enter__(self) -> Self:
        self._place = (*self._place[:2], time.monotonic())
        if collectives.world_size() > 1:
            self._rank, self._size = collectives.rank(), collectives.world_size()
            threading.Thread(target=self._look_on, name="watches the others", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()

    def _look_on(self) -> None:
        store = None
        while not self._left.wait(self._interval):
            with contextlib.suppress(dist.DistError):  # the process of the store has ended or hangs: reported below
                store = store or _meeting_point(self._interval)
                self._show(store)
            if self._waited() > self._seconds:
                self._judge(store)

    def _waited(self) -> float:
        return time.monotonic() - self._place[2]

    def _show(self, store: dist.Store) -> None:
        self._beats += 1
        step, doing, _ = self._place
        store.set(f"{self._rank}", json.dumps([self._beats, step, doing]))

    def _judge(self, store: dist.Store | None) -> None:
        place = self._place
        try:
            before = self._signs(store)
            for _ in range(3):
                self._left.wait(self._interval)
                self._show(store)
            after = self._signs(store)
        except (dist.DistError, AttributeError):
            before = after = {}
        if self._left.is_set() or self._place != place:
            return  # the main thread has made progress meanwhile
        dead = [rank for rank in after if rank != self._rank and after[rank] == before[rank]]
        if dead or not after:
            dead = dead or [0]  # the store does not answer; without a launcher it is in process 0
            line = f"Process {dead[0]} does not answer any more, and the others wait for it at step {place[0]}"
        else:  # all are alive: name the one at the earliest step, or the one that still reads its images
            late = min(after, key=lambda rank: (after[rank][1], after[rank][2] != "reading its images"))
            line = f"Process {late} has not got on from step {after[late][1]}, {after[late][2]}"
        self._end(
            f"{line}: waited {self._seconds:g} s (train.timeout).", next(r for r in range(self._size) if r not in dead)
        )

    def _signs(self, store: dist.Store) -> dict[int, list]:
        """The last sign of life of each process: the sign's number, the step, and what the process was doing."""
        keys = [f"{rank}" for rank in range(self._size)]
        return {int(key): json.loads(store.get(key)) if store.check([key]) else [0, 0, "starting"] for key in keys}

    def _end(self, line: str, teller: int) -> None:
        if self._rank == teller:
            with contextlib.suppress(Exception):  # the cause may be a disk that does not answer
                self._ended()
            terminal.complain(f"recipes: {line} The last checkpoint is kept: go on with `recipes resume`.")
        else:
            time.sleep(2 * self._interval)  # lets the line come first: the launcher ends all once one has ended
        os._exit(Interrupted.exit_code)


def _meeting_point(seconds: float) -> dist.Store:
    """This thread's own connection to the rendezvous store; on a shared connection it would wait for other threads."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    wait = timedelta(seconds=max(seconds, 1.0))
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.PrefixStore(f"recipes/watch/{attempt}", dist.TCPStore(address, port, is_master=False, timeout=wait))


def heed_launcher() -> None:
    """Starts a thread that sends this process SIGTERM when the torchrun that started it has ended.

    Without it the process would keep running and keep its run's folder locked.
    """
    started = any(thread.name == _LAUNCHER for thread in threading.enumerate())
    if "TORCHELASTIC_RUN_ID" not in os.environ or started:
        return
    parent = os.getppid()

    def look_on() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look_on, name=_LAUNCHER, daemon=True).start()
