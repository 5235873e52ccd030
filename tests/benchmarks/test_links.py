# SPDX-License-Identifier: Apache-2.0
"""The cost fitted to all-reduce times, and what happens where there can be no namespaces."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def links(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import links

    return links


@pytest.fixture
def local_sgd_link(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import local_sgd_link

    return local_sgd_link


def test_the_fit_finds_the_line_that_times_were_made_by(links):
    sent = [1e3, 1e5, 1e7]
    times = [2e-3 + 8e-8 * n for n in sent]
    cost = links.fit(sent, times)
    assert (cost.start, cost.per_byte) == pytest.approx((2e-3, 8e-8))
    assert cost.seconds(1e6) == pytest.approx(0.082)
    assert cost.error(sent, times) < 1e-9


def test_the_error_is_the_largest_share_of_a_measured_time_by_which_the_line_misses(links):
    assert links.Cost(1.0, 2.0).error([1.0, 2.0], [4.0, 5.0]) == pytest.approx(0.25)


def test_small_messages_count_as_large_ones(links):
    # 10 % too slow at 10 MB must not hide what a small one takes: plain least squares say 2.3 ms
    sent = [1e3, 1e4, 1e5, 1e7, 2e7]
    times = [1e-3 + 1e-8 * n for n in sent]
    times[3] *= 1.1
    assert links.fit(sent, times).start == pytest.approx(1e-3, rel=0.01)


def test_round_trips_take_longer_in_proportion_to_the_delay_and_bytes_do_not(links):
    costs = links.Cost(0.001, 1e-8), links.Cost(0.021, 3e-8)  # at 0 and 5 ms
    assert costs[0].at_delay(costs[1], 20 / 5) == links.Cost(pytest.approx(0.081), 3e-8)


def test_a_modelled_step_is_compute_and_its_share_of_an_all_reduce(links, local_sgd_link):
    rivals = {"ddp": 1, "local_sgd, 4": 4, local_sgd_link.NOTHING: float("inf")}
    found = {"exchanged": 100.0, "rivals": {name: {"seconds": 3.0, "period": n} for name, n in rivals.items()}}
    steps = {name: local_sgd_link.step_range(links.Cost(2.0, 0.1), found, name) for name in rivals}
    # compute 3 s, all-reduce 12 s
    assert steps == {"ddp": (12.0, 15.0), "local_sgd, 4": (6.0, 6.0), local_sgd_link.NOTHING: (3.0, 3.0)}


def test_one_size_is_no_line(links):
    with pytest.raises(ValueError, match="no two different sizes"):
        links.fit([5.0, 5.0], [1.0, 1.1])


def test_a_bucket_holds_what_its_rate_sends_in_a_millisecond_and_a_frame_at_least(links):
    assert links.bucket(100)[-4:] == ["burst", "12500b", "latency", "400ms"]
    assert links.bucket(1)[-3] == "10000b"


def test_without_the_right_to_make_namespaces_the_benchmark_says_why_and_ends_well(tmp_path):
    for name in ("ip", "tc"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'Operation not permitted' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    start = [sys.executable, str(FOLDER / "local_sgd_link.py"), "--seeds", "0"]
    ended = subprocess.run(start, capture_output=True, text=True, env={"PATH": str(tmp_path)}, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("Skipped: `ip netns add recipes-")
    assert ended.stdout.endswith("was refused: Operation not permitted.\n")
    (tmp_path / "ip").unlink()
    ended = subprocess.run(start, capture_output=True, text=True, env={"PATH": str(tmp_path)}, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "Skipped: there is no command ip (install iproute2).\n"
