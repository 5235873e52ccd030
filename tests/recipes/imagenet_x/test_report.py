# SPDX-License-Identifier: Apache-2.0
"""What a report says of metaclasses and classes: its tables, its page and its figure."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from recipes_lib.errors import DataError
from recipes_lib.factors.annotations import FACTORS, Annotations
from recipes_lib.factors.predictions import Predictions
from recipes_lib.factors.report import FEW, FactorReport, factor_report
from recipes_lib.factors.report_json import MOST_TABLES, as_json
from recipes_lib.recipes.imagenet_x import pictures, report, tables
from recipes_lib.recipes.imagenet_x.drawn import draw

DRAWN = draw(2000, 0)


def report_of(models: int = 6, **changes) -> FactorReport:
    """Of drawn images; of more than six models, some are the same under other names."""
    rows = np.arange(models) % 6
    given = Predictions(tuple(f"net-{number}" for number in range(models)), DRAWN.predictions.classes[rows])
    return factor_report(replace(DRAWN.annotations.val, **changes), given, interval="wilson")


@pytest.fixture(scope="module")
def drawn() -> FactorReport:
    return report_of()


def written(found: FactorReport, out: Path) -> str:
    return report.write(found, as_json(found), out).read_text()


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_hold_what_the_report_says_of_metaclasses_and_classes(drawn, tmp_path):
    written(drawn, tmp_path)
    plain = as_json(drawn)
    rows = table(tmp_path / "metaclasses.csv")
    assert len(rows) == 6 * 2 * 3 * 4 * 6  # models, kinds of mark, of correctness, metaclasses, factors
    for row in rows[::31]:
        cell = plain["metaclasses"][row["model"]][row["which"]][row["correctness"]][row["metaclass"]][row["factor"]]
        assert int(row["n"]) == cell["n"]
        assert [row[name] and float(row[name]) for name in ("accuracy", "error_ratio")] == [
            "" if cell[name] is None else cell[name] for name in ("accuracy", "error_ratio")
        ]
    rows = table(tmp_path / "worst_classes.csv")
    assert len(rows) == 6 * 3 * 20
    own = [float(row["accuracy"]) for row in rows if (row["model"], row["correctness"]) == ("net-2", "real_class")]
    assert own == sorted(own)
    assert {row["models"] for row in table(tmp_path / "worst_classes_shared.csv")} == {"6"}
    worst = {
        (row["model"], row["correctness"]): row["worst_classes_accuracy"] for row in table(tmp_path / "models.csv")
    }
    assert float(worst["net-2", "class"]) == plain["worst_classes"]["net-2"]["class"]["accuracy"]
    assert (
        float(table(tmp_path / "metaclass_average.csv")[0]["dog"])
        == plain["metaclass_average"]["net-0"]["class"]["dog"]
    )


def test_the_page_has_a_line_for_each_metaclass_and_names_worst_classes(drawn, tmp_path):
    page = written(drawn, tmp_path)
    section = page.partition("<h2>Metaclasses</h2>")[2].partition("<h2>")[0]
    assert section.count("<img") == 1
    for name, parts in drawn.splits["class"].metaclasses.items():
        assert f"<td>{name}</td><td>{parts['top'].images:,}</td>" in section
    assert "There are 20 classes; the five on which a model is worst" in page
    assert "among the worst of all" not in page  # all classes are


def test_without_metaclasses_the_page_and_the_folder_have_none(tmp_path):
    page = written(report_of(metaclasses=None), tmp_path)
    assert "etaclass" not in page.replace("outside the named metaclasses", "")
    assert not [path.name for path in tmp_path.rglob("*metaclass*")]
    assert (tmp_path / "worst_classes.csv").is_file()


def test_of_many_models_files_and_page_hold_means(tmp_path):
    page = written(report_of(MOST_TABLES + 1), tmp_path)
    there = {path.name for path in tmp_path.glob("*.csv")}
    assert {"metaclass_means.csv", "metaclass_average.csv", "worst_classes_shared.csv"} <= there
    assert not {"metaclasses.csv", "worst_classes.csv"} & there
    assert f"mean of {MOST_TABLES + 1} models" in page


def test_imagenets_classes_bear_their_names_and_others_their_numbers(drawn, tmp_path):
    assert tables.class_names(drawn) == [str(number) for number in range(20)]
    labels, draw = np.arange(2000) % 1000, np.random.default_rng(0)
    known = Annotations(
        np.arange(2000).astype(str), labels.astype(np.int16), 1000, FACTORS, {"top": draw.random((2000, 16)) < 0.1}
    )
    given = Predictions(("one", "two"), np.where(labels < 120, 999, labels)[None].repeat(2, axis=0).astype(np.int16))
    found = factor_report(known, given)
    names = tables.class_names(found)
    assert (len(names), names[0], names[999]) == (1000, "tench", "toilet tissue")
    page = written(found, tmp_path)
    first = table(tmp_path / "worst_classes.csv")[1]
    assert (first["class"], first["name"], first["n"], float(first["accuracy"])) == ("1", "goldfish", "2", 0)
    assert "of the 100 classes, of 1,000 that have images" in page
    assert "tench 0.00, goldfish 0.00" in page
    assert "100 classes are among the worst of all 2 models. The most shared: tench (2), goldfish (2)" in page


def test_the_figure_is_coloured_by_the_ratio_where_images_are_enough_and_grey_where_few(drawn):
    which = pictures.fullest(drawn)
    assert which == "multi"
    ax = pictures.metaclasses(Figure().add_subplot(), drawn, which)
    parts = pictures.by_accuracy(drawn, which)
    averages = [counts.average.mean() for counts in parts.values()]
    assert averages == sorted(averages)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(parts)
    coloured, grey = (image.get_array() for image in ax.images)
    columns = [drawn.factors.index(label.get_text()) for label in ax.get_xticklabels()]
    for row, counts in enumerate(parts.values()):
        for column, factor in enumerate(columns):
            sure = counts.with_factor[factor] >= FEW
            assert bool(coloured.mask[row, column]) != sure
            assert bool(grey.mask[row, column]) == sure
            if sure:
                assert 2 ** coloured[row, column] == pytest.approx(counts.error_ratio[:, factor].mean())
    assert 0 < coloured.mask.sum() < coloured.size  # both kinds were seen


def test_a_table_of_groups_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "groups.csv")
    with pytest.raises(DataError, match="it is no plain file"):
        report.read_groups(tmp_path / "groups.csv", ["net-0"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model,arch\ncnn,a\nvit,b\ncnn,b\n", "has a line for the model 'cnn' more than once"),
        ("model,arch\ncnn,a\nvit,b\ncnn ,b\n", "has a line for the model 'cnn' more than once"),
        ("model,arch,arch\ncnn,a,b\nvit,b,a\n", "has the column 'arch' more than once"),
        ("model,arch\ncnn,a, small\nvit,b\n", "has 3 values for 2 columns in the line of 'cnn'"),
        ("model,arch\ncnn\nvit,b\n", "has 1 values for 2 columns"),
        ("model,arch\ncnn, \nvit,b\n", "leaves a column of cnn empty"),
        ("model\ncnn\nvit\n", "needs a column model and at least one more"),
        ("", "needs a column model"),
        ("model,arch\ncnn,a\n", "has no line for 1 models: vit"),
    ],
)
def test_a_table_of_groups_that_leaves_a_doubt_is_refused(tmp_path, text, words):
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        report.read_groups(tmp_path / "groups.csv", ["cnn", "vit"])


def test_white_space_around_names_of_groups_is_passed_over(tmp_path):
    (tmp_path / "groups.csv").write_text("model , arch\ncnn , conv\n\nvit,attention\nother,x\n")
    found = report.read_groups(tmp_path / "groups.csv", ["cnn", "vit"])
    assert found == {"cnn": {"arch": "conv"}, "vit": {"arch": "attention"}}


def test_names_of_any_characters_are_safe_for_files_figures_and_tables(tmp_path):
    models = ("$x_{$", "_hidden", "=1+1", "a\x1b[31m", "long" * 60, "<b>")
    given = Predictions(models, DRAWN.predictions.classes)
    columns = {"arch/size": "$\\frac{$", "arch size": "../up", "../..": "g"}
    groups = {m: {c: f"{g}{place % 2}" for c, g in columns.items()} for place, m in enumerate(models)}
    found = factor_report(DRAWN.annotations.val, given, groups=groups, interval="wilson")
    page = written(found, tmp_path / "report") if (tmp_path / "report").mkdir() is None else ""
    assert page.count("<img") == 2 * (2 + 3) + 1
    assert len(list((tmp_path / "report" / "plots").iterdir())) == 2 * (2 + 3) + 1  # none was written over
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert [row["model"] for row in table(tmp_path / "report" / "models.csv")[:3]] == ["$x_{$", "_hidden", "'=1+1"]
    ax = pictures.error_ratios(Figure().add_subplot(), found, found.tables["multi"]["class"])
    shown = [label.get_text().strip() for label in ax.get_legend().get_texts()]
    assert shown[:4] == [r"\$x_{\$", "_hidden", "=1+1", r"a\x1b[31m"]
    assert len(shown) == 6
    assert len(shown[4]) < 70
