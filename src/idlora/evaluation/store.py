# SPDX-License-Identifier: Apache-2.0
"""Raw scores on disk, a line of JSON each, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from idlora.errors import OutputError, SettingsError
from idlora.files import write_text

Values = dict[str, Any]


def fingerprint(subject: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that name what is evaluated and how."""
    text = json.dumps(subject, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """Scores by key in a file whose first line names what they belong to.

    Raises:
        SettingsError: the file belongs to something else.
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
        if lines and lines[0]["key"] != self.owner:
            raise SettingsError(
                f"{self.path} holds scores of another model or other settings ({lines[0]['key']}, not {self.owner}); "
                "choose another folder or remove the file"
            )
        scores = {line.pop("key"): line for line in lines[1:]}
        # Written anew, so that a line cut short by an interruption is gone.
        write_text(self.path, "".join([_line(self.owner, {}), *(_line(*item) for item in scores.items())]))
        return scores

    def _lines(self) -> list[Values]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror}; choose another folder") from error
        return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith("}\n")]


def _line(key: str, values: Values) -> str:
    return json.dumps({"key": key, **values}) + "\n"
