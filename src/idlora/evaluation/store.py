# SPDX-License-Identifier: Apache-2.0
"""Raw scores on disk, a line of JSON each, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from idlora.errors import OutputError, SettingsError
from idlora.files import write_text

logger = logging.getLogger(__name__)

Values = dict[str, Any]


def fingerprint(subject: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that name what is evaluated and how."""
    text = json.dumps(subject, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """Scores by key in a file whose first line names what they belong to.

    Lines that are damaged are left out, with a warning: their scores are made again.

    Raises:
        SettingsError: the file belongs to something else, or does not say to what.
        OutputError: it cannot be read or written.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self.path, self.owner = path, owner
        self._scores: dict[str, Values] = self._read()

    def __contains__(self, key: str) -> bool:
        return key in self._scores

    def __getitem__(self, key: str) -> Values:
        return self._scores[key]

    def put(self, key: str, values: Values) -> None:
        """Keep the scores of one clip; they are on disk when this returns."""
        self._scores[key] = values
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(_line(key, values))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; free space or choose another") from error

    def recall(self, key: str, make: Callable[[], Values]) -> Values:
        """The scores of a key, made and kept if they are not there yet."""
        if key not in self:
            self.put(key, make())
        return self[key]

    def _read(self) -> dict[str, Values]:
        lines = self._lines()
        if lines:
            self._refuse_others(lines.pop(0))
        scores: dict[str, Values] = {}
        for line in lines:
            if line is not None:
                scores[line.pop("key")] = line
        if damaged := lines.count(None):
            logger.warning("%s: damaged lines that were left out: %d; their scores are made again", self.path, damaged)
        # Written anew, so that a line cut short by an interruption is gone.
        write_text(self.path, "".join([_line(self.owner, {}), *(_line(*item) for item in scores.items())]))
        return scores

    def _refuse_others(self, first: Values | None) -> None:
        if first is None:
            raise SettingsError(
                f"{self.path} does not begin with a line that names whose scores it holds; choose another folder or "
                "remove the file"
            )
        if first["key"] != self.owner:
            raise SettingsError(
                f"{self.path} holds scores of another model or other settings ({first['key']}, not {self.owner}); "
                "choose another folder or remove the file"
            )

    def _lines(self) -> list[Values | None]:
        """The lines, None for a damaged one; a last one that was cut short is not damage but an interruption."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror}; choose another folder") from error
        first, *rest = content.split(b"\n")
        return [_values(line) for line in (first, *rest[:-1])] if content else []


def _values(line: bytes) -> Values | None:
    try:
        values = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and isinstance(values.get("key"), str) else None


def _line(key: str, values: Values) -> str:
    return json.dumps({"key": key, **values}) + "\n"
