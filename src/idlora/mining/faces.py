# SPDX-License-Identifier: Apache-2.0
"""Stretches in which one large frontal face is seen, within a shot; what is seen instead elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np

from idlora.data.media.timeline import frames_between
from idlora.mining.finders.base import FaceFinder, Frames, Seen, finder_named
from idlora.mining.mapping import Item, Outcome
from idlora.mining.settings import FaceRules
from idlora.mining.tables import Row, dropped

ONE, NONE, SMALL, SEVERAL, TURNED, SHORT = (
    "one face", "no face", "face too small", "several faces", "face turned away", "face seen too briefly"
)  # fmt: skip
_RIVAL = 0.5  # of the largest face's height, from which on another one counts
_SAME = 0.3  # overlap of the boxes of one face in two frames on end
_CHUNK = 250  # frames that a finder is given at once
_LEAST_TOLD = 0.5  # seconds of something else that are worth a line among what was dropped

COLUMNS = {
    "file": "text", "track": "text", "start": "number", "end": "number",
    "left": "number", "top": "number", "width": "number", "height": "number", "turned": "number", "opening": "numbers",
}  # fmt: skip


@cache
def _finder(name: str) -> FaceFinder:
    return finder_named(name)


def tracks_of(item: Item) -> Outcome:
    """The tracks in the shots of a file, and what was seen where there is none.

    Raises:
        MediaError: the file cannot be decoded.
        SettingsError: the finder is not installed.
    """
    rules = FaceRules(**item["rules"])
    rows: list[Row] = []
    gone: list[Row] = []
    for start, end in item["scenes"]:
        seen = list(_seen_in(item["path"], start, end, rules))
        found, other = tracks(seen, rules)
        rows += [_row(item["file"], seen, track, (start, rules.rate)) for track in found]
        gone += [_gone(item["file"], reason, start, span, rules.rate) for reason, span in other]
    return {"rows": rows, "dropped": told(gone)}


def _seen_in(path: str, start: float, end: float, rules: FaceRules) -> Iterator[list[Seen]]:
    finder, chunk = _finder(rules.finder), []
    for frame in frames_between(path, rules.rate, start, end - 0.5 / rules.rate, rules.max_side):
        chunk.append(frame)
        if len(chunk) == _CHUNK:
            yield from _asked(finder, chunk)
            chunk = []
    if chunk:
        yield from _asked(finder, chunk)


def _asked(finder: FaceFinder, chunk: Sequence[Frames]) -> list[list[Seen]]:
    sizes = {frame.shape for frame in chunk}
    if len(sizes) > 1:  # a stream may change its size; such a shot shows nothing that can be followed
        return [[] for _ in chunk]
    return finder.find(np.stack(chunk))


@dataclass(frozen=True)
class Track:
    """Frames from `first` up to `last` (not with it) that show one face."""

    first: int
    last: int


def tracks(seen: Sequence[Sequence[Seen]], rules: FaceRules) -> tuple[list[Track], list[tuple[str, Track]]]:
    """Tracks of one shot, and the stretches that are none with what is seen in them.

    Gaps up to `most_gap` within a track are closed; a face that jumps begins a new one.
    """
    states = _closed([state_of(faces, rules) for faces in seen], round(rules.most_gap * rules.rate))
    found: list[Track] = []
    other: list[tuple[str, Track]] = []
    first = 0
    for state, run in groupby(states):
        last = first + len(list(run))
        if state == ONE:
            for track in _unbroken(seen, first, last):
                long = track.last - track.first >= rules.least_seconds * rules.rate
                found += [track] if long else []
                other += [] if long else [(SHORT, track)]
        else:
            other.append((state, Track(first, last)))
        first = last
    return found, other


def state_of(faces: Sequence[Seen], rules: FaceRules) -> str:
    """What one frame shows."""
    if not faces:
        return NONE
    heights = sorted((face.height for face in faces), reverse=True)
    if len(heights) > 1 and heights[1] >= max(_RIVAL * heights[0], rules.least_height / 2):
        return SEVERAL
    largest = _largest(faces)
    if largest.height < rules.least_height:
        return SMALL
    return TURNED if largest.turned > rules.most_turned else ONE


def _largest(faces: Sequence[Seen]) -> Seen:
    return max(faces, key=lambda face: face.height)


def _closed(states: list[str], gap: int) -> list[str]:
    """States in which short breaks between frames of one face count as such; several faces never do."""
    closed = list(states)
    first = 0
    for state, run in groupby(states):
        last = first + len(list(run))
        inner = first > 0 and last < len(states)
        if (
            state in (NONE, SMALL, TURNED)
            and inner
            and last - first <= gap
            and closed[first - 1] == states[last] == ONE
        ):
            closed[first:last] = [ONE] * (last - first)
        first = last
    return closed


def _unbroken(seen: Sequence[Sequence[Seen]], first: int, last: int) -> list[Track]:
    """A stretch parted where the face jumps to another place, which only another face does."""
    parts, begin, before = [], first, None
    for number in range(first, last):
        face = _largest(seen[number]) if seen[number] else None
        if before is not None and face is not None and before.overlap(face) < _SAME:
            parts.append(Track(begin, number))
            begin = number
        before = face or before
    return [*parts, Track(begin, last)]


def _row(file: str, seen: Sequence[Sequence[Seen]], track: Track, clock: tuple[float, float]) -> Row:
    start, rate = clock
    numbers = range(track.first, track.last)
    faces = {number: _largest(seen[number]) for number in numbers if seen[number]}
    opening = np.interp(list(numbers), list(faces), [face.opening for face in faces.values()])
    middle: dict[str, Any] = {
        name: float(np.median([getattr(face, name) for face in faces.values()]))
        for name in ("left", "top", "width", "height", "turned")
    }
    span = {"start": start + track.first / rate, "end": start + track.last / rate}
    name = f"{file}-t{round(span['start'] * 1000):08d}"
    return {"track": name, **span, **middle, "opening": [float(np.float32(value)) for value in opening]}


def _gone(file: str, reason: str, start: float, track: Track, rate: float) -> Row:
    span = (start + track.first / rate, start + track.last / rate)
    return dropped(f"{file}@{span[0]:.2f}", file, reason, span=span)


def told(rows: Sequence[Row]) -> list[Row]:
    """Of what was seen instead of a face, that which lasts."""
    return [row for row in rows if row["end"] - row["start"] >= _LEAST_TOLD]
