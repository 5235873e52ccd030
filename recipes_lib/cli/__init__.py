# SPDX-License-Identifier: Apache-2.0
"""The ``recipes`` command: parses arguments and prints results.

``list``, ``show`` and every ``--help`` except that of ``run NAME`` answer without importing torch. Results go to
stdout, everything else to stderr. Exit codes: 0 done; 2 a mistake of the user; 3 interrupted, can be resumed; 4
``doctor`` has found something; 141 the reader of a pipe has closed it; 1 a fault of this library, with its traceback.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from recipes_lib import __version__, terminal
from recipes_lib.cli import display, verbs
from recipes_lib.config.evaluation import CORRUPTIONS
from recipes_lib.errors import (
    STOP_SIGNALS,
    ConfigError,
    DamagedImage,
    Interrupted,
    LaunchError,
    UserError,
    nearest,
    path_fault,
    printable,
)
from recipes_lib.launch.hardware import GPUS

READER_LEFT = 128 + signal.SIGPIPE
"""Exit code if the reader of a pipe has closed it: 128 + 13 = 141, as in other tools."""
NARROWEST = 40


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (default: the process's own) and returns the exit code."""
    _heed_the_scheduler()
    _widen_the_terminal()
    try:
        try:
            arguments = _parse(list(sys.argv[1:] if argv is None else argv))
            return arguments.act(arguments) or 0
        finally:
            display.flush()  # also after the help, which exits by SystemExit
    except UserError as error:
        _complain(str(error), alone=isinstance(error, DamagedImage | LaunchError))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("stopped; what was complete is kept.")
        return Interrupted.exit_code
    except BrokenPipeError:  # the reader of `recipes ... | head` has seen enough
        display.give_up_output()
        return READER_LEFT
    except (OSError, ValueError) as error:
        line = path_fault(error)
        if line is None:
            raise
        _complain(line)
        return UserError.exit_code


def _widen_the_terminal() -> None:
    """Makes the help at least ``NARROWEST`` columns wide, because its layout in one column takes minutes."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked) < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)


def _heed_the_scheduler() -> None:
    """Makes the signals with which a cluster stops a job act like Ctrl-C. The training loop handles them itself."""
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.default_int_handler)


def _complain(text: str, *, alone: bool = False) -> None:
    """Prints one line per fault on stderr.

    Most errors occur in all processes of a run, and only rank 0 prints them. An error that may occur in one process
    alone (``alone``) is printed by that process.
    """
    rank = display.rank()
    if rank == "0" or alone:
        who = "recipes" if rank == "0" else f"recipes (process {rank})"
        for line in text.splitlines():
            terminal.complain(f"{who}: {printable(line)}")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line of ours, without the usage text in front."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See: {self.prog} --help")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="recipes", description="Self-supervised learning recipes: read, run, check, scale.")
    parser.add_argument("--version", action="version", version=f"recipes {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    _add_menu(commands)
    _add_plan(commands)
    _add_runs(commands)
    _add_sweep(commands)
    _add_import(commands)
    _add_claims(commands)
    if not argv:
        argv = ["--help"]
    if not argv[0].startswith("-") and argv[0] not in commands.choices:
        raise ConfigError(f"There is no command {argv[0]!r}. {nearest(argv[0], commands.choices)}")
    if argv[0] == "run":  # its flags are fields of the config, which are parsed later, when the preset is known
        arguments, flags = parser.parse_known_args(argv[:2])
        arguments.flags = [*flags, *argv[2:]]
        return arguments
    if argv[0] in ("plan", "sweep", "import"):  # the same, but these commands also have their own flags
        arguments, arguments.flags = parser.parse_known_args(argv)
        return arguments
    return parser.parse_args(argv)


def _add(commands: argparse._SubParsersAction, name: str, act: verbs.Act, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(act=act)
    return command


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")


def _add_menu(commands: argparse._SubParsersAction) -> None:
    _add_json(_add(commands, "list", verbs.list_menu, "what can be cooked"))
    show = _add(commands, "show", verbs.show, "a recipe's card: paper, presets, claims, chapter")
    show.add_argument("name", metavar="NAME")
    _add_json(show)


def _add_plan(commands: argparse._SubParsersAction) -> None:
    text = "what a run will cost: parameters, operations, memory, bytes sent, GPU-hours; starts nothing, needs no data"
    plan = _add(commands, "plan", verbs.plan, text)
    plan.add_argument("name", metavar="NAME")
    plan.add_argument("--preset", metavar="P")
    plan.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default 1)")
    plan.add_argument("--gpus", type=int, metavar="N", help="GPUs of each (default 8; 1 where workers are simulated)")
    plan.add_argument("--gpu", default="h100", metavar="KIND", help=f"{' '.join(GPUS)} (default h100)")
    share = "share of the GPU's peak rate that is assumed (default 0.35)"
    plan.add_argument("--utilisation", type=float, default=0.35, metavar="X", help=share)
    plan.add_argument("--images", type=int, metavar="N", help="training images, where data.name does not say")
    plan.epilog = "then: any field of the config, as in `recipes run`; `recipes run NAME --help` lists them"
    _add_json(plan)


def _add_runs(commands: argparse._SubParsersAction) -> None:
    run = _add(commands, "run", verbs.run, "train a recipe from a preset: recipes run NAME --preset P [--any.field V]")
    run.add_argument("name", metavar="NAME")
    run.epilog = "then: --preset P, --out DIR, and any field of the config; `recipes run NAME --help` lists them"
    resume = _add(commands, "resume", verbs.resume, "go on with a run that was interrupted")
    change = "where the images are not those that the run began with (default refuse)"
    resume.add_argument("--data.changed", dest="changed", choices=("refuse", "accept"), help=change)
    evaluate = _add(commands, "evaluate", verbs.evaluate, "score a run's weights with probes on frozen features")
    for command in (resume, evaluate):
        names, damage = ("--data.on-damage", "--data.on_damage"), "what to do about an image that cannot be read"
        command.add_argument(*names, dest="on_damage", choices=("stop", "skip"), help=f"{damage} (default: the run's)")
    which = "probes of the run's recipe, such as knn; a wrong name is answered with all of them (default: eval.probes)"
    evaluate.add_argument("--probe", nargs="+", metavar="PROBE", help=which)
    _add_corruptions(evaluate)
    _add_json(evaluate)
    text = "run all diagnostics on a run, finished or not: a line for each; exit code 0 healthy, 4 something found"
    doctor = _add(commands, "doctor", verbs.doctor, text)
    ranks = "2: also compare the gradient of two processes with that of one, which takes some seconds (default 1)"
    doctor.add_argument("--ranks", type=int, default=1, metavar="N", help=ranks)
    _add_json(doctor)
    export = _add(commands, "export", verbs.export, "write a run's backbone in another library's layout")
    export.add_argument("--format", choices=("timm", "hf"), required=True)
    export.add_argument("--out", type=Path, metavar="DIR", help="default: export-FORMAT in the run folder")
    for command in (resume, evaluate, export, doctor):
        command.add_argument("folder", type=Path, metavar="DIR", help="a run folder")


def _add_corruptions(evaluate: argparse.ArgumentParser) -> None:
    """The fields of the probe ``corruptions``, which a user chooses when the run is over; each default is the run's."""
    text = "each test image passes once through the network for each corruption and severity, 75 times for all of both"
    group = evaluate.add_argument_group("the probe corruptions", text)
    for field, given, text in (
        ("corruptions", {"nargs": "+", "choices": CORRUPTIONS, "metavar": "NAME"}, "some of them, such as fog snow"),
        ("corruption_severities", {"nargs": "+", "type": int, "metavar": "N"}, "some severities of 1 to 5"),
        ("corruption_images", {"type": int, "metavar": "N"}, "number of test images"),
        ("corruption_root", {"type": Path, "metavar": "DIR"}, "published images: ImageNet-C's or CIFAR-10-C's folder"),
    ):
        flags = dict.fromkeys((f"--eval.{field.replace('_', '-')}", f"--eval.{field}"))
        group.add_argument(*flags, dest=f"eval.{field}", help=f"{text} (default: the run's)", **given)


