# SPDX-License-Identifier: Apache-2.0
"""Scores on disk: what is damaged is left out and told, and a file of others is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from idlora.errors import SettingsError
from idlora.evaluation.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the scores `a` and `b`."""
    store = Store(tmp_path / "scores.jsonl", "me")
    store.put("a", {"x": 1.5})
    store.put("b", {"x": 2.5})
    return store.path


@pytest.mark.parametrize(
    "line",
    [
        b'{"key": "c", "x":\n',
        b'{"x": 3}\n',
        b'{"key": 3}\n',
        b'{"key": null, "x": 3}\n',
        b'["key"]\n',
        b"3\n",
        b'{"key": "c\xff", "x": 3}\n',
        b"[" * 100_000 + b"\n",
        b"\0\n",
    ],
)
def test_a_damaged_line_costs_its_score_alone_and_is_told(
    path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    head, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([head, line, rest[0], line, rest[1]]))
    store = Store(path, "me")
    assert [store[key] for key in "ab"] == [{"x": 1.5}, {"x": 2.5}]
    assert "c" not in store
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: damaged lines that were left out: 2; their scores are made again"
    ]
    caplog.clear()
    assert Store(path, "me")["b"] == {"x": 2.5}  # written anew without them
    assert not caplog.records


def test_a_last_line_cut_short_is_an_interruption_and_no_damage(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(path.read_bytes() + b'{"key": "c", "x"')
    store = Store(path, "me")
    assert ("b" in store, "c" in store) == (True, False)
    assert not caplog.records


def test_lines_that_end_as_on_windows_are_read(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Store(path, "me")["b"] == {"x": 2.5}


@pytest.mark.parametrize("first", [b'{"x": 1}\n', b"[]\n", b"my notes\n", b"\xff\n", b"\n", b"my notes"])
def test_a_file_that_names_no_owner_is_nobodys_to_overwrite(path: Path, first: bytes) -> None:
    content = first + (path.read_bytes() if first.endswith(b"\n") else b"")
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="names whose scores it holds; choose another folder or remove"):
        Store(path, "me")
    assert path.read_bytes() == content


def test_scores_of_others_are_refused_and_an_empty_file_is_anybodys(path: Path) -> None:
    with pytest.raises(SettingsError, match="another model or other settings"):
        Store(path, "you")
    path.write_bytes(b"")
    Store(path, "you")
    assert json.loads(path.read_text(encoding="utf-8")) == {"key": "you"}
