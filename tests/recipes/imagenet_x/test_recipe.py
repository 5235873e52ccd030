# SPDX-License-Identifier: Apache-2.0
"""ImageNet-X's reports: what a run leaves behind, what it finds, and what its config and files must not be."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from recipes_lib import cli, recipes
from recipes_lib.cli import flags
from recipes_lib.config import from_dict, override, to_dict
from recipes_lib.errors import ConfigError, DataError, RunError
from recipes_lib.factors import annotations, predictions
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.imagenet_x import drawn, report
from recipes_lib.recipes.imagenet_x import recipe as imagenet_x
from recipes_lib.training.folder import RunFolder

DRAWN = override(imagenet_x.PRESETS["toy"], {"data.name": "drawn"})
"""Factors and answers made by chance: a whole report in seconds."""


@pytest.fixture(scope="module")
def drawn_run(tmp_path_factory) -> engine.Result:
    return imagenet_x.RECIPE.run(
        override(DRAWN, {"data.images": 3000}), tmp_path_factory.mktemp("imagenet_x") / "drawn"
    )


@pytest.fixture
def files(monkeypatch, tmp_path) -> Path:
    """A folder with annotations in the compact layout, of few images, and two models' predictions of them."""
    version = annotations.Version(images=600, annotated=590, prototypes=30, train=110)
    monkeypatch.setattr(annotations, "VERSION", version)
    draw = np.random.default_rng(0)
    labels = draw.integers(1000, size=600).astype(np.int16)
    top = draw.integers(15, size=600)  # no image has the last factor
    np.savez(
        tmp_path / "imagenet_x_val.npz",
        label=labels,
        annotated=np.arange(600) < 590,
        prototype=np.arange(600) < 30,
        top_factor=top.astype(np.int8),
        multi_factor_bits=(1 << top).astype(np.uint16),
        factor_names=np.array(annotations.FACTORS),
    )
    guesses = [np.where(draw.random(600) < 0.7, labels, draw.integers(1000, size=600)) for _ in range(2)]
    names = annotations.validation_names().tolist()
    predictions.write(tmp_path / "one.csv", names, guesses[0], np.ones(600, np.float32))
    np.savez(tmp_path / "two.npz", predicted_class=guesses[1])
    return tmp_path


def command(files: Path, *more: str, out: str = "run") -> list[str]:
    given = ["--predictions", str(files / "one.csv"), str(files / "two.npz"), "--annotations", str(files)]
    return ["run", "imagenet_x", "--preset", "report", *given, *more, "--out", str(files / out)]


# what a run leaves behind


def test_a_report_is_a_finished_run_with_tables_figures_and_a_page(drawn_run):
    there = {path.name for path in drawn_run.folder.iterdir()}
    assert there >= {
        "report.json",
        "index.html",
        "factors.csv",
        "models.csv",
        "prevalence.csv",
        "spread.csv",
        "groups.csv",
    }
    assert RunFolder.open(drawn_run.folder).state()["status"] == "done"
    assert {path.suffix for path in (drawn_run.folder / "plots").iterdir()} == {".png"}
    assert drawn_run.report["recipe"] == "imagenet_x"
    assert set(drawn_run.report["models"]) == {f"{name}-{n}" for name in ("plain", "augmented") for n in (1, 2, 3)}


def test_a_drawn_report_finds_the_effects_that_were_put_in(drawn_run):
    """Of each model's intervals at least five in six hold the ratio that its true chances of an error give."""
    val = drawn.draw(3000, DRAWN.report.seed).annotations.val
    held = []
    for procedure, effects in drawn.EFFECTS.items():
        chance = drawn.chance_of_error(val, effects)[val.kept]
        marks = val.marks["multi"][val.kept]
        truth = [chance[marks[:, place]].mean() / chance.mean() for place in range(len(val.factors))]
        for number in (1, 2, 3):
            cells = drawn_run.report["models"][f"{procedure}-{number}"]["multi"]["class"]
            held += [
                cells[name]["low"] < ratio < cells[name]["high"] for name, ratio in zip(val.factors, truth, strict=True)
            ]
    assert np.mean(held) > 5 / 6
    groups = drawn_run.report["groups"]["multi"]["class"]["procedure"]
    assert groups["darker"]["means"]["plain"] > groups["darker"]["means"]["augmented"] + 0.2
    assert groups["pose"]["means"]["plain"] < groups["pose"]["means"]["augmented"] - 0.1