def _add_sweep(commands: argparse._SubParsersAction) -> None:
    text = "run every combination of several values of some fields, and show the scores in one table and one figure"
    sweep = _add(commands, "sweep", verbs.sweep, text)
    sweep.usage = (
        "recipes sweep NAME --preset P --FIELD V [V ...] [--FIELD V [V ...] ...] [--jobs N] [--out DIR] [--json]"
    )
    sweep.add_argument("name", metavar="NAME")
    sweep.add_argument("--preset", metavar="P")
    sweep.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="runs at the same time, a core each (default 2)"
    )
    where = "default runs/sweep-NAME-DATE; a sweep that was stopped there goes on"
    sweep.add_argument("--out", type=Path, metavar="DIR", help=where)
    many = f"the number of runs: asked for if there are more than {verbs.UNASKED}"
    sweep.add_argument("--confirm", type=int, metavar="N", help=many)
    sweep.epilog = (
        "then: any field of the config, as in `recipes run`, with one or more values, each a word; a value of several parts "
        "is joined by commas. The first field is the figure's x axis, the second its lines, the others its panels; over "
        "train.seed it averages. Example: recipes sweep msn --preset toy --optim.lr 5e-4 1e-3 --views.global-scale 0.2,1 "
        "0.5,1 --train.seed 0 1 2 --eval.baselines none"
    )
    _add_json(sweep)


def _add_import(commands: argparse._SubParsersAction) -> None:
    text = "make a run folder of recipe msn from weights that others trained, to evaluate and to export"
    command = _add(commands, "import", verbs.import_weights, text)
    what = "msn: an official .pth.tar file; timm: a folder of timm, or a .safetensors file under its names; hf: a ViTMSN folder"
    command.add_argument("file", type=Path, metavar="FILE", help="folder or file of weights")
    command.add_argument("--format", choices=("msn", "timm", "hf"), required=True, help=what)
    command.add_argument("--out", type=Path, metavar="DIR", help="the run folder (default runs/msn-DATE)")
    command.epilog = (
        "then: any field of recipe msn's config, above all --data.name and --data.root, the images to evaluate on; "
        "`recipes run msn --help` lists them. The architecture is read from FILE."
    )


def _add_claims(commands: argparse._SubParsersAction) -> None:
    cook = _add(commands, "cook", verbs.cook, "make what a chapter shows as cooked earlier (preset simmer)")
    verify = _add(commands, "verify", verbs.verify, "run every arm and seed of a chapter's claims")
    verify.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at the same time (default 2)")
    which = "run these alone; the others' stored metrics stay (default: every arm)"
    verify.add_argument("--arm", nargs="+", default=(), metavar="ARM", help=which)
    for command in (cook, verify):
        command.add_argument("name", metavar="NAME")
