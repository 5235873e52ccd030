# SPDX-License-Identifier: Apache-2.0
import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from recipes_lib.processes import Command, each


def python(program: str, log: Path) -> Command:
    return Command((sys.executable, "-c", program), log)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within ten seconds")


def test_every_command_runs_with_one_thread_a_log_and_an_exit_code(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    program = "import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit('bad: it failed')"
    commands = [python("print('fine')", tmp_path / "new" / "a.log"), python(program, tmp_path / "new" / "b.log")]
    assert sorted(each(commands, 2)) == [(0, 0), (1, 1)]
    assert commands[0].log.read_text() == "fine\n"
    assert commands[1].log.read_text().splitlines() == ["1", "bad: it failed"]
    assert commands[1].last_line == "bad: it failed"


def test_no_output_is_called_that(tmp_path):
    assert python("", tmp_path / "none.log").last_line == "no output"
    (tmp_path / "empty.log").write_text("\n  \n")
    assert python("", tmp_path / "empty.log").last_line == "no output"


@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_run_at_once_and_all_of_them_run_in_order(at_once, tmp_path):
    said = tmp_path / "said"
    program = (
        f"import time\nfile = open({str(said)!r}, 'a', buffering=1)\nfile.write('1\\n')\n"
        "time.sleep(0.3)\nfile.write('-1\\n')"
    )
    ended = [index for index, _ in each([python(program, tmp_path / f"{n}.log") for n in range(4)], at_once)]
    changes = list(map(int, said.read_text().split()))
    assert max(sum(changes[: n + 1]) for n in range(8)) == at_once
    assert sorted(ended) == [0, 1, 2, 3]
    assert at_once > 1 or ended == [0, 1, 2, 3]


SLEEPS = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(20)\nprint('by itself')"


def test_who_leaves_the_loop_stops_what_is_at_work_and_nothing_else_starts(tmp_path):
    commands = [python(SLEEPS, tmp_path / "a.log"), python("pass", tmp_path / "b.log")]
    commands.append(python("pass", tmp_path / "c.log"))
    with contextlib.closing(each(commands, 2)) as ends:
        assert next(ends) == (1, 0)
        until(lambda: commands[0].log.read_text())
    assert not alive(int(commands[0].log.read_text()))  # it would be two lines if the process had ended by itself
    assert not commands[2].log.exists()


def test_ctrl_c_stops_what_is_at_work(tmp_path):
    log = tmp_path / "a.log"

    def press():
        until(lambda: log.exists() and log.read_text())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt), contextlib.closing(each([python(SLEEPS, log)], 1)) as ends:
        next(ends)
    assert not alive(int(log.read_text()))


def test_a_second_ctrl_c_kills_what_does_not_stop(tmp_path):
    log = tmp_path / "a.log"
    deaf = f"import signal\nsignal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n{SLEEPS}"

    def press():
        main = threading.main_thread().ident
        until(lambda: log.exists() and log.read_text())
        signal.pthread_kill(main, signal.SIGINT)
        until(lambda: "asked" in log.read_text())
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt), contextlib.closing(each([python(deaf, log)], 1)) as ends:
        next(ends)
    assert not alive(int(log.read_text().split()[0]))
