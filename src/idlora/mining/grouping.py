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
from idlora.mining.thresholds import Bars, Law, bars_of

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]

GROUPS = {"clip": "text", "file": "text", "voice": "text", "speaker": "text"}
LINKS = {
    "first": "text", "second": "text", "file": "text", "reference_file": "text", "score": "number",
    "strangers": "number", "mutual": "truth", "same": "truth", "doubt": "truth", "linked": "number",
    "doubtful": "number", "foretold": "number",
}  # fmt: skip

_MORE = 16  # neighbours that are looked at for doubts alone
_ROUNDS = 2  # of learning again from what was linked
# How much likelier one speaker than two are a file's tracks that are one voice: some guests are like their hosts.
_SURE = float(np.log(100))


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
        vectors: (N, D).
        copies: (N, C, D), of the same in other rooms.
    """

    names: list[str]
    files: list[str]
    recordings: list[str]
    labels: list[str]
    tracks: Classes
    vectors: Floats
    copies: Floats


def grouped(files: Sequence[Row], clips: Sequence[Row], vectors: Sequence[Row], rules: SpeakerRules) -> Grouping:
    """Who speaks in every clip.

    Args:
        files: of the table of files.
        clips: of those to be grouped.
        vectors: with `vector` and `copies`, by clip.
        rules: how.
    """
    heard = heard_of(files, clips, vectors)
    if not heard.names:
        return Grouping([], [])
    voices = heard.tracks
    likeness = learnt(heard, voices)
    voices = merged(heard, likeness)
    links, groups = _linked(heard, voices, learnt(heard, voices), rules)
    for _ in range(_ROUNDS):
        links, groups = _linked(heard, voices, learnt(heard, voices, groups[voices]), rules)
    return Grouping(_rows(heard, voices, groups), _link_rows(heard, voices, links, groups))


def heard_of(files: Sequence[Row], clips: Sequence[Row], vectors: Sequence[Row]) -> Heard:
    """Tables as arrays."""
    by_file, told = {row["file"]: row for row in files}, {row["clip"]: row for row in vectors}
    rows = [row for row in clips if row["clip"] in told]
    if not rows:
        return Heard([], [], [], [], np.zeros(0, np.int64), np.zeros((0, 1)), np.zeros((0, 1, 1)))
    _, tracks = np.unique([row["track"] for row in rows], return_inverse=True)
    plain = np.array([told[row["clip"]]["vector"] for row in rows], np.float64).reshape(len(rows), -1)
    copies = np.array([told[row["clip"]]["copies"] for row in rows], np.float64)
    return Heard(
        names=[row["clip"] for row in rows],
        files=[row["file"] for row in rows],
        recordings=[by_file[row["file"]]["recording"] for row in rows],
        labels=[by_file[row["file"]]["label"] for row in rows],
        tracks=np.asarray(tracks, np.int64),
        vectors=plain,
        copies=copies.reshape(len(rows), -1, max(1, plain.shape[1])),
    )


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
    """The voice (N,) of every clip: tracks of one file that are far likelier one speaker than two, all with all."""
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
    best, found = _SURE, None
    for first in range(len(sets)):
        for second in range(first + 1, len(sets)):
            least = float(scores[np.ix_(sets[first], sets[second])].min())
            if least > best:
                best, found = least, (first, second)
    return found


@dataclass(frozen=True, eq=False)
class _Links:
    """Neighbours: pairs (L, 2) of voices, their scores and expected strangers (L,), which are mutual (L,), the bars."""

    pairs: Classes
    scores: Floats
    strangers: Floats
    mutual: NDArray[np.bool_]
    bars: Bars


def _linked(heard: Heard, voices: Classes, likeness: Likeness, rules: SpeakerRules) -> tuple[_Links, Classes]:
    """The neighbours of every voice with their scores, and the group (V,) of every voice."""
    firsts = np.unique(voices, return_index=True)[1]
    recordings, files, labels = ([told[at] for at in firsts] for told in (heard.recordings, heard.files, heard.labels))
    _, apart = np.unique(recordings, return_inverse=True)
    means = means_of(heard.vectors, voices)
    points, copies = likeness.points(means), likeness.points(means_of(heard.copies[:, 0], voices))
    distances, places = _of_others(*nearest(points, points, min(len(points), 2 * rules.neighbours + _MORE)), apart)
    pairs, lengths, mutual = _mutual(distances, places, rules.neighbours)
    law = Law.of(lengths, len(points))
    allowed = np.array([_may_be_one(labels[a], labels[b], files[a] == files[b]) for a, b in pairs], bool)
    pairs, lengths, mutual = pairs[allowed], lengths[allowed], mutual[allowed]
    strangers = law.strangers(lengths)
    bars = bars_of(
        strangers[mutual], law.strangers(np.linalg.norm(points - copies, axis=1)), len(points), rules.false_links
    )
    known = np.array([bool(labels[a]) and labels[a] == labels[b] for a, b in pairs], bool)
    queries, keys = likeness.keys(means)
    scores = np.einsum("nd,nd->n", queries[pairs[:, 0]], keys[pairs[:, 1]])
    # A label says who should be heard; the voice need only not speak against it.
    good = mutual & np.where(known, scores > 0, strangers <= bars.linked)
    links = _Links(pairs, scores, strangers, mutual, bars)

    def unlike(first: list[int], second: list[int]) -> float:
        """Mean logarithm of the strangers expected nearer than the members of two groups are."""
        across = np.linalg.norm(points[first][:, None] - points[second], axis=-1)
        return float(np.log(law.strangers(across)).mean())

    most = np.where(known[good], np.inf, np.log(max(bars.doubtful, 1e-300)))
    return links, joined(len(points), pairs[good], np.where(known, -np.inf, strangers)[good], Unlike(unlike, most))


def _may_be_one(first: str, second: str, one_file: bool) -> bool:
    """Voices of one file were compared already; two labels are two speakers."""
    return not one_file and not (first and second and first != second)


def _of_others(distances: Floats, places: Classes, apart: Classes) -> tuple[Floats, Classes]:
    """Neighbours (V, K) without the voice itself and others of its recording, nearest first; inf and -1 at the end."""
    own = (places < 0) | (apart[np.maximum(places, 0)] == apart[:, None])
    distances, places = np.where(own, np.inf, distances), np.where(own, -1, places)
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(places, order, axis=1)


def _mutual(distances: Floats, places: Classes, count: int) -> tuple[Classes, Floats, NDArray[np.bool_]]:
    """Each pair (L, 2) of neighbours once, the smaller number first; its distance, whether both are of the nearest."""
    near: list[dict[int, tuple[float, int]]] = []
    for own, lengths in zip(places.tolist(), distances.tolist(), strict=True):
        ranked = enumerate(zip(own, lengths, strict=True))
        near.append({other: (length, rank) for rank, (other, length) in ranked if other >= 0})
    pairs = sorted({(min(a, b), max(a, b)) for a, own in enumerate(near) for b in own})
    values = [(near[a].get(b) or near[b][a])[0] for a, b in pairs]
    mutual = [b in near[a] and a in near[b] and max(near[a][b][1], near[b][a][1]) < count for a, b in pairs]
    return np.array(pairs, np.int64).reshape(-1, 2), np.array(values, np.float64), np.array(mutual, bool)


@dataclass(frozen=True, eq=False)
class Unlike:
    """How unlike groups may be that are joined.

    Attributes:
        between: of the members of two groups.
        most: value (L,) above which a link does not join its groups.
    """

    between: Callable[[list[int], list[int]], float]
    most: Floats


def joined(count: int, pairs: Classes, ranks: Floats, unlike: Unlike) -> Classes:
    """The group (V,) of every voice: the best links first, and none that joins what is unlike on the whole.

    One wrong link must not make one speaker of two, so the members of both groups are compared, all with all.

    Args:
        count: of voices.
        pairs: links (L, 2).
        ranks: (L,) of each link, the best the smallest.
        unlike: what is not joined.
    """
    groups = np.arange(count)
    members = {voice: [voice] for voice in range(count)}
    for place in np.argsort(ranks, kind="stable"):
        first, second = sorted(int(groups[voice]) for voice in pairs[place])
        if first == second or unlike.between(members[first], members[second]) > unlike.most[place]:
            continue
        members[first] = sorted(members[first] + members.pop(second))
        groups[members[first]] = first
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
    bars, rows = links.bars, []
    told = zip(
        links.pairs.tolist(), links.scores.tolist(), links.strangers.tolist(), links.mutual.tolist(), strict=True
    )
    for (a, b), score, strangers, mutual in told:
        rows.append(
            {
                "first": first[a][0], "file": first[a][1], "second": first[b][0], "reference_file": first[b][1],
                "score": score, "strangers": strangers, "mutual": mutual, "same": bool(groups[a] == groups[b]),
                "doubt": strangers <= bars.doubtful, "linked": bars.linked, "doubtful": bars.doubtful,
                "foretold": bars.foretold,
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
