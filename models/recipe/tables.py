"""Conversion of plain tables, as TOML and JSON give them, to frozen dataclasses; and overrides ("train.epochs=3")."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Mapping
from typing import Any

from models.errors import ConfigError
from models.recipe.registry import check, closest


def build(cls: type, values: Any, prefix: str = "") -> Any:
    """An instance of a dataclass.

    Raises:
        ConfigError: an unknown key or a wrong value; the message names the key, preceded by `prefix`.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{prefix.rstrip('.')}: {values!r} is not a table; write it as a table, with a key for each value"
        )
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in values:
        if key not in hints:
            raise ConfigError(f"{prefix}{key}: no such key{closest(key, hints)}; known here: {', '.join(hints)}")
    return cls(**{key: _convert(f"{prefix}{key}", value, hints[key]) for key, value in values.items()})


def _convert(name: str, value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, f"{name}.")
    if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(typing.get_args(hint)[0]):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name}: {value!r} is not a list of tables; write each as [[{name}]]")
        return tuple(_item(typing.get_args(hint)[0], item, name, number) for number, item in enumerate(value))
    return check(name, value, hint)


def _item(cls: type, values: Any, name: str, number: int) -> Any:
    try:
        return build(cls, values, f"{name}.{number}.")
    except ConfigError as error:  # a check of several keys does not know the number
        raise ConfigError(numbered(str(error), cls, name, number)) from None


def numbered(message: str, cls: type, name: str, number: int) -> str:
    """The message with the keys of a table in a list as `--set` takes them: members.0.size, not members.size."""
    keys = "|".join(field.name for field in dataclasses.fields(cls))
    return re.sub(rf"(?<![\w/]){name}\.(?=({keys})\b)", f"{name}.{number}.", message)


def set_key(tables: dict[str, Any], override: str) -> None:
    """Sets one dotted key; a value that is not valid TOML counts as text.

    Raises:
        ConfigError: the override is not KEY=VALUE, or its key does not lead to a value.
    """
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {override}: write it as KEY=VALUE, for example train.epochs=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = name.strip().split(".")
    table: Any = tables
    for part in path:
        table = _inner(table, part, name)
    if isinstance(table, list):
        raise ConfigError(f"--set {name}: {last!r} is a whole table; set one of its keys, such as {name}.KEY=VALUE")
    table[last] = value


def _inner(table: Any, part: str, name: str) -> Any:
    if isinstance(table, list):
        if not part.isdigit() or int(part) >= len(table):
            raise ConfigError(f"--set {name}: there is no entry {part!r}; the list has {len(table)}, counted from 0")
        return table[int(part)]
    inner = table.setdefault(part, {})
    if not isinstance(inner, dict | list):
        raise ConfigError(f"--set {name}: {part!r} is a value, not a table; set it as a whole")
    return inner
