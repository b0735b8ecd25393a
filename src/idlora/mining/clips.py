# SPDX-License-Identifier: Apache-2.0
"""Clips of the training length: they begin before an utterance, end in a pause, and hold nobody else's speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from idlora.mining.settings import ClipRules
from idlora.mining.tables import Row, dropped

Span = tuple[float, float]

BRIEF, ENDS, OTHERS, LITTLE, MANY = (
    "shot too short for a clip", "no pause to end in", "somebody else is heard", "too little speech", "enough clips"
)  # fmt: skip
COLUMNS = {
    "clip": "text", "file": "text", "track": "text", "start": "number", "end": "number", "speech": "number",
    "reference_start": "number", "reference_end": "number",
}  # fmt: skip
_AFTER = 0.04  # seconds by which a clip's ends keep away from speech: the detector is late by that much
_STEP = 0.02  # seconds between the beginnings that are tried


@dataclass(frozen=True)
class Stage:
    """What clips of one track are cut from.

    Attributes:
        low, high: seconds in which a clip may lie.
        own: speech of who is seen.
        foreign: speech of anybody else.
    """

    low: float
    high: float
    own: tuple[Span, ...]
    foreign: tuple[Span, ...]


def clips_of(
    file: str, tracks: Sequence[Row], active: Sequence[Row], speech: Sequence[Span], rules: ClipRules
) -> tuple[list[Row], list[Row]]:
    """The clips of a file, and the utterances that gave none with the reason.

    Args:
        file: its name.
        tracks: of the table of faces.
        active: utterances that a seen face says.
        speech: all stretches of speech.
        rules: how.
    """
    rows: list[Row] = []
    gone: list[Row] = []
    for track in tracks:
        said = [(row["start"], row["end"]) for row in active if row["track"] == track["track"]]
        if not said:
            continue
        stage = _stage(track, said, speech, rules)
        found, reasons = _cut(stage, rules)
        rows += [_row(file, track["track"], start, stage, rules) for start in found]
        gone += [dropped(f"{file}@{span[0]:.2f}", file, reason, span=span) for reason, span in reasons]
    gone += [dropped(row["clip"], file, MANY, span=(row["start"], row["end"])) for row in rows[rules.most :]]
    return rows[: rules.most], gone


def _stage(track: Row, said: Sequence[Span], speech: Sequence[Span], rules: ClipRules) -> Stage:
    own = tuple(span for span in speech if any(_common(span, one) > 0 for one in said))
    near = [span for span in speech if _common(span, (track["start"], track["end"])) > 0]
    foreign = tuple(span for span in near if span not in own)
    return Stage(track["start"] + rules.margin, track["end"] - rules.margin, own, foreign)


def _common(first: Span, second: Span) -> float:
    return min(first[1], second[1]) - max(first[0], second[0])


def _cut(stage: Stage, rules: ClipRules) -> tuple[list[float], list[tuple[str, Span]]]:
    """Beginnings of clips that do not overlap, first come first served; utterances that begin none."""
    found: list[float] = []
    reasons: list[tuple[str, Span]] = []
    free = stage.low
    for span in stage.own:
        if found and span[0] < found[-1] + rules.seconds:
            continue  # it is in the clip before
        start, reason = _begin(stage, span, free, rules)
        if start is None:
            reasons.append((reason, span))
        else:
            found.append(start)
            free = start + rules.seconds
    return found, [each for each in reasons if not _within(each[1], found, rules)]


def _within(span: Span, found: Sequence[float], rules: ClipRules) -> bool:
    return any(start <= span[0] and span[1] <= start + rules.seconds for start in found)


def _begin(stage: Stage, span: Span, free: float, rules: ClipRules) -> tuple[float | None, str]:
    """The latest good beginning in the pause before a stretch of speech; else why there is none."""
    before = [end for _, end in (*stage.own, *stage.foreign) if end <= span[0] - _AFTER]
    earliest = max(stage.low, free, max(before, default=stage.low) + _AFTER)
    latest = max(earliest, span[0] - rules.lead)
    if latest > span[0] - _AFTER / 2:
        return None, BRIEF  # the shot begins in the middle of a word
    if earliest + rules.seconds > stage.high:
        return None, BRIEF
    reasons = []
    start = min(latest, stage.high - rules.seconds)
    while start >= earliest - 1e-9:
        reason = _fault(stage, start, rules)
        if not reason:
            return start, ""
        reasons.append(reason)
        start -= _STEP
    return None, reasons[0] if reasons else BRIEF


def _fault(stage: Stage, start: float, rules: ClipRules) -> str:
    clip = (start, start + rules.seconds)
    if any(_common(span, clip) > 0 for span in stage.foreign):
        return OTHERS
    if any(span[0] - _AFTER < clip[1] < span[1] + _AFTER for span in stage.own):
        return ENDS
    spoken = sum(max(0.0, _common(span, clip)) for span in stage.own)
    return LITTLE if spoken < rules.least_speech * rules.seconds else ""


def _row(file: str, track: str, start: float, stage: Stage, rules: ClipRules) -> Row:
    start = round(start, 3)
    end = round(start + rules.seconds, 3)
    spoken = sum(max(0.0, _common(span, (start, end))) for span in stage.own)
    low, high = _reference((start, end), stage, rules)
    row: dict[str, Any] = {"clip": f"{file}-{round(start * 1000):08d}", "file": file, "track": track}
    return {**row, "start": start, "end": end, "speech": spoken, "reference_start": low, "reference_end": high}


def _reference(clip: Span, stage: Stage, rules: ClipRules) -> Span:
    """The clip widened to the length of a reference, from pause to pause, without anybody else's speech."""
    low, high = clip
    for span in sorted(stage.own, key=lambda each: abs(sum(each) / 2 - sum(clip) / 2)):
        wider = (min(low, span[0] - _AFTER), max(high, span[1] + _AFTER))
        clean = not any(_common(other, wider) > 0 for other in stage.foreign)
        inside = stage.low <= wider[0] and wider[1] <= stage.high
        if clean and inside and wider[1] - wider[0] <= max(rules.reference_seconds, rules.seconds):
            low, high = wider
    return round(low, 3), round(high, 3)
