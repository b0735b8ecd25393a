# SPDX-License-Identifier: Apache-2.0
"""A file or a speaker taken back: everything that was derived is removed, and no later run derives it again.

What is derived is found by name: a file's name begins with the digest of its contents, that of whatever is made of it
begins with the file's, and a clip's ends in when it begins. So the list of what was taken back is enough to find all of
it, in whatever state an interruption or other settings left the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from idlora.errors import InputError, nearest
from idlora.files import sha256_of, write_text
from idlora.mining import manifest
from idlora.mining.cutting import removed
from idlora.mining.ledger import Entry, Ledger, is_ledger
from idlora.mining.splits import Frozen, read_frozen, write_frozen
from idlora.mining.tables import Row, Table, read_table, remove_table, rewrite_table

LIST_NAME = "withdrawn.json"
SPLITS_NAME = "splits.json"
Span = tuple[float, float]

_ID = 16  # digits of a digest with which names begin
_LAST = ("clips", "faces", "probe")  # tables and outcomes by which names are found: the others go before them
_STRETCHES = ("scenes", "speech")  # tables of what several people share: what is left of their rows stays
_TOUCH = 0.05  # seconds by which what is nobody's may reach into a stretch: more than a frame
_EVER = 1e9  # seconds


@dataclass(frozen=True)
class Withdrawn:
    """What was taken back.

    Attributes:
        files: whole files by the digest of their contents.
        spans: stretches of others.
        pending: what was asked for, while its removal is not done.
    """

    files: tuple[str, ...] = ()
    spans: tuple[tuple[str, float, float], ...] = ()
    pending: str = ""

    def of(self, digest: str) -> list[Span]:
        """The stretches of a file that were taken back."""
        return [(start, end) for name, start, end in self.spans if digest.startswith(name)]


def read_withdrawn(out: Path) -> Withdrawn:
    """What was taken back from a folder (InputError if its list cannot be read)."""
    path = out / LIST_NAME
    if not path.is_file():
        return Withdrawn()
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        spans = tuple((str(name), float(start), float(end)) for name, start, end in told["spans"])
        return Withdrawn(tuple(told["files"]), spans, str(told.get("pending", "")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); restore it: without it what was taken back returns"
        ) from error


def _write(out: Path, withdrawn: Withdrawn) -> None:
    told = {"files": withdrawn.files, "spans": withdrawn.spans}
    pending = {"pending": withdrawn.pending} if withdrawn.pending else {}
    write_text(out / LIST_NAME, json.dumps({**told, **pending}, indent=1) + "\n")


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
        files: whole files by the first digits of their digests.
        spans: stretches of others, by the same.
        paths: where the whole files lie, or lay.
    """

    files: frozenset[str]
    spans: Mapping[str, tuple[Span, ...]]
    paths: frozenset[str] = frozenset()

    def clip(self, name: str) -> bool:
        """Whether a clip goes, by its name."""
        begins = name.rpartition("-")[2]
        spans = self.spans.get(name[:_ID], ()) if begins.isdigit() else ()
        return name[:_ID] in self.files or any(start <= int(begins) / 1000 < end for start, end in spans)

    def takes(self, row: Row) -> bool:
        """Whether a row of any table is derived from it."""
        named = [str(row.get(name) or "") for name in ("file", "reference_file", "sha256")]
        if self.files & {name[:_ID] for name in named} or self.paths & {row.get("path"), named[0]}:
            return True
        if any(self.clip(str(row.get(name) or "")) for name in ("clip", "reference", "item", "first", "second")):
            return True
        if row.get("start") is None or row.get("end") is None or "path" in row:
            return False
        spans = self.spans.get(named[0][:_ID], ())
        return any(min(row["end"], end) - max(row["start"], start) > _TOUCH for start, end in spans)

    def left(self, table: str, row: Row) -> list[Row]:
        """What is left of a row: of stretches that several people share the others' part, else all or nothing."""
        spans = self.spans.get(str(row.get("file", ""))[:_ID], ())
        if table in _STRETCHES and "reason" not in row and spans and row["file"][:_ID] not in self.files:
            return [{**row, "start": low, "end": high} for low, high in without((row["start"], row["end"]), spans)]
        return [] if self.takes(row) else [row]


