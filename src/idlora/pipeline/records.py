# SPDX-License-Identifier: Apache-2.0
"""Frozen records as JSON and back: partial files over defaults, unknown names refused with the nearest known one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from idlora.errors import SettingsError, nearest

Record = TypeVar("Record")


def to_json(record: Any) -> dict[str, Any]:
    """A record as a dictionary of JSON's own types, tuples as lists."""
    return {field.name: _plain(getattr(record, field.name)) for field in fields(record)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)
    return list(value) if isinstance(value, tuple) else value


def from_json(base: Record, data: object, where: str) -> Record:
    """`base` with the values of `data` in place of its own; the inverse of `to_json` whatever the base.

    Args:
        base: a frozen record; it decides names and types.
        data: what `json.loads` returned.
        where: what messages call this record.

    Raises:
        SettingsError: a name is unknown, or a value is of another type or out of its range.
    """
    if not isinstance(data, Mapping):
        raise SettingsError(f"{where} is {_shown(data)}; an object of named values is needed")
    hints = get_type_hints(type(base))
    for name in data:
        if name not in hints:
            raise SettingsError(f"{where} has no {name!r}{nearest(str(name), hints)}")
    values = {name: _read(getattr(base, name), hints[name], data[name], f"{where}: {name}") for name in data}
    return replace(base, **values)  # type: ignore[type-var]


def read_json(path: str | os.PathLike[str]) -> object:
    """Parse a JSON file.

    Raises:
        SettingsError: the file cannot be read or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is not JSON ({error}); correct it or leave it out") from error


def _read(current: Any, hint: Any, value: object, where: str) -> Any:
    if is_dataclass(current):
        return from_json(current, value, where)
    if get_origin(hint) is Literal:
        return _chosen(get_args(hint), value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise SettingsError(f"{where} is {_shown(value)}; a list is needed")
        return tuple(_scalar(get_args(hint)[0], item, where) for item in value)
    return _scalar(hint, value, where)


def _chosen(choices: tuple[object, ...], value: object, where: str) -> object:
    if value not in choices:
        raise SettingsError(f"{where} is {_shown(value)}; choose one of {', '.join(map(str, choices))}")
    return value


def _scalar(kind: Any, value: object, where: str) -> object:
    # JSON writes 3.0 and 3 alike, and Python counts True among the integers.
    if kind is float and type(value) is int and abs(value) < 1e300:
        return float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise SettingsError(f"{where} is {_shown(value)}; it must be a {_KINDS[kind]}")
    return value


_KINDS: Mapping[Any, str] = {int: "whole number", float: "finite number", bool: "true or false", str: "text"}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
