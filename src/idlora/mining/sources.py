# SPDX-License-Identifier: Apache-2.0
"""Which recordings there are: a folder, a list, or a layout that others publish; and by what right they are used."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import translate
from pathlib import Path
from typing import Any, NamedTuple

from idlora.errors import InputError, nearest

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"
REFUSED = frozenset({"refused", "withdrawn", "no", "denied", "revoked", "declined", "rejected", "false", "not given"})
"""Consents with which a recording is never used, in whatever case."""

GRANTED = frozenset({"given", "granted", "yes", "true"})
"""Consents that count where consent is required."""

VIDEOS = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"})
_RIGHTS = ("source", "licence", "consent")
_TEXTS = ("path", "label", "recording", *_RIGHTS)
_CSV = "it is CSV with path, source, licence, consent"
_MOST_TOLD = 20  # lines of the table of rights that fit nothing


@dataclass(frozen=True)
class Source:
    """A stretch of a video file.

    Attributes:
        path: of the file.
        start, end: seconds of it that are looked at; the end may be infinite.
        label: who speaks, where the layout says so.
        recording: stretches of one recording share this name; the file's path by default.
        source: where it comes from.
        licence: under which it is used.
        consent: of who is to be seen; `unknown` where nobody has said.
    """

    path: Path
    start: float = 0.0
    end: float = math.inf
    label: str = ""
    recording: str = ""
    source: str = UNKNOWN
    licence: str = UNKNOWN
    consent: str = UNKNOWN


def find_sources(videos: Path, layout: str = "auto", lists: Path | None = None) -> list[Source]:
    """The recordings of a folder, list or layout, in order of their paths.

    Args:
        videos: a folder, one video file, or a list: text with a path a line, or JSON Lines of `Source`'s attributes.
        layout: one of `LAYOUTS`; `auto` is a list for a text file, else a folder.
        lists: the published JSON of `celebv-hq` and `talkvid`; `videos` is then the folder of their files.

    Raises:
        InputError: there is no such layout, a list cannot be read, or no video is found.
    """
    if layout not in LAYOUTS:
        raise InputError(f"there is no layout {layout!r}{nearest(layout, LAYOUTS)}")
    if not videos.exists():
        raise InputError(f"{videos} does not exist; name a folder of videos, or a list of their paths")
    if layout in _LISTED and lists is None:
        raise InputError(f"layout {layout} needs its published JSON; name it with --list")
    found = _listed(videos, layout, lists) if layout in _LISTED and lists else LAYOUTS[layout](videos)
    sources = sorted(found, key=lambda each: (each.path.as_posix(), each.start))
    if not sources:
        raise InputError(
            f"no video is found in {videos} by layout {layout}; known endings are {', '.join(sorted(VIDEOS))}"
        )
    return [each if each.recording else replace(each, recording=each.path.as_posix()) for each in sources]


def _files(folder: Path) -> Iterator[Path]:
    """The videos below a folder; linked folders too, each folder once and by its own path where it has one here."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for start in sorted(waiting):
            for here, folders, names in os.walk(start):
                if (real := os.path.realpath(here)) in seen:
                    folders.clear()
                    continue
                seen.add(real)
                links += [path for name in folders if (path := Path(here, name)).is_symlink()]
                videos = (Path(here, name) for name in names if not name.startswith("."))
                yield from (path for path in videos if path.suffix.lower() in VIDEOS and path.is_file())
        waiting = links


def _auto(videos: Path) -> list[Source]:
    return _folder(videos) if videos.is_dir() or videos.suffix.lower() in VIDEOS else _list(videos)


def _folder(videos: Path) -> list[Source]:
    """Every video below a folder; nobody says who speaks."""
    return [Source(path) for path in (_files(videos) if videos.is_dir() else [videos])]