def withdraw(out: Path, speaker: str = "", file: str = "", report: Callable[[], object] = str) -> dict[str, int]:
    """Remove a speaker, or a file with all that is in it; returns how much of each kind was removed.

    Tables, kept outcomes, clips, references, splits and manifest are rewritten without it. A call that was interrupted
    is ended by the next one, or by the next run. What other commands made of the manifest before (latents, adapters)
    lies elsewhere and is not found.

    Args:
        out: folder of `idlora pairs`.
        speaker: a name of the manifest.
        file: path, file name, or name in the tables.
        report: called when all is removed; writes the report anew.

    Raises:
        InputError: not one of the two is given, there is nothing of that name, or a name is that of several.
        OutputError: something cannot be rewritten.
    """
    if bool(speaker) == bool(file):
        raise InputError("name either a speaker or a file to withdraw")
    asked = f"speaker {speaker}" if speaker else f"file {file}"
    before = read_withdrawn(out)
    shelf = _Shelf.of(out)
    if not shelf.tables and not before.pending:
        raise InputError(f"{out} holds no tables of `idlora pairs`; name its folder")
    unknown: InputError | None = None
    after = replace(before, pending=before.pending or asked)
    try:
        told = _of_speaker(shelf, speaker) if speaker else _of_file(shelf, file)
        files, spans = sorted({*before.files, *told.files}), sorted({*before.spans, *told.spans})
        after = Withdrawn(tuple(files), tuple(spans), asked)
    except InputError as error:
        if not before.pending:
            raise
        unknown = None if asked == before.pending else error  # else the call before has removed its name already
    # First the list: whatever ends this command early, no later run brings back what was to go.
    _write(out, after)
    counts = _purged(out, after)
    report()
    _write(out, replace(after, pending=""))
    if unknown is not None:
        raise unknown
    return counts


def ended(out: Path) -> Withdrawn:
    """What was taken back, after an interrupted removal is brought to its end (its errors see `withdraw`)."""
    withdrawn = read_withdrawn(out)
    if withdrawn.pending:
        _purged(out, withdrawn)
        withdrawn = replace(withdrawn, pending="")
        _write(out, withdrawn)
    return withdrawn


def _purged(out: Path, withdrawn: Withdrawn) -> dict[str, int]:
    """Remove all that was derived of what was taken back, what names are found by last of all."""
    frozen = read_frozen(out / SPLITS_NAME)  # first: if it was changed by hand, that is told before anything goes
    ledgers = {path.stem: Ledger(path) for path in sorted((out / "cache").glob("*.jsonl")) if is_ledger(path)}
    target = _target(withdrawn, _Shelf.of(out))
    counts = {"rows": 0, "outcomes": 0, "files": 0, "lines": 0}
    counts["lines"] = manifest.without_clips(out, target.clip)
    counts["files"] = removed(out, lambda _, clip: target.clip(clip))
    kept = {clip: who for clip, who in frozen.clips.items() if not target.clip(clip)}
    if len(kept) < len(frozen.clips):
        left = set(kept.values())
        speakers = {who: split for who, split in frozen.speakers.items() if who in left}
        write_frozen(out / SPLITS_NAME, Frozen(speakers, kept))
    for name in sorted({*ledgers, *_names(out)}, key=lambda each: (each in _LAST, each)):
        if name in ledgers:
            counts["outcomes"] += ledgers[name].change(_left_of(name, target))
        counts["rows"] += _cleared(out / "tables", name, target)
    return counts


