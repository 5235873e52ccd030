# SPDX-License-Identifier: Apache-2.0
"""The typed flags of ``recipes run``: ``tyro`` reads the config's fields, and every mistake becomes one error line.

``recipes sweep`` takes the same flags, each with several values.
"""

import contextlib
import dataclasses
import io
import typing
from functools import reduce
from pathlib import Path
from typing import Any

import tyro
from rich.text import Text

from recipes_lib.errors import ConfigError, nearest


def split(flags: list[str]) -> tuple[dict[str, str], list[str]]:
    """Splits ``flags`` into the values of ``--preset`` and ``--out``, and the flags that are fields of the config.

    Raises: ``ConfigError`` if one of the two has no value.
    """
    own: dict[str, str] = {}
    rest: list[str] = []
    left = iter(flags)
    for flag in left:
        name, equals, value = flag.partition("=")
        if name not in ("--preset", "--out"):
            rest.append(flag)
            continue
        value = value if equals else next(left, "")
        if not value or value.startswith("--"):
            raise ConfigError(f"{name} has no value. Write {name} {'toy' if name == '--preset' else 'DIR'}.")
        own[name.removeprefix("--")] = value
    return own, rest


def preset_of(command: str, name: str, asked: str | None, presets: tuple[str, ...]) -> str:
    """The preset asked for by ``recipes COMMAND NAME``.

    Raises: ``ConfigError`` with the most similar preset, or with all presets if none was given.
    """
    if asked is None:
        say = f"recipes {command} {name} --preset {presets[0]}"
        raise ConfigError(f"--preset is missing. {nearest('', presets)} Try: {say}")
    if asked not in presets:
        raise ConfigError(f"Recipe {name} has no preset {asked!r}. {nearest(asked, presets)}")
    return asked


def parse(default: Any, flags: list[str], *, prog: str, about: str) -> Any:
    """A copy of ``default`` with the fields that ``flags`` names replaced; ``--help`` prints the help and exits.

    Raises: ``ConfigError`` with one line per field that does not exist, or for a value of the wrong type.
    """
    _refuse_unknown(fields_of(type(default)), flags)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            # every flag takes a value, also a Boolean one, so that `--train.tensorboard True` reads like the YAML
            config = (tyro.conf.FlagConversionOff,)
            return tyro.cli(type(default), default=default, args=flags, prog=prog, description=about, config=config)
    except SystemExit as left:
        if not left.code:
            raise  # the exit after --help
    raise ConfigError(f"{_unboxed(said.getvalue())} See: {prog} --help")


ONE_VALUE = ("eval.probes",)
"""Fields with the same value in all runs of a sweep: who names two probes wants both of each run."""


def values_of(default: Any, words: list[str], *, prog: str) -> dict[str, tuple[Any, ...]]:
    """The values of each field that the flags of a sweep name: ``--optim.lr 1e-4 3e-4 --views.local-scale 0.05,0.3``.

    Each word after a flag is a value. The parts of a value of several parts (a tuple) are joined by commas. Every value
    is read as ``recipes run`` reads it.

    Raises: ``ConfigError`` as :func:`parse`, or for a field without a value or named twice.
    """
    _refuse_unknown(fields_of(type(default)), [word for word in words if word.startswith("--")])
    found: dict[str, tuple[Any, ...]] = {}
    for flag, spellings in _grouped(words):
        field = flag.removeprefix("--").replace("-", "_")
        if field in found:
            raise ConfigError(f"{field} is given twice. Write all of its values after one --{field}.")
        if not spellings:
            raise ConfigError(f"--{field} has no value. Give one or more, such as --optim.lr 0.001 0.003.")
        if field in ONE_VALUE and len(spellings) > 1:
            raise ConfigError(
                f"{field} is the same in all runs of a sweep. For several write --{field} {','.join(spellings)}."
            )
        parts = _is_tuple(type(default), field)
        values = []
        for spelling in spellings:
            given = [f"--{field}", *filter(None, spelling.split(","))] if parts else [f"--{field}={spelling}"]
            values.append(_read(parse(default, given, prog=prog, about=""), field))
        found[field] = tuple(values)
    return found


def _grouped(words: list[str]) -> list[tuple[str, list[str]]]:
    """Each flag with the words after it; ``--flag=word`` is a flag and its first word.

    Raises: ``ConfigError`` for words before the first flag.
    """
    found: list[tuple[str, list[str]]] = []
    stray: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            found.append((name, [value] if equals else []))
        else:
            (found[-1][1] if found else stray).append(word)
    if stray:
        raise ConfigError(f"These values belong to no field: {' '.join(stray)}.")
    return found


def _read(config: Any, field: str) -> Any:
    return reduce(lambda group, name: vars(group)[name], field.split("."), config)


def _is_tuple(kind: type, field: str) -> bool:
    """Whether the field's values are tuples."""
    found = reduce(lambda group, name: typing.get_type_hints(group)[name], field.split("."), kind)
    return typing.get_origin(found) is tuple


def fields_of(kind: type, prefix: str = "") -> list[str]:
    """The dotted names of all fields of a config's groups: ``data.name``, ``data.root``, ..."""
    found: list[str] = []
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = hints[field.name]
        group = dataclasses.is_dataclass(inner)
        found += fields_of(inner, f"{prefix}{field.name}.") if group else [f"{prefix}{field.name}"]
    return found


def _refuse_unknown(known: list[str], flags: list[str]) -> None:
    lines = []
    for flag in flags:
        name = flag.partition("=")[0].removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name in (*known, "help"):
            continue
        guess = nearest(name, known).split(" There are:")[0]  # the whole list would bury the guess
        guess = f"{guess} " if guess.startswith("Did") else ""
        lines.append(
            f"There is no field {name}. {guess}Groups: {', '.join(dict.fromkeys(k.split('.')[0] for k in known))}."
        )
    if lines:
        raise ConfigError("\n".join(lines))


def _unboxed(text: str) -> str:
    """The message in the box that tyro drew, joined to one line."""
    words: list[str] = []
    for line in Text.from_ansi(text).plain.splitlines()[1:]:  # the first line is a title, with a rule below it
        body = line.strip(" │|")
        if body.strip("─-╰╯"):
            words.append(body)
        elif words:
            break  # below the next rule are the field's help and a hint
    return " ".join(words).rstrip(".").replace("Unrecognized options:", "These values belong to no field:") + "."


def out_of(own: dict[str, str]) -> Path | None:
    """The run folder given by ``--out``; ``None`` means the recipe's default."""
    return Path(own["out"]) if "out" in own else None
