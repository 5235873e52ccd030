# SPDX-License-Identifier: Apache-2.0
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import recipes_lib
from recipes_lib import cli, recipes
from recipes_lib.cli import display
from recipes_lib.errors import DamagedImage, DataError, Diverged, Interrupted, RunError
from recipes_lib.recipes import MENU


def fault_lines(capsys) -> list[str]:
    said = capsys.readouterr()
    assert said.out == ""
    return said.err.splitlines()


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("rnu", "There is no command 'rnu'. Did you mean 'run'? There are: "),
        ("show mns", f"There is no recipe 'mns'. Did you mean 'msn'? There are: {', '.join(MENU)}."),
        ("run mns --preset toy", "There is no recipe 'mns'. Did you mean 'msn'?"),
        ("cook mns", "There is no recipe 'mns'."),
        ("verify mns", "There is no recipe 'mns'."),
        ("verify msn --jobs 0", "--jobs = 0 is not allowed: use a value of at least 1."),
        ("verify msn --jobs two", "argument --jobs: invalid int value: 'two'. See: recipes verify --help"),
        ("run msn", "--preset is missing. There are: toy, "),
        ("run msn --preset", "--preset has no value."),
        ("run msn --preset --out x", "--preset has no value."),
        ("run msn --preset toy --out", "--out has no value. Write --out DIR."),
        ("run msn --preset toi", "Recipe msn has no preset 'toi'. Did you mean 'toy'?"),
        ("run", "the following arguments are required: NAME."),
        ("show msn extra", "unrecognized arguments: extra."),
        ("evaluate", "the following arguments are required: DIR."),
        ("export d --format onnx", "argument --format: invalid choice: 'onnx'"),
        ("export d", "the following arguments are required: --format."),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(command, line, capsys):
    assert cli.main(command.split()) == 2
    found = fault_lines(capsys)
    assert len(found) == 1
    assert found[0].startswith(f"recipes: {line}")


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ("--optim.lrr 1", ["There is no field optim.lrr. Did you mean 'optim.lr'?"]),
        (
            "--train.checkpoint-evry 5",
            ["There is no field train.checkpoint_evry. Did you mean 'train.checkpoint_every'?"],
        ),
        ("--optim.lrr 1 --train.stepz 2", ["There is no field optim.lrr.", "There is no field train.stepz."]),
        ("--zzz=1", ["There is no field zzz. Groups: data, optim, sync, train, eval."]),
        (
            "--optim.lr abc",
            ["Error parsing --optim.lr: could not convert string to float: 'abc'. See: recipes run msn"],
        ),
        ("--train.steps 1.5", ["Error parsing --train.steps:"]),
        ("--optim.lr", ["Missing value for argument '--optim.lr'."]),
        ("--data.name foo", ["invalid choice 'foo' for argument '--data.name'. Expected one of ('digits', 'pantry',"]),
        ("--eval.probes knn foo", ["invalid choice 'foo' for argument '--eval.probes'."]),
        ("stray", ["These values belong to no field: stray."]),
        ("--train.tensorboard maybe", ["invalid choice 'maybe' for argument '--train.tensorboard'."]),
        (
            "--optim.lr 0 --optim.clip -1",
            ["optim.lr = 0.0 is not", "optim.lr_start", "optim.lr_final", "optim.clip = -1.0"],
        ),
        ("--data.root x", ["data.root = x has no use here"]),
    ],
)
def test_a_wrong_field_or_value_is_a_line_a_fault_and_runs_nothing(flags, lines, capsys, ran):
    assert cli.main(["run", "msn", "--preset", "toy", *flags.split()]) == 2
    found = fault_lines(capsys)
    assert len(found) == len(lines)
    for said, expected in zip(found, lines, strict=True):
        assert said.startswith(f"recipes: {expected}")
    assert ran == []


@pytest.mark.parametrize("flag", ["--train.checkpoint-every", "--train.checkpoint_every"])
def test_flags_take_hyphen_and_underscore(flag, ran):
    assert cli.main(["run", "msn", "--preset", "toy", flag, "7"]) == 0
    assert ran[0][0].train.checkpoint_every == 7


def test_a_flag_changes_its_field_and_leaves_the_presets_others(ran):
    flags = ["--optim.lr=1e-2", "--optim.clip", "None", "--eval.probes", "knn", "linear", "--train.tensorboard", "True"]
    assert cli.main(["run", "msn", *flags, "--preset=toy"]) == 0
    config, out = ran[0]
    assert (config.optim.lr, config.optim.clip, config.eval.probes) == (0.01, None, ("knn", "linear"))
    assert config.train.tensorboard is True
    assert (config.train.seed, config.train.steps, out) == (4, 10, None)


