# SPDX-License-Identifier: Apache-2.0
"""What a chapter shows of the library."""

from dataclasses import dataclass

import matplotlib
import pytest
import torch
from bs4 import BeautifulSoup

from recipes_lib import cli, notebook, plots
from recipes_lib.config import TrainConfig
from recipes_lib.errors import ConfigError
from recipes_lib.recipes import MENU


@pytest.fixture
def shown(monkeypatch) -> list[notebook.Shown]:
    """What was handed to the notebook's display."""
    outputs = []
    monkeypatch.setattr("IPython.display.display", outputs.append)
    return outputs


@pytest.fixture(autouse=True)
def settings_restored():
    threads = torch.get_num_threads()
    with matplotlib.rc_context():
        yield
    torch.set_num_threads(threads)


def test_start_says_what_runs_how_long_it_takes_and_what_to_read_first(shown):
    notebook.start("paws")
    (output,) = shown
    entry = MENU["paws"]
    line = f"chapter: {entry.title} (paws) | takes: about {entry.seconds} s on one CPU core | read first: "
    assert repr(output).startswith(f"{line}{MENU['msn'].title} (msn) | device: CPU")
    assert torch.__version__ in repr(output)
    heads = BeautifulSoup(output._repr_html_(), "html.parser").select("th[scope=row]")
    assert [head.get_text() for head in heads] == ["chapter", "takes", "read first", "device", "versions", "where"]


def test_start_of_a_chapter_that_needs_no_other_names_none(shown):
    notebook.start("what_is_ssl")
    assert "read first" not in repr(shown[0])


def test_start_sets_one_thread_and_the_style_of_the_figures(shown):
    torch.set_num_threads(2)
    notebook.start("msn")
    assert torch.get_num_threads() == 1
    assert {name: matplotlib.rcParams[name] for name in plots.STYLE} == plots.STYLE


def test_start_refuses_a_chapter_that_is_not_in_the_menu():
    with pytest.raises(ConfigError, match=r"There is no recipe 'mns'\. Did you mean 'msn'"):
        notebook.start("mns")


def test_a_plan_is_the_commands_text_and_the_same_rows_as_tables(capsys):
    found = notebook.plan("local_sgd", "toy", gpu="a100", changes={"train.batch_size": 128})
    assert cli.main(["plan", "local_sgd", "--preset", "toy", "--gpu", "a100", "--train.batch-size", "128"]) == 0
    assert repr(found) + "\n" == capsys.readouterr().out
    page = BeautifulSoup(found._repr_html_(), "html.parser")
    assert [table.caption.get_text() for table in page.select("table")] == [
        "parameters",
        "the run",
        "memory of one GPU",
        "assumptions",
    ]
    shown = {row.th.get_text(): row.td.get_text() for row in page.select("table.facts tr")}
    assert shown["images per step"] == "128 (128 per GPU at once)"
    assert "warning: train.device is cpu" in page.get_text()


@pytest.mark.parametrize(
    ("recipe", "preset", "more", "message"),
    [
        ("msn", "toi", {}, "Recipe msn has no preset 'toi'. Did you mean 'toy'"),
        ("mns", "toy", {}, "There is no recipe 'mns'"),
        ("msn", "toy", {"changes": {"optim.lrr": 1}}, "There is no field optim.lrr. Did you mean 'optim.lr'"),
        ("msn", "toy", {"gpu": "h10"}, "There is no GPU 'h10' in the table"),
        ("msn", "toy", {"gpus": 0}, "gpus = 0 is not allowed"),
    ],
)
def test_a_plan_of_what_there_is_not_is_refused(recipe, preset, more, message):
    with pytest.raises(ConfigError, match=message):
        notebook.plan(recipe, preset, **more)


def test_settings_are_a_row_per_field_and_a_column_per_config():
    @dataclass
    class Config:
        train: TrainConfig

    columns = {"small": Config(TrainConfig(steps=5)), "paper": Config(TrainConfig())}
    found = notebook.settings(columns, {"train": ["steps", "batch_size"]})
    assert str(found).splitlines() == [
        "setting             small  paper",
        "train.steps             5   None",
        "train.batch_size     1024   1024",
    ]
    table = BeautifulSoup(found._repr_html_(), "html.parser").table
    assert [head.get_text() for head in table.select("thead th[scope=col]")] == ["setting", "small", "paper"]
    assert [cell.get_text() for cell in table.select("tr")[1].select("th, td")] == ["train.steps", "5", "None"]