def _list(path: Path) -> list[Source]:
    """A path a line, or an object a line; paths are relative to the list."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not at other ends of lines: names may hold them
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; a list is text") from error
    return [_of_line(line.strip(), path, number) for number, line in enumerate(lines, 1) if line.strip()]


def _of_line(line: str, path: Path, number: int) -> Source:
    if not line.startswith("{"):
        return Source(path.parent / line)
    try:
        told = json.loads(line)
        wrong = [key for key, value in told.items() if not _fits(key, value)]
        if wrong:
            raise ValueError(f"{wrong[0]} is {json.dumps(told[wrong[0]])[:60]}")
        return Source(**{**told, "path": path.parent / told["path"]})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        keys = ", ".join(Source.__dataclass_fields__)
        raise InputError(
            f"{path}, line {number} is no recording ({error}); its keys are {keys}: "
            "start and end are seconds, the others text"
        ) from error


def _fits(key: str, value: object) -> bool:
    """Whether a value may stand under a key; of unknown keys anything, since they are told as such."""
    if key in _TEXTS:
        return isinstance(value, str)
    if key in ("start", "end"):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (0 <= value < 1e9 or (key == "end" and value == math.inf))  # type: ignore[operator]
    return True


def _speakers(videos: Path) -> list[Source]:
    """A folder a speaker."""
    return [Source(path, label=path.relative_to(videos).parts[0]) for path in _files(videos) if path.parent != videos]


def _voxceleb(videos: Path) -> list[Source]:
    """speaker/recording/utterance: utterances of one folder are of one recording."""
    deep = (path for path in _files(videos) if len(path.relative_to(videos).parts) >= 3)
    return [
        Source(path, label=path.relative_to(videos).parts[-3], recording=path.parent.as_posix(), source=path.parts[-2])
        for path in deep
    ]


def _listed(videos: Path, layout: str, lists: Path) -> list[Source]:
    try:
        return _LISTED[layout](videos, _json(lists))
    except _EntryError as error:
        raise InputError(f"{lists}: {error}; correct it, or take it out of the list") from error


class _EntryError(Exception):
    """An entry of a published list that is none."""


def _celebv_hq(videos: Path, told: Any) -> list[Source]:
    """celebvhq_info.json: clips cut already (`<clip>.mp4`), or spans of whole videos (`<ytb_id>.mp4`)."""
    clips = told.get("clips") if isinstance(told, Mapping) else None
    if not isinstance(clips, Mapping):
        raise InputError("this is no list of CelebV-HQ: it has no `clips`; name celebvhq_info.json")
    by_name = {path.stem: path for path in _files(videos)}
    found = []
    for name, clip in clips.items():
        try:
            origin, span = str(clip["ytb_id"]), _span_of(clip["duration"], "start_sec", "end_sec")
        except (KeyError, TypeError, ValueError) as error:
            raise _EntryError(f"clip {name!r} has no ytb_id and duration ({error!r:.80})") from error
        given = {"recording": origin, "source": f"https://www.youtube.com/watch?v={origin}"}
        found += _of_names(by_name, (name,), origin, span, given)
    return found


def _talkvid(videos: Path, told: Any) -> list[Source]:
    """TalkVid's JSON: a list of clips, with the person's number; files by the clip's id or the video's."""
    if not isinstance(told, list) or not all(isinstance(clip, Mapping) and "start-time" in clip for clip in told):
        raise InputError("this is no list of TalkVid: a list of clips with `start-time` is expected")
    by_name = {path.stem: path for path in _files(videos)}
    found = []
    for number, clip in enumerate(told, 1):
        try:
            name, span, info = str(clip["id"]), _span_of(clip, "start-time", "end-time"), dict(clip.get("info", {}))
        except (KeyError, TypeError, ValueError) as error:
            raise _EntryError(f"clip {number} has no id, start-time, end-time and info ({error!r:.80})") from error
        link = str(info.get("Video Link", UNKNOWN))
        origin = link.rpartition("v=")[2].partition("&")[0] or name
        given = {"recording": origin, "source": link, "licence": "CC BY-NC 4.0"}
        if "Person ID" in info:
            given["label"] = f"person-{info['Person ID']}"
        found += _of_names(by_name, (name,), origin, span, given)
    return found


def _span_of(told: Mapping[str, Any], first: str, last: str) -> tuple[float, float]:
    start, end = float(told[first]), float(told[last])
    if not 0 <= start < end < 1e9:
        raise ValueError(f"it runs from {start:g} to {end:g} s")
    return start, end


def _of_names(
    by_name: Mapping[str, Path], cut: tuple[str, ...], whole: str, span: tuple[float, float], given: Mapping[str, Any]
) -> list[Source]:
    """The file that is cut to the clip, else the span of the whole video, else nothing."""
    for name in cut:
        if name in by_name:
            return [Source(by_name[name], **given)]
    return [Source(by_name[whole], *span, **given)] if whole in by_name else []


LAYOUTS: Mapping[str, Callable[[Path], list[Source]]] = {
    "auto": _auto,
    "folder": _folder,
    "list": _list,
    "speakers": _speakers,
    "voxceleb": _voxceleb,
    "celebv-hq": _folder,
    "talkvid": _folder,
}
_LISTED: Mapping[str, Callable[[Path, Any], list[Source]]] = {"celebv-hq": _celebv_hq, "talkvid": _talkvid}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; name the published JSON") from error


def with_rights(
    sources: Sequence[Source], table: Path | None, told: Callable[[str], object] = logger.warning
) -> list[Source]:
    """Sources with what a table says of them: CSV with `path` (a name or pattern), source, licence, consent.

    A name fits the files whose path ends in it, folder by folder; what is no file's name is a pattern of the same.
    Unicode's two spellings of a letter are one. The last line that fits a file counts; empty cells say nothing.

    Args:
        sources: recordings.
        table: the CSV file.
        told: of every line that fits no recording.

    Raises:
        InputError: the table cannot be read, has no column `path` or one of another name, or a line names no path.
    """
    if table is None:
        return list(sources)
    rights = _rights_of(table)
    paths = [_spellings(each.path) for each in sources]
    names: dict[str, list[int]] = {}
    for place, spellings in enumerate(paths):
        for name in {end for path in spellings for end in _ends(path)}:
            names.setdefault(name, []).append(place)
    said: list[dict[str, Any]] = [{} for _ in sources]
    missed = []
    for right in rights:
        places = names.get(right.path) or _matching(right.path, paths)
        missed += [] if places else [f"{table}, line {right.line}: {right.path!r} fits no recording"]
        for place in places:
            said[place] |= right.said
    for message in missed[:_MOST_TOLD]:
        told(message)
    if len(missed) > _MOST_TOLD:
        told(f"{table}: {len(missed) - _MOST_TOLD} more lines fit no recording")
    return [replace(each, **given) if given else each for each, given in zip(sources, said, strict=True)]


class _Right(NamedTuple):
    """A line of the table: its number, the name or pattern of files, and what it says of them."""

    line: int
    path: str
    said: dict[str, str]


def _rights_of(table: Path) -> list[_Right]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {table}: {error}; {_CSV}") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        return []
    columns = [cell.casefold() for cell in lines[0][1]]
    if "path" not in columns:
        raise InputError(f"{table} has no column `path`; {_CSV}")
    for name in filter(None, columns):
        if name not in ("path", *_RIGHTS) or columns.count(name) > 1:
            why = "twice" if columns.count(name) > 1 else "of which nothing is known"
            raise InputError(f"{table} has a column {name!r} {why}{nearest(name, ('path', *_RIGHTS))}")
    return [_right(table, number, cells, columns) for number, cells in lines[1:]]


def _right(table: Path, number: int, cells: Sequence[str], columns: Sequence[str]) -> _Right:
    told = dict(zip(columns, cells, strict=False))  # a short line says nothing of the rest
    if any(cells[len(columns) :]) or told.get(""):
        raise InputError(f"{table}, line {number} has more cells than columns; put quotes around what holds commas")
    path = unicodedata.normalize("NFC", told.get("path", ""))
    while path.startswith("./"):
        path = path[2:]
    if not path:
        raise InputError(f"{table}, line {number} names no path; name a file, or * for all of them")
    return _Right(number, path, {key: value for key in _RIGHTS if (value := told.get(key, ""))})


def _spellings(path: Path) -> tuple[str, str]:
    """A path as it was given and from the root on, letters in one spelling."""
    given, whole = (unicodedata.normalize("NFC", each.as_posix()) for each in (path, path.absolute()))
    return given, whole


def _ends(path: str) -> Iterator[str]:
    """A path, and what is left of it without the first folders."""
    yield path
    yield from (path[place + 1 :] for place, letter in enumerate(path) if letter == "/")


def _matching(pattern: str, paths: Sequence[tuple[str, str]]) -> list[int]:
    if not set(pattern) & set("*?["):
        return []
    fits = re.compile(f"(?s:(?:.*/)?){translate(pattern)}")
    return [place for place, spellings in enumerate(paths) if any(fits.match(path) for path in spellings)]


def row_of(source: Source) -> dict[str, Any]:
    """A source as a row of a table."""
    end = -1.0 if math.isinf(source.end) else float(source.end)
    return {**asdict(source), "path": source.path.as_posix(), "start": float(source.start), "end": end}


COLUMNS = {
    "path": "text", "start": "number", "end": "number", "label": "text", "recording": "text",
    "source": "text", "licence": "text", "consent": "text",
}  # fmt: skip