def test_out_names_the_run_folder_and_the_table_of_scores_ends_with_it(ran, capsys, tmp_path):
    assert cli.main(["run", "msn", "--preset", "toy", "--out", str(tmp_path / "a b")]) == 0
    assert ran[0][1] == tmp_path / "a b"
    said = capsys.readouterr().out
    assert said.splitlines()[0].split("  ")[0] == "probe"
    assert [word for word in said.splitlines()[1].split() if word] == ["knn", "0.500", "0.250", "0.375"]
    assert said.splitlines()[-1] == f"run folder: {tmp_path / 'a b'}"


def test_what_the_cooked_column_is_and_how_short_the_run_was_stands_under_the_scores(ran, capsys, monkeypatch):
    scores = {"knn": {"method": 0.36, "raw_pixels": 0.6, "cooked": 0.8}}
    report = {"scores": scores, "steps": 120, "cooked": {"steps": 3000}}
    monkeypatch.setattr(recipes.named("msn"), "run", lambda *_: SimpleNamespace(folder="x", report=report))
    assert cli.main(["run", "msn", "--preset", "toy"]) == 0
    head, row, method, cooked, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["probe", "method", "raw", "pixels", "cooked"]
    assert row.split() == ["knn", "0.360", "0.600", "0.800"]
    assert method.startswith("method: 120 steps from random weights")
    assert cooked.startswith("cooked: the same recipe after 3,000 steps")
    assert last == "run folder: x"


