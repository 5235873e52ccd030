# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest

TELL = "from recipes_lib import terminal; terminal.complain('a'); terminal.aside().print('b'); print('done')"


def told(stderr: object, **how: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", TELL], stdout=subprocess.PIPE, stderr=stderr, text=True, check=False, **how
    )


def test_what_is_no_result_goes_to_standard_error():
    ended = told(subprocess.PIPE)
    assert (ended.stderr, ended.stdout) == ("a\nb\n", "done\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_standard_error_is_given_up_and_the_process_goes_on():
    with open("/dev/full", "w") as full:
        ended = told(full)
    assert (ended.returncode, ended.stdout) == (0, "done\n")


def test_a_standard_error_that_nobody_reads_is_given_up():
    reader, writer = os.pipe()
    os.close(reader)
    ended = told(writer)
    os.close(writer)
    assert (ended.returncode, ended.stdout) == (0, "done\n")


def test_a_standard_error_that_was_closed_is_none():
    ended = told(None, preexec_fn=lambda: os.close(2))
    assert (ended.returncode, ended.stdout) == (0, "done\n")


def test_a_progress_bar_on_a_terminal_and_lines_beside_it_come_to_an_end():
    program = (
        "import sys\nfrom rich.progress import Progress\nfrom recipes_lib import terminal\n"
        "with Progress(console=terminal.aside()) as bar:\n"
        "    task = bar.add_task('steps', total=2)\n"
        "    sys.stderr.write('by the way\\n')\n"
        "    terminal.complain('a warning')\n"
        "    terminal.aside().print('a note')\n"
        "    bar.update(task, advance=2)\n"
    )
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"}  # rich takes the pipe for a terminal then
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert ended.returncode == 0, ended.stderr
    for line in ("by the way", "a warning", "a note", "100%"):
        assert line in ended.stderr
