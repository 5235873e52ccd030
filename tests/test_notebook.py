# SPDX-License-Identifier: Apache-2.0
"""The first line of a chapter."""

from dataclasses import dataclass

import matplotlib
import pytest
import torch

from recipes_lib import notebook
from recipes_lib.config import TrainConfig


@pytest.fixture
def shown(monkeypatch) -> list[dict[str, str]]:
    """What was handed to the notebook's display."""
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: outputs.append(data))
    return outputs


@pytest.fixture(autouse=True)
def settings_restored():
    threads = torch.get_num_threads()
    with matplotlib.rc_context():
        yield
    torch.set_num_threads(threads)


def test_start_says_what_runs_and_how_long_it_takes(shown):
    notebook.start(chapter="msn", seconds=75, threads=1)
    (output,) = shown
    assert "chapter: msn | takes: about 75 s on 1 CPU core | device: CPU" in output["text/plain"]
    assert torch.__version__ in output["text/plain"]
    assert output["text/html"].count("<th scope='row'>") == output["text/plain"].count(" | ") + 1


def test_start_sets_threads_and_white_figures(shown):
    notebook.start(chapter="msn", seconds=75, threads=2)
    assert torch.get_num_threads() == 2
    assert matplotlib.rcParams["figure.facecolor"] == "white"
    assert matplotlib.rcParams["figure.dpi"] == notebook.DOTS_PER_INCH


def test_start_refuses_no_time_and_no_threads():
    with pytest.raises(ValueError, match="threads = 0"):
        notebook.start(chapter="msn", seconds=75, threads=0)


def test_settings_are_a_row_a_field_and_a_column_a_config():
    @dataclass
    class Config:
        train: TrainConfig

    columns = {"small": Config(TrainConfig(steps=5)), "paper": Config(TrainConfig())}
    assert notebook.settings(columns, {"train": ["steps", "batch_size"]}).splitlines() == [
        "setting             small  paper",
        "train.steps             5   None",
        "train.batch_size     1024   1024",
    ]