def test_errors_under_corruption_have_a_row_each_and_a_line_says_what_they_are_of(monkeypatch, capsys):
    rows = {"fog": {"1": 0.25, "5": 0.75}, "frost": {"1": 0.5, "5": 0.75}}
    method = {"images": 1200, "published": False, "clean_error": 0.125, "mean_error": 0.5625, "errors": rows}
    units = {"normalised": {"fog": 0.610, "frost": 0.756}, "mce": 0.683, "relative_mce": 1.02}
    other = {"mean_error": 0.875, "clean_error": 0.75, "errors": {name: {"1": 1.0, "5": 0.75} for name in rows}}
    found = {"scores": {}, "corruptions": {"method": method | units, "random_init": other}}
    asked = []
    monkeypatch.setattr(recipes, "that_trained", lambda path: None)
    monkeypatch.setattr("recipes_lib.pretraining.runs.evaluate", lambda *_, **given: asked.append(given) or found)
    flags = "--eval.corruptions fog frost --eval.corruption-severities 1 5 --eval.corruption-images 9 --eval.corruption-root R"
    assert cli.main(["evaluate", "d", "--probe", "corruptions", *flags.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["error", "at", "severity", "1", "5", "mean", "CE", "random", "init"]
    assert lines[1].split() == ["fog", "0.250", "0.750", "0.500", "0.610", "0.875"]
    assert lines[3].split() == ["all", "0.562", "0.683", "0.875"]
    assert lines[4].split() == ["no", "corruption", "0.125", "0.750"]
    assert lines[5].startswith("Of 1,200 test images, corrupted here. The frost is ours: do not compare")
    assert lines[5].endswith("mCE 68.3 %, relative mCE 102.0 % of AlexNet's.")
    assert asked[0]["corruptions"] == {
        "eval.corruptions": ["fog", "frost"],
        "eval.corruption_severities": [1, 5],
        "eval.corruption_images": 9,
        "eval.corruption_root": Path("R"),
    }
    method |= {"published": True}
    found["corruptions"] = {"method": method}
    assert cli.main(["evaluate", "d", "--probe", "corruptions"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Of 1,200 test images, as published."
    assert asked[1]["corruptions"] == {}


def test_the_table_of_factors_stands_below_that_of_scores(monkeypatch, capsys):
    factors = {"method": {"label": 0.5, "ink": 0.25}, "random_init": {"label": 0.125, "ink": 0.0}}
    found = {"scores": {"finetune": {"method": 0.75}}, "factors": factors}
    asked = []
    monkeypatch.setattr(recipes, "that_trained", lambda path: None)
    monkeypatch.setattr(
        "recipes_lib.pretraining.runs.evaluate", lambda recipe, path, names, **_: asked.append(names) or found
    )
    assert cli.main(["evaluate", "d", "--probe", "factors", "finetune"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["probe", "method"]
    assert rows[1] == ["finetune", "0.750"]
    assert rows[2] == ["factor", "method", "random", "init"]
    assert rows[3:] == [["label", "0.500", "0.125"], ["ink", "0.250", "0.000"]]
    assert cli.main(["evaluate", "d"]) == 0
    assert asked == [["factors", "finetune"], None]  # the run's own


def test_only_the_first_process_of_a_run_prints(ran, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["run", "msn", "--preset", "toy"]) == 0
    assert cli.main(["show", "msn", "--json"]) == 0
    assert cli.main(["run", "msn", "--preset", "toi"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_a_mistake_that_all_processes_meet_is_told_once(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(recipes, "named", raising(DataError("There are 3 training images.")))
    assert cli.main(["run", "msn", "--preset", "toy"]) == 2
    assert fault_lines(capsys) == []


def test_damaged_data_that_one_process_met_is_not_swallowed(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(recipes, "named", raising(DamagedImage("cat.jpg cannot be read.")))
    assert cli.main(["run", "msn", "--preset", "toy"]) == 2
    assert fault_lines(capsys) == ["recipes (process 3): cat.jpg cannot be read."]


def raising(error: BaseException):
    def module(name):
        raise error

    return module


@pytest.mark.parametrize(
    ("error", "code"),
    [(RunError("a\nb"), 2), (Diverged("loss is nan"), 2), (Interrupted("Go on: recipes resume x"), 3)],
)
def test_a_users_error_gives_its_lines_and_its_exit_code(error, code, capsys, monkeypatch):
    monkeypatch.setattr(recipes, "named", raising(error))
    assert cli.main(["run", "msn", "--preset", "toy"]) == code
    assert fault_lines(capsys) == [f"recipes: {line}" for line in str(error).splitlines()]


def test_ctrl_c_outside_training_is_an_interruption_without_a_traceback(capsys, monkeypatch):
    monkeypatch.setattr(recipes, "named", raising(KeyboardInterrupt()))
    assert cli.main(["run", "msn", "--preset", "toy"]) == 3
    assert len(fault_lines(capsys)) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_schedulers_signal_outside_training_is_an_interruption_too(number, capsys, monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    monkeypatch.setattr(recipes, "named", lambda name: signal.raise_signal(number))
    try:
        assert cli.main(["run", "msn", "--preset", "toy"]) == 3
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert len(fault_lines(capsys)) == 1


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(recipes, "named", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "msn", "--preset", "toy"])


def test_list_names_every_recipe(capsys):
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(entry.title in said for entry in MENU.values())


def test_list_as_json_is_the_menu(capsys):
    assert cli.main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in listed] == list(MENU)
    assert all(row["presets"][0] == "toy" for row in listed)


@pytest.mark.parametrize("name", MENU)
def test_a_card_has_paper_presets_claims_chapter_and_commands(name, capsys):
    assert cli.main(["show", name]) == 0
    text = capsys.readouterr().out
    assert cli.main(["show", name, "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["presets"] == list(MENU[name].presets)
    assert card["claims"]
    for part in (card["paper"], card["idea"], card["chapter"], *card["commands"], *card["presets"]):
        assert part in text
    for claim in card["claims"]:
        assert f"{claim['id']}: {claim['statement']}" in text


def test_run_help_lists_the_presets_fields_with_its_values(capsys, ran):
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "msn", "--help"])
    assert not left.value.code
    said = capsys.readouterr().out
    for part in ("--train.seed", "(default: 4)", "--preset {toy,", "--out DIR", "Peak learning rate"):
        assert part in " ".join(said.split())
    assert ran == []


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"recipes {recipes_lib.__version__}\n"


def test_no_command_shows_the_help(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([])
    assert not left.value.code
    assert "verify" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["--help", "list", "show msn", "list --json", "evaluate --help", "sweep --help", "run msn --preset toi"]
)
def test_what_needs_no_torch_imports_none(command):
    program = (
        "import sys\nfrom recipes_lib.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program, *command.split()], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_module_is_the_command_and_passes_its_exit_code_on():
    ended = subprocess.run([sys.executable, "-m", "recipes_lib", "show", "mns"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1


def shell(command: str) -> subprocess.CompletedProcess:
    program = command.replace("recipes", f"{sys.executable} -m recipes_lib")
    return subprocess.run(["bash", "-c", f"set -o pipefail; {program}"], capture_output=True, text=True)


def test_a_reader_that_stops_reading_gets_no_error_line():
    ended = shell("recipes show msn | head -c 0")
    assert ended.returncode in (0, 141)  # 0 where all was written before the reader left
    assert ended.stderr == ""


@pytest.mark.parametrize("command", ["list", "list --json", "show msn"])
@pytest.mark.parametrize(
    ("where", "line"),
    [
        (">/dev/full", "recipes: Standard output cannot be written: No space left on device.\n"),
        (">&-", "recipes: Standard output is closed, so the result cannot be shown. Open it, or send it to a file.\n"),
    ],
)
def test_output_that_cannot_be_written_is_one_line(command, where, line):
    ended = shell(f"recipes {command} {where}")
    assert (ended.returncode, ended.stderr) == (2, line)


def test_errors_that_cannot_be_shown_keep_their_exit_code():
    assert shell("recipes show mns 2>/dev/full").returncode == 2
    assert shell("recipes show mns 2>&-").returncode == 2


@pytest.mark.parametrize("width", ["1", "20", "80"])
def test_the_menu_names_every_preset_in_full(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", width)
    assert cli.main(["list"]) == 0
    words = capsys.readouterr().out.split()
    for entry in MENU.values():
        assert set(entry.presets) <= set(words)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ({"RANK": "5", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK = 5 in the environment is wrong"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK = 'x' in the environment is not a number"),
        ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "x"}, "SLURM_PROCID = 'x' is no number"),
    ],
)
def test_a_process_that_was_told_a_wrong_place_says_so_whatever_its_number(place, line, monkeypatch, capsys, tmp_path):
    for name, value in {**place, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["run", "local_sgd", "--preset", "toy", "--out", str(tmp_path / "run")]) == 2
    (found,) = fault_lines(capsys)
    assert line in found
    assert not (tmp_path / "run").exists()


def test_brackets_in_a_path_are_no_markup(monkeypatch, capsys):
    display.show("run folder: runs/[/x]")
    assert capsys.readouterr().out == "run folder: runs/[/x]\n"


def test_a_table_has_a_column_for_each_network_the_known_ones_first(capsys):
    display.show(display.scores({"knn": {"vicreg": 0.25, "random_init": 0.5, "method": 0.75}}))
    head, row = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["probe", "method", "random", "init", "vicreg"]
    assert row == ["knn", "0.750", "0.500", "0.250"]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["resume", "a" * 5000], "is too long for a file's name: use at most 255 bytes per part and 4,096 in all."),
        (["evaluate", "b" * 300], "is too long for a file's name"),
        (["export", "a\0b", "--format", "timm"], "a\\x00b is not a run folder"),
        (["resume", "a\udc80b"], "a\\udc80b"),
        (["resume", "a\x1b[31mb"], "a\\x1b[31mb"),
    ],
)
def test_a_name_that_no_file_can_have_is_one_readable_line(command, line, capsys):
    assert cli.main(command) == 2
    (found,) = fault_lines(capsys)
    assert line in found
    assert len(found) < 1000
    found.encode()


def test_help_in_a_terminal_of_one_column_comes_to_an_end(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1")
    with pytest.raises(SystemExit):
        cli.main(["run", "msn", "--help"])
    assert "--train.seed" in capsys.readouterr().out


def finding(status: str):
    from recipes_lib.evaluation.diagnosis import Finding

    return Finding(check="full_collapse", status=status, text="a line [of text].", number=0.5, threshold=0.2)


@pytest.mark.parametrize(("statuses", "code"), [(("healthy", "unknown"), 0), (("healthy", "found"), 4)])
def test_doctor_prints_a_line_per_check_and_exits_4_if_something_was_found(
    statuses, code, monkeypatch, capsys, tmp_path
):
    from recipes_lib.pretraining import doctor

    findings = [finding(status) for status in statuses]
    monkeypatch.setattr(recipes, "of_run", lambda folder: "recipe")
    monkeypatch.setattr(doctor, "diagnose", lambda recipe, folder: findings)
    assert cli.main(["doctor", str(tmp_path)]) == code
    assert capsys.readouterr().out.splitlines() == [
        f"{status:<8} full_collapse: a line [of text]." for status in statuses
    ]
    assert cli.main(["doctor", str(tmp_path), "--json"]) == code
    assert [entry["status"] for entry in json.loads(capsys.readouterr().out)] == list(statuses)


def test_doctor_compares_two_processes_where_it_is_asked_to(monkeypatch, capsys, tmp_path):
    from recipes_lib.pretraining import doctor, two_ranks

    monkeypatch.setattr(recipes, "of_run", lambda folder: "recipe")
    monkeypatch.setattr(doctor, "diagnose", lambda recipe, folder: [])
    monkeypatch.setattr(two_ranks, "compare", lambda find, folder: finding("found"))
    assert cli.main(["doctor", str(tmp_path), "--ranks", "2"]) == 4
    assert capsys.readouterr().out.startswith("found ")
    assert cli.main(["doctor", str(tmp_path), "--ranks", "3"]) == 2
    assert "--ranks = 3 is not allowed: use 1, or 2" in capsys.readouterr().err


def test_doctor_of_no_run_folder_is_a_mistake_of_the_user(capsys, tmp_path):
    assert cli.main(["doctor", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