def test_a_report_is_the_same_every_time(drawn_run, tmp_path):
    again = imagenet_x.RECIPE.run(override(DRAWN, {"data.images": 3000}), tmp_path / "again")
    for name in ("factors.csv", "index.html", "spread.csv", "plots/error_ratio_top.png"):
        assert (again.folder / name).read_bytes() == (drawn_run.folder / name).read_bytes()


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_beside_it_and_says_its_figures_in_words(drawn_run):
    page = (drawn_run.folder / "index.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    images = [attributes for tag, attributes in tags.found if tag == "img"]
    assert len(images) == len(list((drawn_run.folder / "plots").iterdir()))
    for attributes in images:
        assert attributes["src"].startswith("data:image/png;base64,")
        assert len(attributes["alt"]) > 60
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.found}
    assert not re.findall(r"https?://|url\(|@import", page)
    assert "color-scheme: light dark" in page


def test_tables_say_what_the_report_says(drawn_run):
    with (drawn_run.folder / "factors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 2 * 3 * 6  # models, kinds of mark, of correctness, factors
    for row in rows[::17]:
        cell = drawn_run.report["models"][row["model"]][row["which"]][row["correctness"]][row["factor"]]
        assert int(row["n"]) == cell["n"]
        for name in ("accuracy", "error_ratio", "low", "high"):
            assert float(row[name]) == cell[name]
        assert float(row["p"]) <= float(row["benjamini_hochberg"]) <= float(row["holm"])
    with (drawn_run.folder / "spread.csv").open(newline="") as file:
        assert next(csv.reader(file))[:4] == ["which", "correctness", "factor", "mean"]


# reports on files


def test_the_command_of_the_readme_reports_on_files(files, capsys):
    assert cli.main(command(files)) == 0
    said = capsys.readouterr()
    report = json.loads((files / "run" / "report.json").read_text())
    assert list(report["models"]) == ["one", "two"]
    assert list(report["models"]["one"]) == ["top", "multi"]
    assert report["models"]["one"]["top"]["class"]["multiple_objects"]["error_ratio"] is None
    assert "NaN" not in (files / "run" / "report.json").read_text()
    assert "No image has the factor multiple_objects (top)" in said.err
    assert f"page: {files / 'run' / 'index.html'}" in said.err


@pytest.mark.parametrize("interval", ["wilson", "bootstrap"])
def test_the_interval_is_the_one_asked_for(files, interval):
    assert cli.main(command(files, "--report.interval", interval, "--report.level", "0.5")) == 0
    report = json.loads((files / "run" / "report.json").read_text())
    assert report["interval"]["method"] == interval
    with (files / "run" / "factors.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["low"]]
    assert all(row["low"] == row["wilson_low"] for row in rows) == (interval == "wilson")


def test_many_models_are_drawn_as_their_spread(files):
    guesses = np.load(files / "two.npz")["predicted_class"]
    np.savez(files / "two.npz", predicted_class=np.stack([guesses] * 60), models=[f"net-{n}" for n in range(60)])
    assert cli.main(command(files, "--report.interval", "wilson")) == 0
    page = (files / "run" / "index.html").read_text()
    assert "mean of 61 models" in page
    assert "The first 50 of 61." in page


def test_groups_come_from_a_table_of_the_users(files):
    (files / "groups.csv").write_text("model,architecture,paradigm\none,cnn,supervised\ntwo,vit,supervised\n")
    assert cli.main(command(files, "--groups", str(files / "groups.csv"))) == 0
    found = json.loads((files / "run" / "report.json").read_text())
    assert set(found["groups"]["top"]["class"]) == {"architecture", "paradigm"}
    for text, words in (
        ("model,architecture\none,cnn\n", "no line for 1 models: two"),
        ("model\none\n", "needs a column model and at least one more"),
        ("model,architecture\none,cnn\ntwo,\n", "leaves a column of two empty"),
    ):
        (files / "groups.csv").write_text(text)
        with pytest.raises(DataError, match=words):
            report.read_groups(files / "groups.csv", ["one", "two"])


def test_names_with_escape_sequences_are_spelled_out_on_the_terminal(files, capsys):
    columns = {
        f"odd\x1b[31m{number}": np.zeros(600, np.int64) for number in range(2)
    }  # weak, so that a note names them
    np.savez(files / "two.npz", predicted_class=np.stack(list(columns.values())), models=list(columns))
    (files / "groups.csv").write_text("model,arch/size\none,a\n" + "".join(f"{name},$x_{{$\n" for name in columns))
    assert cli.main(command(files, "--groups", str(files / "groups.csv"))) == 0
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"Accuracy below 1 %: odd\x1b[31m0, odd\x1b[31m1." in said
    assert len(list((files / "run" / "plots").glob("groups_arch_size*.png"))) == 2


def test_a_bad_file_is_one_line_and_leaves_no_run_folder(files, capsys):
    text = (files / "one.csv").read_text().split("\n")
    (files / "one.csv").write_text("\n".join(text[:1] + text[2:]))
    assert cli.main(command(files)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "599 rows for 600 images; 1 are missing: ILSVRC2012_val_00000001.JPEG" in said
    assert not (files / "run").exists()


def test_a_finished_report_is_refused(files, capsys):
    assert cli.main(command(files)) == 0
    assert cli.main(command(files)) == 2
    assert "is finished" in capsys.readouterr().err
    with pytest.raises(RunError, match="is finished"):
        runs.resume(imagenet_x.RECIPE, files / "run")
    with pytest.raises(RunError, match="trains no backbone"):
        recipes.that_trained(files / "run")


# configs


def test_a_config_with_files_survives_yaml():
    full = override(imagenet_x.PRESETS["report"], {"predictions": ["a.csv", "b.npz"], "annotations": "x"})
    assert full.predictions == (Path("a.csv"), Path("b.npz"))
    assert from_dict(imagenet_x.Config, to_dict(full)) == full


def test_the_flags_are_literally_those_of_the_readme():
    given = ["--predictions", "A.csv", "B.npz", "--annotations", "F", "--groups", "G.csv"]
    config = flags.parse(imagenet_x.PRESETS["report"], given, prog="p", about="")
    assert (config.predictions, config.annotations) == ((Path("A.csv"), Path("B.npz")), Path("F"))
    config = flags.parse(imagenet_x.PRESETS["score"], ["--model", "timm:x", "--data.root", "R"], prog="p", about="")
    assert (config.model, config.data.root) == ("timm:x", Path("R"))


@pytest.mark.parametrize(
    ("preset", "changes", "words"),
    [
        ("report", {"annotations": "x"}, "predictions is missing: .* Add --predictions A.csv B.npz"),
        ("report", {"predictions": ["x"]}, "annotations is missing: .*pip install --no-deps imagenet-x==0.0.7"),
        ("score", {"data.root": "x"}, "model is missing: stage score needs it. Add --model timm:NAME"),
        ("score", {"model": "timm:x"}, "data.root is missing: .* --data.root IMAGENET"),
        (
            "score",
            {"model": "tim:x", "data.root": "x"},
            "model = tim:x is not allowed: use timm:NAME, torchvision:NAME",
        ),
        ("score", {"model": "runs/none", "data.root": "x"}, "runs/none is no run folder, and names no library"),
        ("toy", {"model": "timm:x"}, "model = timm:x has no use with data.name = pantry: leave it out"),
        ("toy", {"predictions": ["a", "b"]}, "predictions = a, b has no use with data.name = pantry"),
        ("toy", {"groups": "g"}, "groups = g has no use here"),
        ("toy", {"stage": "score", "model": "timm:x", "data.root": "x"}, "pantry has no images to score"),
        ("toy", {"report.level": 1.0}, r"report.level = 1.0 .*in \(0, 1\)"),
        ("toy", {"report.level": float("nan")}, r"report.level = nan is not a number"),
        ("toy", {"report.resamples": 5}, "report.resamples = 5 .*of at least 100"),
        ("toy", {"report.seed": -1}, "report.seed = -1"),
        ("toy", {"data.images": 1}, "data.images = 1 .*of at least 10"),
        ("toy", {"nets.images": 255}, "nets.images = 255 .*of at least 256, one batch"),
        ("toy", {"nets.share": 1.1}, r"nets.share = 1.1 .*in \[0, 1\]"),
        ("toy", {"nets.asked_share": -0.1}, r"nets.asked_share = -0.1 .*in \[0, 1\]"),
        ("toy", {"nets.steps": 0}, "nets.steps = 0"),
        ("toy", {"nets.clip_steps": -1}, "nets.clip_steps = -1"),
        ("toy", {"data.workers": -1}, "data.workers = -1"),
        ("toy", {"data.workers": 1_000_000}, "data.workers = 1000000"),
        ("toy", {"score.batch_size": 0}, "score.batch_size = 0"),
        ("toy", {"score.threads": 0}, "score.threads = 0"),
    ],
)
def test_a_value_that_is_not_allowed_is_one_line(preset, changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        override(imagenet_x.PRESETS[preset], changes).validate()
    assert "\n" not in str(error.value)


def test_a_fingerprint_is_made_of_finite_figures():
    found = imagenet_x.fingerprint(imagenet_x.PRESETS["toy"])
    assert np.isfinite([*found["error_ratios_and_bounds"], found["accuracy"]]).all()
    assert len(found["error_ratios_and_bounds"]) == 3 * 14
