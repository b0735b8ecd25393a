# SPDX-License-Identifier: Apache-2.0
"""Whether the face that is seen is who is heard: the lips' movement against the sound, utterance by utterance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, sosfiltfilt

from idlora.data.media.timeline import read_mono
from idlora.evaluation.judges.sounds import pearson
from idlora.mining.mapping import Item, Outcome
from idlora.mining.settings import FaceRules
from idlora.mining.tables import Row, dropped

Floats = NDArray[np.float64]

STILL, APART, UNSEEN = "lips do not move", "lips do not follow the sound", "nobody is seen while somebody speaks"
RATE = 16_000
COLUMNS = {
    "file": "text", "track": "text", "start": "number", "end": "number",
    "follow": "number", "late": "number", "moved": "number",
}  # fmt: skip

_BAND = (250.0, 3500.0)  # Hz, where voices are
_JOIN = 0.4  # seconds of a pause within an utterance
_AROUND = 0.25  # seconds before and after it that are compared too: lips shut in pauses
_SHIFT = 0.2  # seconds by which sound may be early or late
_LEAST = 12  # frames
_SHORTEST = 0.1  # seconds of an utterance within a track that count


def active_of(item: Item) -> Outcome:
    """The utterances of a file that a seen face says, with their correlation; and those that none does.

    Raises:
        MediaError: the sound cannot be decoded.
    """
    rules = FaceRules(**item["rules"])
    utterances = joined([(start, end) for start, end in item["speech"]])
    if not utterances:
        return {"rows": [], "dropped": []}
    begin = item["start"]
    energy = energy_of(read_mono(item["path"], RATE, begin, item["end"]), rules.rate)
    rows: list[Row] = []
    gone: list[Row] = []
    for utterance in utterances:
        kept, reasons = _judged(utterance, item["tracks"], energy, begin, rules)
        rows += kept
        gone += [dropped(f"{item['file']}@{span[0]:.2f}", item["file"], why, span=span) for why, span in reasons]
    return {"rows": rows, "dropped": gone}


def joined(spans: list[tuple[float, float]], pause: float = _JOIN) -> list[tuple[float, float]]:
    """Stretches of speech with short pauses closed: utterances."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if found and start - found[-1][1] <= pause:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def energy_of(sound: NDArray[np.float32], rate: float) -> Floats:
    """Square root of the root mean square (T,) of the band of voices, `rate` times a second."""
    band = sosfiltfilt(butter(2, _BAND, "bandpass", fs=RATE, output="sos"), sound.astype(np.float64))
    count = int(len(sound) / RATE * rate)
    edges = np.round(np.arange(count + 1) * RATE / rate).astype(int)
    sums = np.concatenate([[0.0], np.cumsum(np.square(band))])
    return np.asarray(np.maximum((sums[edges[1:]] - sums[edges[:-1]]) / np.maximum(1, np.diff(edges)), 0) ** 0.25)


Judged = tuple[list[Row], list[tuple[str, tuple[float, float]]]]


def _judged(
    utterance: tuple[float, float], tracks: list[dict[str, Any]], energy: Floats, begin: float, rules: FaceRules
) -> Judged:
    """The part of an utterance in every track that covers some of it."""
    start, end = utterance
    rows: list[Row] = []
    reasons: list[tuple[str, tuple[float, float]]] = []
    seen = [track for track in tracks if min(end, track["end"]) - max(start, track["start"]) >= _SHORTEST]
    if not seen:
        return [], [(UNSEEN, utterance)]
    for track in seen:
        span = (max(start, track["start"]), min(end, track["end"]))
        around = (max(span[0] - _AROUND, track["start"]), min(span[1] + _AROUND, track["end"]))
        opening = np.asarray(track["opening"], np.float64)
        first, last = (round((second - track["start"]) * rules.rate) for second in around)
        follow, late, moved = followed(opening[first:last], energy, (around[0] - begin) * rules.rate, rules.rate)
        if last - first < _LEAST:
            reasons.append((UNSEEN, span))  # too little of it is seen to be told
        elif moved < rules.least_moved:
            reasons.append((STILL, span))
        elif follow < rules.least_follow:
            reasons.append((APART, span))
        else:
            row = {"track": track["track"], "start": span[0], "end": span[1]}
            rows.append({**row, "follow": follow, "late": late, "moved": moved})
    return rows, reasons


def followed(opening: Floats, energy: Floats, first: float, rate: float) -> tuple[float, float, float]:
    """How lips (F,) follow a sound (T,) whose frame `first` is theirs: correlation, seconds it is late, movement.

    The best correlation within 0.2 s either way; movement is the range of the middle 90 % of the opening.
    """
    moved = float(np.ptp(np.percentile(opening, (5, 95)))) if len(opening) else 0.0
    if len(opening) < _LEAST:
        return 0.0, 0.0, moved
    most = round(_SHIFT * rate)
    found = [(_at(opening, energy, round(first) + shift), shift) for shift in range(-most, most + 1)]
    best, shift = max(found, key=lambda each: (each[0], -abs(each[1])))
    return best, shift / rate, moved


def _at(opening: Floats, energy: Floats, first: int) -> float:
    low, high = max(0, -first), min(len(opening), len(energy) - first)
    if high - low < _LEAST:
        return 0.0
    return pearson(opening[low:high], energy[first + low : first + high])
