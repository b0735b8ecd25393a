# SPDX-License-Identifier: Apache-2.0
"""Tables that a person can open: Parquet files that appear whole, each with the key of what it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idlora.errors import InputError, OutputError, SettingsError
from idlora.files import replacing

Row = dict[str, Any]
Columns = Mapping[str, str]
"""Names of columns with their types: text, whole, number, truth, numbers (a list), texts (a list)."""

DROPPED: Columns = {"item": "text", "file": "text", "start": "number", "end": "number", "reason": "text", "why": "text"}
"""Columns of what a stage left out: `reason` is one of few, to be counted; `why` says it in full."""

_KEY = b"idlora_key"


@dataclass(frozen=True)
class Table:
    """Rows of a stage, and what it left out.

    Attributes:
        name: of the stage.
        key: digest of all that it was made from.
        rows: in a fixed order.
        dropped: rows of `DROPPED`.
    """

    name: str
    key: str
    rows: list[Row]
    dropped: list[Row] = field(default_factory=list)


def dropped(item: str, file: str, reason: str, why: str = "", span: tuple[float, float] = (0.0, 0.0)) -> Row:
    """A row of what was left out."""
    return {"item": item, "file": file, "start": span[0], "end": span[1], "reason": reason, "why": why or reason}


def digest_of(subject: Any) -> str:
    """Twenty-four hexadecimal digits that name anything that JSON can say."""
    return hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:24]


def arrow() -> Any:
    """The module pyarrow, with its Parquet part.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise SettingsError("tables need pyarrow: pip install 'idlora[mining]'") from error
    return pa


def write_table(folder: Path, table: Table, columns: Columns) -> None:
    """Write `<name>.dropped.parquet`, then `<name>.parquet`, which says that both are whole.

    Raises:
        OutputError: a file cannot be written.
    """
    _write(folder / f"{table.name}.dropped.parquet", table.dropped, DROPPED, table.key)
    _write(folder / f"{table.name}.parquet", table.rows, columns, table.key)


def rewrite_table(folder: Path, table: Table, rows: Sequence[Row], gone: Sequence[Row]) -> None:
    """Write a table's files with other rows, the columns and the key as they are (OutputError if that fails)."""
    for end, content in (("", rows), (".dropped", gone)):
        path = folder / f"{table.name}{end}.parquet"
        _save(path, content, arrow().parquet.read_schema(path))


def remove_table(folder: Path, name: str) -> None:
    """Remove what is there of a table's two files, where they are of this command (OutputError if that fails)."""
    for end in (".dropped", ""):
        path = folder / f"{name}{end}.parquet"
        try:
            if path.is_file() and _KEY in (arrow().parquet.read_schema(path).metadata or {}):
                path.unlink()
        except arrow().ArrowInvalid:
            continue
        except OSError as error:
            raise OutputError(f"cannot remove {path}: {error.strerror}; remove it by hand") from error


def read_table(folder: Path, name: str) -> Table | None:
    """A table with what it left out; None if it is not there or a part of it belongs to another."""
    kept, left = (folder / f"{name}{end}.parquet" for end in ("", ".dropped"))
    if not (kept.is_file() and left.is_file()):
        return None
    (rows, key), (gone, other) = _read(kept), _read(left)
    return Table(name, key, rows, gone) if key == other else None


def key_of(folder: Path, name: str) -> str:
    """The key of a table as its file says it; empty if there is none, or it cannot be read."""
    path = folder / f"{name}.parquet"
    if not (path.is_file() and (folder / f"{name}.dropped.parquet").is_file()):
        return ""
    try:
        return str((arrow().parquet.read_schema(path).metadata or {}).get(_KEY, b"").decode())
    except (OSError, arrow().ArrowInvalid):
        return ""


def _schema(columns: Columns, key: str) -> Any:
    pa = arrow()
    types = {
        "text": pa.string(),
        "whole": pa.int64(),
        "number": pa.float64(),
        "truth": pa.bool_(),
        "numbers": pa.list_(pa.float32()),
        "texts": pa.list_(pa.string()),
    }
    fields = [pa.field(name, types[kind]) for name, kind in columns.items()]
    return pa.schema(fields, metadata={_KEY: key.encode()})


def _write(path: Path, rows: Sequence[Row], columns: Columns, key: str) -> None:
    _save(path, rows, _schema(columns, key))


def _save(path: Path, rows: Sequence[Row], schema: Any) -> None:
    pa = arrow()
    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    try:
        content = pa.Table.from_pydict(columns, schema=schema)
    except UnicodeEncodeError:  # the name of a file that is no text: told with its bytes in hexadecimal
        content = pa.Table.from_pydict({name: [_text(each) for each in own] for name, own in columns.items()}, schema)
    try:
        with replacing(path) as temporary:
            pa.parquet.write_table(content, temporary, compression="zstd")
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {path}: {error}; free space or choose another folder") from error


def _text(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


def _read(path: Path) -> tuple[list[Row], str]:
    pa = arrow()
    try:
        content = pa.parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is no table of this command ({error}); remove it, and it is made anew") from error
    return content.to_pylist(), str((content.schema.metadata or {}).get(_KEY, b"").decode())
