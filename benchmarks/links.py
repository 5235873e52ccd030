# SPDX-License-Identifier: Apache-2.0
"""Processes of one machine joined by links of a set rate and delay, and what a transfer over such a link costs.

Each process has a network namespace of its own. Without delay its one interface leads to a bridge in one more namespace;
with delay it is a tap, whose frames a thread of this process hands on later. A token bucket (``tc`` tbf) limits what
each process sends, and the kernel counts the bytes. Needs Linux and the right to make namespaces.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

INTERFACE = "eth0"
_PORT = 29500  # a namespace's ports are all free
_MTU = 9000
_FRAME = 10_000  # bytes: a bucket must hold a frame
_TUNSETIFF, _TAP_WITHOUT_HEADER, _NETWORK = 0x400454CA, 0x1002, 0x40000000  # linux/if_tun.h, linux/sched.h


class Refused(Exception):
    """Why there can be no links here, in one line."""


@contextlib.contextmanager
def star(size: int, *, delay: float = 0.0) -> Iterator[list[str]]:
    """``size`` network namespaces, each ``delay`` ms from every other; gone afterwards, whatever happens.

    Raises: ``Refused`` where the system does not allow it.
    """
    own, made = [f"recipes-{os.getpid()}-{number}" for number in range(size)], []
    hub, taps, done = f"recipes-{os.getpid()}-hub", [], threading.Event()
    try:
        for name in own if delay else [hub, *own]:
            _run("ip", "netns", "add", name)
            made.append(name)
        if delay:
            taps = [_tap(name) for name in own]
        else:
            _bridge(hub, own)
        for number, name in enumerate(own):
            _run("ip", "-n", name, "address", "add", f"{_address(number)}/24", "dev", INTERFACE)
            _run("ip", "-n", name, "link", "set", INTERFACE, "mtu", str(_MTU), "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("tc", "-n", own[0], *bucket(1000))
        _run("tc", "-n", own[0], "qdisc", "del", "dev", INTERFACE, "root")
        threading.Thread(target=_relay, args=(taps, delay * 1e-3, done), daemon=True).start()
        yield own
    finally:
        done.set()
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)


def run_ranks(names: Sequence[str], command: Sequence[str]) -> None:
    """Runs ``command`` in each namespace as a rank of one gloo job, and waits; one that fails ends them all.

    Raises: ``RuntimeError`` where a rank fails.
    """
    ranks = []
    try:
        for number, name in enumerate(names):
            variables = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": len(names), "OMP_NUM_THREADS": 1}
            variables |= {"MASTER_ADDR": _address(0), "MASTER_PORT": _PORT, "GLOO_SOCKET_IFNAME": INTERFACE}
            # torch would warn that these addresses have no names
            environment = (
                os.environ | {key: str(value) for key, value in variables.items()} | {"TORCH_CPP_LOG_LEVEL": "ERROR"}
            )
            # a session of its own: Ctrl-C is for the parent, which ends the ranks
            inside = ["ip", "netns", "exec", name, *command]
            ranks.append(subprocess.Popen(inside, env=environment, start_new_session=True))
        while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
            time.sleep(0.1)
        if any(codes):
            raise RuntimeError(f"A rank failed: exit codes {codes}")
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def limit(megabits: float) -> None:
    """Sets the rate at which this process's namespace sends, in Mbit/s; 0: no limit."""
    subprocess.run(["tc", "qdisc", "del", "dev", INTERFACE, "root"], capture_output=True, check=False)
    if megabits:
        _run("tc", *bucket(megabits))


def bucket(megabits: float) -> list[str]:
    """Arguments of ``tc`` that limit the interface's rate."""
    burst = max(_FRAME, round(megabits * 1e6 / 8 * 1e-3))  # what the rate sends in 1 ms: little slips through unpaid
    return ["qdisc", "add", "dev", INTERFACE, "root", "tbf", "rate", f"{megabits:g}mbit", "burst", f"{burst}b",
            "latency", "400ms"]  # fmt: skip


