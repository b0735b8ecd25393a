# SPDX-License-Identifier: Apache-2.0
"""What became of every item of a stage, a line of JSON each: a stage that was stopped goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from idlora.errors import OutputError
from idlora.files import write_text

Entry = dict[str, Any]


class Ledger:
    """Outcomes by key, on disk as soon as they are known.

    An entry names the `file` that it comes from, so that withdrawing a file finds it.

    Args:
        path: a text file; it is made if missing, and a line that an interruption cut short is passed over.

    Raises:
        OutputError: it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_text(encoding="utf-8") if path.exists() else ""
        except OSError as error:
            raise OutputError(f"cannot read {path}: {error.strerror}; choose another folder") from error
        lines = content.splitlines(keepends=True)
        self._entries = {entry.pop("key"): entry for line in lines if (entry := _entry(line)) is not None}
        if lines and len(self._entries) < len(lines):
            self._write()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Any:
        return self._entries[key]["outcome"]

    def put(self, key: str, file: str, outcome: Any) -> None:
        """Keep an outcome; it is on disk when this returns (OutputError if it cannot be)."""
        entry = {"file": file, "outcome": outcome}
        self._entries[key] = entry
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(_line(key, entry))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; free space or choose another") from error

    def entries(self) -> tuple[tuple[str, Entry], ...]:
        """Keys and entries, those that were put last at the end."""
        return tuple(self._entries.items())

    def keep(self, wanted: Callable[[Entry], bool]) -> int:
        """Forget the entries that are not wanted; returns how many there were."""
        return self.change(lambda entry: entry if wanted(entry) else None)

    def change(self, made: Callable[[Entry], Entry | None]) -> int:
        """Make other entries of them, or none; returns how many are others or gone."""
        changed = {key: made(entry) for key, entry in self._entries.items()}
        count = sum(changed[key] != entry for key, entry in self._entries.items())
        if count:
            self._entries = {key: entry for key, entry in changed.items() if entry is not None}
            self._write()
        return count

    def forget(self, keys: Collection[str]) -> int:
        """Forget the entries of some keys; returns how many there were."""
        known = self._entries.keys() & set(keys)
        if known:
            self._entries = {key: entry for key, entry in self._entries.items() if key not in known}
            self._write()
        return len(known)

    def _write(self) -> None:
        write_text(self.path, "".join(_line(key, entry) for key, entry in self._entries.items()))


def is_ledger(path: Path) -> bool:
    """Whether a file is one of these: its first line is an entry. Others' files may lie beside them."""
    if not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8") as stream:
            return _entry(stream.readline()) is not None
    except (OSError, UnicodeDecodeError):
        return False


def _line(key: str, entry: Entry) -> str:
    return json.dumps({"key": key, **entry}) + "\n"


def _entry(line: str) -> Entry | None:
    """The entry of a whole line; None of one that was cut short."""
    if not line.endswith("}\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"key", "file", "outcome"} <= entry.keys() else None
