# SPDX-License-Identifier: Apache-2.0
"""A file or a speaker taken back: everything that was derived is removed, and no later run derives it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from idlora.errors import InputError, OutputError, nearest
from idlora.files import sha256_of, write_text
from idlora.mining.ledger import Ledger
from idlora.mining.splits import Frozen, read_frozen, write_frozen
from idlora.mining.tables import Row, Table, read_table, rewrite_table

LIST_NAME = "withdrawn.json"
SPLITS_NAME = "splits.json"
Span = tuple[float, float]


@dataclass(frozen=True)
class Withdrawn:
    """What was taken back: whole files by the digest of their contents, and stretches of others."""

    files: tuple[str, ...] = ()
    spans: tuple[tuple[str, float, float], ...] = ()

    def of(self, digest: str) -> list[Span]:
        """The stretches of a file that were taken back."""
        return [(start, end) for name, start, end in self.spans if name == digest]


def read_withdrawn(out: Path) -> Withdrawn:
    """What was taken back from a folder (InputError if its list cannot be read)."""
    path = out / LIST_NAME
    if not path.is_file():
        return Withdrawn()
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return Withdrawn(tuple(told["files"]), tuple((name, start, end) for name, start, end in told["spans"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); restore it: without it what was taken back returns"
        ) from error


def without(span: Span, gone: Sequence[Span]) -> list[Span]:
    """A stretch without others."""
    left = [span]
    for low, high in gone:
        left = [
            part
            for start, end in left
            for part in ((start, min(end, low)), (max(start, high), end))
            if part[1] > part[0]
        ]
    return left


@dataclass(frozen=True)
class Target:
    """What is to be removed.

    Attributes:
        files: names of whole files.
        paths: where they lie.
        clips, tracks: names.
        spans: stretches by the name of their file.
    """

    files: frozenset[str] = frozenset()
    paths: frozenset[str] = frozenset()
    clips: frozenset[str] = frozenset()
    tracks: frozenset[str] = frozenset()
    spans: tuple[tuple[str, float, float], ...] = ()

    def takes(self, row: Row) -> bool:
        """Whether a row of any table is derived from it."""
        if {row.get("file"), row.get("reference_file")} & self.files or row.get("path") in self.paths:
            return True
        if {row.get(name) for name in ("clip", "reference", "item", "first", "second")} & self.clips:
            return True
        if row.get("track") in self.tracks or row.get("file") in self.paths:
            return True
        return "start" in row and "end" in row and "path" not in row and any(
            row.get("file") == file and row["start"] < end and row["end"] > start for file, start, end in self.spans
        )  # fmt: skip


def withdraw(out: Path, speaker: str = "", file: str = "") -> dict[str, int]:
    """Remove a speaker, or a file with all that is in it; returns how much of each kind was removed.

    Tables, kept outcomes, clips, references, splits and manifest are rewritten without it; the caller writes the report
    anew. What other commands made of the manifest before (latents, adapters) lies elsewhere and is not found.

    Args:
        out: folder of `idlora pairs`.
        speaker: a name of the manifest.
        file: path, file name, or name in the tables.

    Raises:
        InputError: not one of the two is given, or there is nothing of that name.
        OutputError: something cannot be rewritten.
    """
    if bool(speaker) == bool(file):
        raise InputError("name either a speaker or a file to withdraw")
    folder = out / "tables"
    tables = [table for path in sorted(folder.glob("*.parquet")) if (table := _table(folder, path)) is not None]
    if not tables:
        raise InputError(f"{out} holds no tables of `idlora pairs`; name its folder")
    by_name = {table.name: table for table in tables}
    target, told = _of_speaker(by_name, speaker) if speaker else _of_file(by_name, file)
    before = read_withdrawn(out)
    after = replace(
        before, files=tuple(sorted({*before.files, *told.files})), spans=tuple(sorted({*before.spans, *told.spans}))
    )
    # First the list: whatever ends this command early, no later run brings back what was to go.
    write_text(out / LIST_NAME, json.dumps({"files": after.files, "spans": after.spans}, indent=1) + "\n")
    counts = {"rows": 0, "outcomes": 0, "files": 0, "lines": 0}
    for table in tables:
        counts["rows"] += _cleared(folder, table, target)
    for path in sorted((out / "cache").glob("*.jsonl")):
        counts["outcomes"] += _forgotten(Ledger(path), target)
    counts["files"] = _removed(out, target)
    counts["lines"] = _rewritten(out, target)
    return counts


def _table(folder: Path, path: Path) -> Table | None:
    return None if path.name.endswith(".dropped.parquet") else read_table(folder, path.stem)


def _of_file(tables: dict[str, Table], name: str) -> tuple[Target, Withdrawn]:
    rows = tables["probe"].rows if "probe" in tables else []
    given = Path(name)
    wanted = {row["sha256"] for row in rows if name in (row["path"], row["name"], Path(row["path"]).name)}
    if not wanted and given.is_file():
        wanted = {sha256_of(given)}
    mine = [row for row in rows if row["sha256"] in wanted]
    if not mine:
        known = sorted({Path(row["path"]).name for row in rows})
        raise InputError(f"no file {name!r} was mined here{nearest(name, known) if len(known) < 20 else ''}")
    names, paths = frozenset(row["name"] for row in mine), frozenset(row["path"] for row in mine)
    clips = frozenset(row["clip"] for row in _rows(tables, "clips") if row["file"] in names)
    tracks = frozenset(row["track"] for row in _rows(tables, "faces") if row["file"] in names)
    return Target(names, paths, clips, tracks), Withdrawn(files=tuple(wanted))


def _of_speaker(tables: dict[str, Table], speaker: str) -> tuple[Target, Withdrawn]:
    """Every track in which the speaker is heard, in whatever file, by the table of splits or of speakers."""
    told = {row["clip"] for name in ("splits", "speakers") for row in _rows(tables, name) if row["speaker"] == speaker}
    if not told:
        names = sorted({row["speaker"] for row in _rows(tables, "splits")})
        raise InputError(f"there is no speaker {speaker!r}{nearest(speaker, names) if 0 < len(names) < 50 else ''}")
    tracks = {row["track"] for row in _rows(tables, "clips") if row["clip"] in told}
    clips = {row["clip"] for row in _rows(tables, "clips") if row["track"] in tracks}
    digests = {row["file"]: row["sha256"] for row in _rows(tables, "files")}
    seen = [row for row in _rows(tables, "faces") if row["track"] in tracks]
    spans = tuple((row["file"], row["start"], row["end"]) for row in seen)
    by_digest = tuple((digests[file], start, end) for file, start, end in spans)
    return Target(clips=frozenset(clips | told), tracks=frozenset(tracks), spans=spans), Withdrawn(spans=by_digest)


def _rows(tables: dict[str, Table], name: str) -> list[Row]:
    return tables[name].rows if name in tables else []


def _cleared(folder: Path, table: Table, target: Target) -> int:
    """Rewrite a table without what goes, if there is any; returns how many rows went."""
    if table.name in ("probe", "files") and not target.files:
        return 0  # a speaker's file stays: others may be in it
    rows = [row for row in table.rows if not target.takes(row)]
    gone = [row for row in table.dropped if not target.takes(row)]
    removed = len(table.rows) + len(table.dropped) - len(rows) - len(gone)
    if removed:
        rewrite_table(folder, table, rows, gone)
    return removed


def _forgotten(ledger: Ledger, target: Target) -> int:
    """Forget the outcomes of files that go, and of files in which something goes: a later run makes them anew."""
    touched = target.files | target.paths | {file for file, _, _ in target.spans}
    if ledger.path.stem == "probe" and not target.files:
        return 0
    return ledger.keep(lambda entry: entry["file"] not in touched)


def _removed(out: Path, target: Target) -> int:
    count = 0
    for folder in ("clips", "references", "originals"):
        for path in (out / folder).glob("*.*"):
            if path.stem in target.clips:
                try:
                    path.unlink()
                except OSError as error:
                    raise OutputError(f"cannot remove {path}: {error.strerror}; remove it by hand") from error
                count += 1
    return count


def _rewritten(out: Path, target: Target) -> int:
    """The manifest without lines that go, and the splits without their clips; returns how many lines went."""
    frozen = read_frozen(out / SPLITS_NAME)
    kept = {clip: who for clip, who in frozen.clips.items() if clip not in target.clips}
    if len(kept) < len(frozen.clips):
        left = set(kept.values())
        write_frozen(
            out / SPLITS_NAME, Frozen({who: split for who, split in frozen.speakers.items() if who in left}, kept)
        )
    return sum(_without_lines(path, lambda line: _named(line) & target.clips) for path in sorted(out.glob("*.jsonl")))


def _without_lines(path: Path, goes: Callable[[dict[str, Any]], Any]) -> int:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not goes(json.loads(line))]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))
    return len(lines) - len(kept)


def _named(line: dict[str, Any]) -> set[str]:
    """The clips that a line of the manifest is made of."""
    return {Path(str(line[key])).stem for key in ("video", "reference") if key in line}