def sent_bytes() -> int:
    """Bytes that this process's namespace has sent, headers included."""
    return int(Path(f"/sys/class/net/{INTERFACE}/statistics/tx_bytes").read_text())


@dataclass(frozen=True)
class Cost:
    """Seconds of an all-reduce as a + b * bytes that each rank sends."""

    start: float
    """a: seconds, whatever the size."""
    per_byte: float
    """b: seconds a byte."""

    def seconds(self, sent: float) -> float:
        """What sending ``sent`` bytes takes."""
        return self.start + self.per_byte * sent

    def error(self, sent: Sequence[float], seconds: Sequence[float]) -> float:
        """Largest distance from measured times, as a share of them."""
        return max(abs(self.seconds(n) / t - 1) for n, t in zip(sent, seconds, strict=True))

    def at_delay(self, other: "Cost", share: float) -> "Cost":
        """The cost at ``share`` times the delay of ``other``; this one is without delay.

        Round trips take longer in proportion. A byte costs what it did for ``other``: the rate limits it, not the delay.
        """
        return Cost(self.start + share * (other.start - self.start), other.per_byte)


def fit(sent: Sequence[float], seconds: Sequence[float]) -> Cost:
    """The ``Cost`` nearest to measured times, in the squares of *relative* errors: small messages count as large ones.

    Raises: ``ValueError`` for fewer than two sizes.
    """
    if len(set(sent)) < 2:
        raise ValueError(f"sent = {list(sent)} has no two different sizes: a line needs two")
    x, t = np.asarray(sent, float), np.asarray(seconds, float)
    start, per_byte = np.linalg.lstsq(np.stack([1 / t, x / t], axis=1), np.ones_like(t), rcond=None)[0]
    return Cost(float(start), float(per_byte))


def _bridge(hub: str, names: Sequence[str]) -> None:
    _run("ip", "-n", hub, "link", "add", "bridge", "type", "bridge")
    _run("ip", "-n", hub, "link", "set", "bridge", "mtu", str(_MTU), "up")
    for number, name in enumerate(names):
        far_end = ("mtu", str(_MTU), "type", "veth", "peer", "name", INTERFACE, "netns", name)
        _run("ip", "-n", hub, "link", "add", f"port{number}", *far_end)
        _run("ip", "-n", hub, "link", "set", f"port{number}", "master", "bridge", "up")


def _tap(name: str) -> int:
    """A tap in a namespace; its file."""
    c = ctypes.CDLL(None, use_errno=True)
    try:
        with open("/proc/thread-self/ns/net") as home, open(f"/var/run/netns/{name}") as there:
            if c.setns(there.fileno(), _NETWORK):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            try:
                file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
                fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH", INTERFACE.encode(), _TAP_WITHOUT_HEADER))
            finally:
                c.setns(home.fileno(), _NETWORK)
    except OSError as error:
        raise Refused(f"no tap could be made: {error}") from None
    return file


def _relay(taps: Sequence[int], delay: float, done: threading.Event) -> None:
    """Hands each tap's frames to the others ``delay`` seconds after it came, in order; closes the taps when ``done``."""
    waiting: deque[tuple[float, int, bytes]] = deque()
    while taps and not done.is_set():
        while waiting and waiting[0][0] <= time.monotonic():
            _, source, frame = waiting.popleft()
            for tap in taps:
                if tap != source:  # a rank's kernel drops what is addressed to others
                    os.write(tap, frame)
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.1
        for tap in select.select(taps, [], [], pause)[0]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    waiting.append((time.monotonic() + delay, tap, os.read(tap, 2 * _MTU)))
    for tap in taps:
        os.close(tap)


def _address(number: int) -> str:
    return f"10.77.0.{number + 1}"


def _run(*words: str) -> None:
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise Refused(f"there is no command {words[0]} (install iproute2)") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Refused(f"`{' '.join(words)}` was refused: {reason}") from None
