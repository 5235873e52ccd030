# SPDX-License-Identifier: Apache-2.0
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from recipes_lib import durable


def test_a_link_under_the_hidden_name_is_removed_and_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".a.json.partial").symlink_to(victim)
    durable.write_text(tmp_path / "a.json", "ours")
    assert (victim.read_text(), (tmp_path / "a.json").read_text()) == ("mine", "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "victim"]


def test_a_link_at_the_place_itself_is_replaced(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "a.json").symlink_to(victim)
    durable.write_text(tmp_path / "a.json", "ours")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "a.json").is_symlink()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_whatever_has_the_hidden_name_makes_way(tmp_path, make):
    make(tmp_path / ".a.json.partial")
    durable.write_text(tmp_path / "a.json", "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_lines_are_not_added_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        durable.append(tmp_path / "metrics.jsonl")
    with durable.append(tmp_path / "new.jsonl") as file:
        file.write("{}\n")
    assert (tmp_path / "new.jsonl").stat().st_mode & 0o600 == 0o600
    assert (tmp_path / "victim").read_text() == "mine"


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    durable.write_text(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        durable.write_text(tmp_path / "a.json", "half \udcff")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]


def test_what_is_there_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    found = [durable.kind(tmp_path / name) for name in (".", "pipe", "link", "absent")]
    assert found == ["a folder", "a named pipe", "a symbolic link", "nothing"]
    assert durable.kind(Path("/dev/null")) == "a device"


def test_a_lock_names_its_holder_to_another_process_and_ends_when_it_is_closed(tmp_path):
    program = (
        "import sys\nfrom pathlib import Path\nfrom recipes_lib import durable\n"
        "try:\n    durable.lock(Path(sys.argv[1]))\nexcept BlockingIOError as held:\n    sys.exit(str(held))"
    )
    held = durable.lock(tmp_path / ".lock")
    command = [sys.executable, "-c", program, str(tmp_path / ".lock")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stderr == f"process {os.getpid()} on {platform.node()}\n"
    os.close(held)
    assert subprocess.run(command).returncode == 0