def _target(withdrawn: Withdrawn, shelf: _Shelf) -> Target:
    spans: dict[str, tuple[Span, ...]] = {}
    for name, start, end in withdrawn.spans:
        spans[name[:_ID]] = (*spans.get(name[:_ID], ()), (start, end))
    paths = {row["path"] for row in shelf.probes if row["sha256"] in withdrawn.files}
    others = {row["path"] for row in shelf.rows("probe") if row["sha256"] not in withdrawn.files}
    return Target(frozenset(name[:_ID] for name in withdrawn.files), spans, frozenset(paths - others))


def _names(out: Path) -> set[str]:
    return {path.name.removesuffix(".parquet").removesuffix(".dropped") for path in (out / "tables").glob("*.parquet")}


def _cleared(folder: Path, name: str, target: Target) -> int:
    """Rewrite a table without what goes, if there is any; returns how many rows went or are others."""
    table = read_table(folder, name)
    if table is None:  # half of it was written: nobody reads it, and it is made anew
        remove_table(folder, name)
        return 0
    rows = [part for row in table.rows for part in target.left(name, row)]
    gone = [row for row in table.dropped if not target.takes(row)]
    changed = sum(target.left(name, row) != [row] for row in table.rows) + len(table.dropped) - len(gone)
    if changed:
        rewrite_table(folder, table, rows, gone)
    return changed


def _left_of(name: str, target: Target) -> Callable[[Entry], Entry | None]:
    """An outcome without what goes: of shared stretches the rest, else nothing; a later run makes it anew."""

    def left(entry: Entry) -> Entry | None:
        file, outcome = entry["file"], entry["outcome"]
        if target.files & {file[:_ID]} or file in target.paths:
            return None
        rows = [({**row} if name == "probe" else {**row, "file": file}) for row in outcome.get("rows", ())]
        parts = [target.left(name, row) for row in rows]
        if any(target.takes(row) for row in outcome.get("dropped", ())):
            return None
        if all(part == [row] for part, row in zip(parts, rows, strict=True)):
            return entry
        if name not in _STRETCHES:
            return None
        own = [{key: value for key, value in row.items() if key != "file"} for part in parts for row in part]
        return {**entry, "outcome": {**outcome, "rows": own}}

    return left


class _Shelf(NamedTuple):
    """What a folder knows of files and speakers.

    Attributes:
        out: the folder.
        tables: by name.
        probes: what files hold or held: those of the table, then those that are only in the cache.
        frozen: the splits.
    """

    out: Path
    tables: Mapping[str, Table]
    probes: Sequence[Row]
    frozen: Frozen

    @classmethod
    def of(cls, out: Path) -> _Shelf:
        """All that is there."""
        found = {name: table for name in _names(out) if (table := read_table(out / "tables", name)) is not None}
        rows = found["probe"].rows if "probe" in found else []
        there = {row["sha256"] for row in rows}
        cached = [row for entry in _entries(out, "probe") for row in entry["outcome"].get("rows", ())]
        former = [row for row in cached if row["sha256"] not in there]
        return cls(out, found, [*rows, *former], read_frozen(out / SPLITS_NAME))

    def rows(self, name: str) -> list[Row]:
        """Of a table; none if it is not there."""
        return self.tables[name].rows if name in self.tables else []


def _entries(out: Path, name: str) -> list[Entry]:
    path = out / "cache" / f"{name}.jsonl"
    return [entry for _, entry in Ledger(path).entries()] if is_ledger(path) else []


