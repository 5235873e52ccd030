# SPDX-License-Identifier: Apache-2.0
import os
import time

import pytest

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks

pytestmark = pytest.mark.distributed


def fail_on_rank_1() -> int:
    if collectives.rank() == 1:
        raise ValueError("rank 1 had enough")
    return 0


def variable() -> str | None:
    return os.environ.get("COOKBOOK_TEST")


def leave_at_once() -> None:
    os._exit(7)


def sleep_long() -> None:
    time.sleep(60)


def test_a_failing_rank_raises_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)process 1 of 2:.*rank 1 had enough"):
        run_ranks(fail_on_rank_1, 2)


def test_a_rank_that_dies_is_noticed():
    with pytest.raises(RuntimeError, match="process 0 ended without a word"):
        run_ranks(leave_at_once, 1)


def test_a_rank_that_hangs_is_given_up():
    with pytest.raises(TimeoutError, match="1 of 1 processes gave no result"):
        run_ranks(sleep_long, 1, max_seconds=0.01)


def test_ranks_have_the_variables_of_the_moment_when_they_are_started(monkeypatch):
    monkeypatch.setenv("COOKBOOK_TEST", "first")
    assert run_ranks(variable, 2) == ["first"] * 2
    monkeypatch.delenv("COOKBOOK_TEST")
    assert run_ranks(variable, 1) == [None]
