# SPDX-License-Identifier: Apache-2.0
"""Voices of several files as speakers: nearest neighbours that are mutual, joined to groups above a threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idlora.mining.likeness import Likeness, means_of
from idlora.mining.neighbours import nearest
from idlora.mining.settings import SpeakerRules
from idlora.mining.tables import Row
from idlora.mining.thresholds import Thresholds, chosen

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]

GROUPS = {"clip": "text", "file": "text", "voice": "text", "speaker": "text"}
LINKS = {
    "first": "text", "second": "text", "file": "text", "reference_file": "text", "score": "number", "mutual": "truth",
    "same": "truth", "doubt": "truth", "threshold": "number", "doubtful": "number", "foretold": "number",
}  # fmt: skip

_ROUNDS = 2  # of learning again from what was linked
_PITCH_NOISE = 0.1  # octaves by which one speaker's pitch differs from clip to clip, at the least
_SPREAD_NOISE = 0.05  # of the spread of pitch, likewise


@dataclass(frozen=True)
class Grouping:
    """Rows of `GROUPS` and of `LINKS`."""

    clips: list[Row]
    links: list[Row]


@dataclass(frozen=True, eq=False)
class Heard:
    """What is known of clips.

    Attributes:
        names: of the clips.
        files, recordings, labels: of each.
        tracks: number of the track (N,) of each.
        vectors: (N, D), with pitch.
        copies: (N, C, D), of the same in other rooms.
    """

    names: list[str]
    files: list[str]
    recordings: list[str]
    labels: list[str]
    tracks: Classes
    vectors: Floats
    copies: Floats


def grouped(
    files: Sequence[Row], clips: Sequence[Row], quality: Sequence[Row], vectors: Sequence[Row], rules: SpeakerRules
) -> Grouping:
    """Who speaks in every clip.

    Args:
        files: of the table of files.
        clips: of those to be grouped.
        quality: with `hertz` and `spread`, by clip.
        vectors: with `vector` and `copies`, by clip.
        rules: how.
    """
    heard = heard_of(files, clips, quality, vectors)
    if not heard.names:
        return Grouping([], [])
    voices = heard.tracks
    likeness = learnt(heard, voices)
    voices = merged(heard, likeness)
    links, groups = _linked(heard, voices, learnt(heard, voices), rules)
    for _ in range(_ROUNDS):
        links, groups = _linked(heard, voices, learnt(heard, voices, groups[voices]), rules)
    return Grouping(_rows(heard, voices, groups), _link_rows(heard, voices, links, groups))


def heard_of(files: Sequence[Row], clips: Sequence[Row], quality: Sequence[Row], vectors: Sequence[Row]) -> Heard:
    """Tables as arrays; pitch stands beside the vector as a second cue."""
    by_file, by_clip = {row["file"]: row for row in files}, {row["clip"]: row for row in quality}
    told = {row["clip"]: row for row in vectors}
    rows = [row for row in clips if row["clip"] in told and row["clip"] in by_clip]
    if not rows:
        return Heard([], [], [], [], np.zeros(0, np.int64), np.zeros((0, 1)), np.zeros((0, 1, 1)))
    _, tracks = np.unique([row["track"] for row in rows], return_inverse=True)
    plain = np.array([told[row["clip"]]["vector"] for row in rows], np.float64).reshape(len(rows), -1)
    copies = np.array([told[row["clip"]]["copies"] for row in rows], np.float64)
    copies = copies.reshape(len(rows), -1, max(1, plain.shape[1]))
    pitch = _pitch([by_clip[row["clip"]] for row in rows], plain)
    beside = np.repeat(pitch[:, None], copies.shape[1], axis=1)
    return Heard(
        names=[row["clip"] for row in rows],
        files=[row["file"] for row in rows],
        recordings=[by_file[row["file"]]["recording"] for row in rows],
        labels=[by_file[row["file"]]["label"] for row in rows],
        tracks=np.asarray(tracks, np.int64),
        vectors=np.concatenate([plain, pitch], axis=1),
        copies=np.concatenate([copies, beside], axis=2),
    )


def _pitch(rows: Sequence[Row], plain: Floats) -> Floats:
    """Octaves and spread (N, 2) in units of their noise, scaled to the noise of a direction of the vectors."""
    hertz = np.array([row["hertz"] for row in rows], np.float64)
    octaves = np.log2(np.where(hertz > 0, hertz, np.nan))
    middle = float(np.nanmedian(octaves)) if np.isfinite(octaves).any() else 0.0
    octaves = np.nan_to_num(octaves - middle, nan=0.0)
    spread = np.minimum(np.array([row["spread"] for row in rows], np.float64), 0.5)
    unit = float(plain.std(axis=0).mean()) + 1e-9 if len(plain) else 1.0
    return np.stack([octaves / _PITCH_NOISE, spread / _SPREAD_NOISE], axis=1).reshape(len(rows), 2) * unit


def learnt(heard: Heard, voices: Classes, speakers: Classes | None = None) -> Likeness:
    """The model of clips and copies: a class is a track, or a speaker where some are linked already."""
    count = heard.copies.shape[1]
    everything = np.concatenate([heard.vectors, heard.copies.reshape(-1, heard.vectors.shape[1])])
    classes = voices if speakers is None else speakers
    return Likeness.learnt(
        everything,
        np.concatenate([classes, np.repeat(classes, count)]),
        np.concatenate([classes, np.repeat(classes, count)]),
    )


def merged(heard: Heard, likeness: Likeness) -> Classes:
    """The voice (N,) of every clip: tracks of one file that are likelier one speaker than two, all with all."""
    means = means_of(heard.vectors, heard.tracks)
    files: dict[str, list[int]] = {}
    for file, track in dict.fromkeys(zip(heard.files, heard.tracks.tolist(), strict=True)):
        files.setdefault(file, []).append(track)
    voice_of = np.arange(len(means))
    for own in files.values():
        scores = likeness.scores(means[own])
        sets = [[place] for place in range(len(own))]
        while (best := _closest(sets, scores)) is not None:
            sets[best[0]] += sets.pop(best[1])
        for each in sets:
            voice_of[[own[place] for place in each]] = min(own[place] for place in each)
    _, numbers = np.unique(voice_of[heard.tracks], return_inverse=True)
    return np.asarray(numbers, np.int64)


def _closest(sets: list[list[int]], scores: Floats) -> tuple[int, int] | None:
    """The two sets whose least likely members are likeliest one speaker; None if no two are."""
    best, found = 0.0, None
    for first in range(len(sets)):
        for second in range(first + 1, len(sets)):
            least = float(scores[np.ix_(sets[first], sets[second])].min())
            if least > best:
                best, found = least, (first, second)
    return found


@dataclass(frozen=True, eq=False)
class _Links:
    """Neighbours: pairs (L, 2) of voices, their scores (L,), which are mutual (L,), and the thresholds."""

    pairs: Classes
    scores: Floats
    mutual: NDArray[np.bool_]
    thresholds: Thresholds


def _linked(heard: Heard, voices: Classes, likeness: Likeness, rules: SpeakerRules) -> tuple[_Links, Classes]:
    """The neighbours of every voice with their scores, and the group (V,) of every voice."""
    means = means_of(heard.vectors, voices)
    copies = means_of(heard.copies[:, 0], voices)
    firsts = np.unique(voices, return_index=True)[1]
    _, apart = np.unique([heard.recordings[first] for first in firsts], return_inverse=True)
    thresholds = chosen(likeness, means, copies, apart, rules.false_links)
    queries, keys = likeness.keys(means)
    scores, places = nearest(queries, keys, min(len(means), rules.neighbours + 4))
    links = _mutual(scores, places, apart, rules.neighbours)
    files = [heard.files[first] for first in firsts]
    labels = [heard.labels[first] for first in firsts]
    allowed = np.array([_may_be_one(labels[a], labels[b], files[a] == files[b]) for a, b in links.pairs], bool)
    links = _Links(links.pairs[allowed], links.scores[allowed], links.mutual[allowed], thresholds)
    known = np.array([bool(labels[a]) and labels[a] == labels[b] for a, b in links.pairs], bool)
    # A label says who should be heard; the voice need only not speak against it.
    enough = links.scores >= np.where(known, min(0.0, thresholds.doubtful), thresholds.linked)
    good = links.mutual & enough
    least = np.where(known[good], -np.inf, thresholds.doubtful)
    return links, joined(len(means), links.pairs[good], links.scores[good], Alike(likeness.scores, means, least))


def _may_be_one(first: str, second: str, one_file: bool) -> bool:
    """Voices of one file were compared already; two labels are two speakers."""
    return not one_file and not (first and second and first != second)


def _mutual(scores: Floats, places: Classes, apart: Classes, count: int) -> _Links:
    """Each pair of neighbours of two recordings once, the smaller number first."""
    near: dict[int, dict[int, float]] = {}
    for voice, (own, others) in enumerate(zip(scores, places, strict=True)):
        good = [(int(b), float(s)) for s, b in zip(own, others, strict=True) if b >= 0 and apart[b] != apart[voice]]
        near[voice] = dict(good[:count])
    pairs = sorted({(min(a, b), max(a, b)) for a, own in near.items() for b in own})
    values = [near[a][b] if b in near[a] else near[b][a] for a, b in pairs]
    mutual = [b in near[a] and a in near[b] for a, b in pairs]
    none = Thresholds(np.inf, np.inf, 0.0)
    return _Links(np.array(pairs, np.int64).reshape(-1, 2), np.array(values, np.float64), np.array(mutual, bool), none)


@dataclass(frozen=True, eq=False)
class Alike:
    """How alike groups must be to be joined.

    Attributes:
        score: of vectors (N, D) with one another (N, N).
        means: vector of every voice.
        least: mean score (L,) of the members of two groups below which a link does not join them.
    """

    score: Callable[[Floats], Floats]
    means: Floats
    least: Floats


def joined(count: int, pairs: Classes, scores: Floats, alike: Alike) -> Classes:
    """The group (V,) of every voice: the best links first, and none that joins what is unlike on the whole.

    Two groups are joined where a link says so and the mean score of all their members with one another is not below
    `least`: one wrong link must not make one speaker of two.
    """
    groups = np.arange(count)
    members = {voice: [voice] for voice in range(count)}
    for place in np.argsort(-scores, kind="stable"):
        first, second = (int(groups[voice]) for voice in pairs[place])
        if first == second:
            continue
        both = members[first] + members[second]
        across = alike.score(alike.means[both])[: len(members[first]), len(members[first]) :]
        if float(across.mean()) < alike.least[place]:
            continue
        kept, gone = min(first, second), max(first, second)
        members[kept] = sorted(both)
        del members[gone]
        groups[members[kept]] = kept
    return groups


def _rows(heard: Heard, voices: Classes, groups: Classes) -> list[Row]:
    """A row a clip; a voice is named by its first clip, a speaker by the first of all."""
    first: dict[int, str] = {}
    speaker: dict[int, str] = {}
    for name, voice in sorted(zip(heard.names, voices.tolist(), strict=True)):
        first.setdefault(voice, name)
        speaker.setdefault(int(groups[voice]), f"s-{name}")
    return [
        {"clip": name, "file": file, "voice": first[voice], "speaker": speaker[int(groups[voice])]}
        for name, file, voice in zip(heard.names, heard.files, voices.tolist(), strict=True)
    ]


def _link_rows(heard: Heard, voices: Classes, links: _Links, groups: Classes) -> list[Row]:
    first: dict[int, tuple[str, str]] = {}
    for name, file, voice in sorted(zip(heard.names, heard.files, voices.tolist(), strict=True)):
        first.setdefault(voice, (name, file))
    told = links.thresholds
    rows = []
    for (a, b), score, mutual in zip(links.pairs.tolist(), links.scores.tolist(), links.mutual.tolist(), strict=True):
        rows.append(
            {
                "first": first[a][0], "file": first[a][1], "second": first[b][0], "reference_file": first[b][1],
                "score": score, "mutual": mutual, "same": bool(groups[a] == groups[b]), "doubt": score >= told.doubtful,
                "threshold": told.linked, "doubtful": told.doubtful, "foretold": told.foretold,
            }
        )  # fmt: skip
    return rows


def doubts_of(links: Sequence[Row], speakers: Mapping[str, str]) -> dict[str, set[str]]:
    """Of each speaker those who may be the same, by links above the lower threshold."""
    found: dict[str, set[str]] = {}
    for row in links:
        first, second = speakers.get(row["first"]), speakers.get(row["second"])
        if row["doubt"] and first and second and first != second:
            found.setdefault(first, set()).add(second)
            found.setdefault(second, set()).add(first)
    return found
