# SPDX-License-Identifier: Apache-2.0
"""Converts configs (trees of groups) to plain values and YAML and back, and replaces fields by dotted name."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import dacite
import yaml

from recipes_lib.errors import ConfigError, Faults, nearest

C = TypeVar("C")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain values that YAML and JSON can hold."""

    def plain(value: Any) -> Any:
        match value:
            case dict():
                return {key: plain(item) for key, item in value.items()}
            case list() | tuple():
                return [plain(item) for item in value]
            case Path():
                return str(value)
        return value

    return plain(dataclasses.asdict(config))


def from_dict(kind: type[C], values: dict[str, Any]) -> C:
    """Builds a config of class ``kind`` from the values that :func:`to_dict` gave, and checks every field.

    Raises: ``ConfigError`` naming a field that is unknown, missing or of the wrong type.
    """
    try:
        config = dacite.from_dict(kind, values, dacite.Config(cast=[tuple, Path], strict=True))
    except (
        dacite.DaciteError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:  # dacite does not wrap what its casts raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(f"This config does not fit {kind.__name__}: {reason}.") from None
    refuse_unordered(config)
    return config


def refuse_unordered(config: Any) -> None:
    """Raises ``ConfigError`` naming every field that is nan.

    Range checks such as ``x < 0`` let nan pass, and a run could not be resumed because nan differs from itself.
    """
    faults = Faults()

    def look(value: Any, name: str) -> None:
        match value:
            case float() if value != value:
                faults.add(f"{name} = nan is not a number. Give one, or leave it out.")
            case dict():
                for key, item in value.items():
                    look(item, f"{name}.{key}" if name else str(key))
            case list() | tuple():
                for item in value:
                    look(item, name)

    look(dataclasses.asdict(config), "")
    faults.raise_any()


def override(config: C, changes: dict[str, Any]) -> C:
    """A copy of ``config`` with dotted fields replaced: ``override(config, {"loss.temperature": 0.2})``.

    Raises: ``ConfigError`` naming a field that does not exist, with the most similar name that does.
    """
    values = to_dict(config)
    for dotted, value in changes.items():
        *groups, field = dotted.split(".")
        place = values
        for group in groups:
            place = place.get(group, {})
        if field not in place:
            known = [f"{group}.{name}" for group, part in values.items() if isinstance(part, dict) for name in part]
            raise ConfigError(f"There is no field {dotted}. {nearest(dotted, known)}")
        place[field] = value
    return from_dict(type(config), values)


def to_yaml(recipe: str, config: Any) -> str:
    """The text of a run folder's ``config.yaml``: the recipe's name, then its groups."""
    return yaml.safe_dump({"recipe": recipe, **to_dict(config)}, sort_keys=False, allow_unicode=True)


def dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested groups to one level with dotted keys.

    >>> dotted({"optim": {"lr": 1}})
    {'optim.lr': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
