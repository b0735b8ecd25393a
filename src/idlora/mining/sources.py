# SPDX-License-Identifier: Apache-2.0
"""Which recordings there are: a folder, a list, or a layout that others publish; and by what right they are used."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from idlora.errors import InputError, nearest

UNKNOWN = "unknown"
REFUSED = frozenset({"refused", "withdrawn", "no"})
"""Consents with which a recording is never used."""

VIDEOS = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"})
_RIGHTS = ("source", "licence", "consent")


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
    found = _LISTED[layout](videos, _json(lists)) if layout in _LISTED and lists else LAYOUTS[layout](videos)
    sources = sorted(found, key=lambda each: (each.path.as_posix(), each.start))
    if not sources:
        raise InputError(
            f"no video is found in {videos} by layout {layout}; known endings are {', '.join(sorted(VIDEOS))}"
        )
    return [each if each.recording else replace(each, recording=each.path.as_posix()) for each in sources]


def _files(folder: Path) -> Iterator[Path]:
    hidden = (path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS and path.is_file())
    yield from (path for path in hidden if not path.name.startswith("."))


def _auto(videos: Path) -> list[Source]:
    return _folder(videos) if videos.is_dir() or videos.suffix.lower() in VIDEOS else _list(videos)


def _folder(videos: Path) -> list[Source]:
    """Every video below a folder; nobody says who speaks."""
    return [Source(path) for path in (_files(videos) if videos.is_dir() else [videos])]


def _list(path: Path) -> list[Source]:
    """A path a line, or an object a line; paths are relative to the list."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; a list is text") from error
    return [_of_line(line.strip(), path, number) for number, line in enumerate(lines, 1) if line.strip()]


def _of_line(line: str, path: Path, number: int) -> Source:
    if not line.startswith("{"):
        return Source(path.parent / line)
    try:
        told = json.loads(line)
        return Source(**{**told, "path": path.parent / told["path"]})
    except (ValueError, TypeError, KeyError) as error:
        keys = ", ".join(Source.__dataclass_fields__)
        raise InputError(f"{path}, line {number} is no recording ({error}); its keys are {keys}") from error


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


def _celebv_hq(videos: Path, told: Any) -> list[Source]:
    """celebvhq_info.json: clips cut already (`<clip>.mp4`), or spans of whole videos (`<ytb_id>.mp4`)."""
    clips = told.get("clips") if isinstance(told, Mapping) else None
    if not isinstance(clips, Mapping):
        raise InputError("this is no list of CelebV-HQ: it has no `clips`; name celebvhq_info.json")
    by_name = {path.stem: path for path in _files(videos)}
    found = []
    for name, clip in clips.items():
        origin = str(clip["ytb_id"])
        given = {"recording": origin, "source": f"https://www.youtube.com/watch?v={origin}"}
        span = clip["duration"]
        found += _of_names(by_name, (name,), origin, (float(span["start_sec"]), float(span["end_sec"])), given)
    return found


def _talkvid(videos: Path, told: Any) -> list[Source]:
    """TalkVid's JSON: a list of clips, with the person's number; files by the clip's id or the video's."""
    if not isinstance(told, list) or not all(isinstance(clip, Mapping) and "start-time" in clip for clip in told):
        raise InputError("this is no list of TalkVid: a list of clips with `start-time` is expected")
    by_name = {path.stem: path for path in _files(videos)}
    found = []
    for clip in told:
        info, name = clip.get("info", {}), str(clip["id"])
        link = str(info.get("Video Link", UNKNOWN))
        origin = link.rpartition("v=")[2] or name
        given = {"recording": origin, "source": link, "licence": "CC BY-NC 4.0"}
        if "Person ID" in info:
            given["label"] = f"person-{info['Person ID']}"
        found += _of_names(by_name, (name,), origin, (float(clip["start-time"]), float(clip["end-time"])), given)
    return found


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


def with_rights(sources: list[Source], table: Path | None) -> list[Source]:
    """Sources with what a table says of them: CSV with `path` (a name or pattern), source, licence, consent.

    The last line that fits a file counts; empty cells say nothing.

    Raises:
        InputError: the table cannot be read or has no column `path`.
    """
    if table is None:
        return sources
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {table}: {error}; it is CSV with path, source, licence, consent") from error
    if rows and "path" not in rows[0]:
        raise InputError(f"{table} has no column `path`; it is CSV with path, source, licence, consent")
    return [_entitled(each, rows) for each in sources]


def _entitled(source: Source, rows: list[dict[str, str]]) -> Source:
    told: dict[str, Any] = {}
    for row in rows:
        if fnmatch(source.path.as_posix(), f"*{row['path']}") or fnmatch(source.path.name, row["path"]):
            told |= {key: value.strip() for key in _RIGHTS if (value := row.get(key) or "").strip()}
    return replace(source, **told) if told else source


def row_of(source: Source) -> dict[str, Any]:
    """A source as a row of a table."""
    end = -1.0 if math.isinf(source.end) else float(source.end)
    return {**asdict(source), "path": source.path.as_posix(), "start": float(source.start), "end": end}


COLUMNS = {
    "path": "text", "start": "number", "end": "number", "label": "text", "recording": "text",
    "source": "text", "licence": "text", "consent": "text",
}  # fmt: skip