def _of_file(shelf: _Shelf, name: str) -> Withdrawn:
    """The digests of a path, of a file's name in the tables, or of the end of a path that is one file's alone."""
    whole = Path(name).absolute()
    tests: tuple[Callable[[Row], bool], ...] = (
        lambda row: name in (row["path"], row["name"]) or whole == Path(row["path"]).absolute(),
        lambda row: name[:_ID] == row["sha256"][:_ID] and row["sha256"].startswith(name.partition("-")[0]),
        lambda row: Path(row["path"]).as_posix().endswith(f"/{name}"),
    )
    found = next((rows for test in tests if (rows := [row for row in shelf.probes if test(row)])), [])
    digests, paths = {row["sha256"] for row in found}, sorted({row["path"] for row in found})
    if len(digests) > 1 and len(paths) > 1:
        told = ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")
        raise InputError(f"{name!r} is the name of {len(paths)} files; name one by its path: {told}")
    if not found and Path(name).is_file():
        digest = sha256_of(name)
        clips = {*shelf.frozen.clips, *(row["clip"] for row in shelf.rows("clips"))}
        if digest in {row["sha256"] for row in shelf.probes} or digest[:_ID] in {clip[:_ID] for clip in clips}:
            digests = {digest}
    if not digests:
        known = sorted({Path(row["path"]).name for row in shelf.probes})
        raise InputError(f"no file {name!r} was mined here{nearest(name, known) if 0 < len(known) < 20 else ''}")
    return Withdrawn(files=tuple(sorted(digests)))


def _of_speaker(shelf: _Shelf, speaker: str) -> Withdrawn:
    """All of the speaker's files but what other known speakers are seen in."""
    clips, others = _clips_of(shelf, speaker)
    digests = {row["sha256"][:_ID]: row["sha256"] for row in shelf.probes}
    own, foreign = _begins(clips), _begins(others)
    spans: set[tuple[str, float, float]] = set()
    for file in {clip.rpartition("-")[0] for clip in clips}:
        name = file[:_ID]
        theirs = [
            (low, high)
            for low, high in _tracks(shelf, name)
            if any(low <= at < high for at in foreign.get(name, ()))
            and not any(low <= at < high for at in own.get(name, ()))
        ]
        extents = {(row["start"], row["end"]) for row in shelf.probes if row["name"] == file} or {(0.0, _EVER)}
        parts = [part for extent in extents for part in without(extent, theirs)]
        spans |= {(digests.get(name, name), start, end) for start, end in parts}
    return Withdrawn(spans=tuple(spans))


def _begins(clips: set[str]) -> dict[str, list[float]]:
    """Seconds at which clips begin, by the digits of their files."""
    found: dict[str, list[float]] = {}
    for clip in clips:
        found.setdefault(clip[:_ID], []).append(int(clip.rpartition("-")[2]) / 1000)
    return found


def _clips_of(shelf: _Shelf, speaker: str) -> tuple[set[str], set[str]]:
    """All clips of a speaker, by the splits and by the voices that this run joined; and those of other speakers."""
    named = {**shelf.frozen.clips, **{row["clip"]: row["speaker"] for row in shelf.rows("splits")}}
    groups = {row["clip"]: row["speaker"] for row in shelf.rows("speakers")}
    names = {speaker} if speaker in named.values() else {
        named[clip] for clip, group in groups.items() if group == speaker and clip in named
    }  # fmt: skip
    if len(names) > 1:
        raise InputError(f"{speaker!r} joins speakers of the splits; name one of {', '.join(sorted(names))}")
    joined = {group for clip, group in groups.items() if group == speaker or named.get(clip) in names}
    clips = {clip for clip, who in named.items() if who in names}
    clips |= {clip for clip, group in groups.items() if group in joined and clip not in named}
    if not clips:
        known = sorted({*named.values()})
        raise InputError(f"there is no speaker {speaker!r}{nearest(speaker, known) if 0 < len(known) < 50 else ''}")
    return clips, {*named, *groups} - clips


def _tracks(shelf: _Shelf, digest: str) -> list[Span]:
    """Where somebody is seen in a file, or was in one that is mined no more."""
    rows = [row for row in shelf.rows("faces") if row["file"][:_ID] == digest]
    if not rows:
        entries = (entry for entry in _entries(shelf.out, "faces") if entry["file"][:_ID] == digest)
        rows = [row for entry in entries for row in entry["outcome"].get("rows", ())]
    return [(row["start"], row["end"]) for row in rows]
