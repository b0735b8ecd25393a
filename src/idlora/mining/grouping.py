# SPDX-License-Identifier: Apache-2.0
"""Voices of several files as speakers: nearest neighbours that are mutual, joined to groups above a threshold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from idlora.mining.likeness import Likeness, means_of
from idlora.mining.neighbours import Neighbours, index_of, of_others, searched
from idlora.mining.settings import SpeakerRules
from idlora.mining.tables import Row
from idlora.mining.thresholds import Bars, Law, bars_of

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]
Truths = NDArray[np.bool_]

GROUPS = {"clip": "text", "file": "text", "voice": "text", "speaker": "text"}
LINKS = {
    "first": "text", "second": "text", "file": "text", "reference_file": "text", "score": "number",
    "strangers": "number", "mutual": "truth", "same": "truth", "doubt": "truth", "linked": "number",
    "doubtful": "number", "foretold": "number",
}  # fmt: skip

_MORE = 16  # neighbours that are looked at for doubts alone
_ROUNDS = 2  # of learning again from what was linked
_JOININGS = 10  # rounds of joining at the most, each with neighbours that are not joined yet
_ASKED = 5000  # voices, drawn, whose neighbours tell how many strangers there are
_WIDEST = 2048  # neighbours of each of them at the most
_ENTRIES = 10_000_000  # neighbours of all voices that are kept at the most, where more than usual are needed
_COMPARED = 64  # members of a group, evenly spread, that are compared with those of another at the most
_BLOCK = 2000  # voices of a label that are compared all with all at the most
_SEED = 1
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
        sets = _sets(likeness.scores(means[own]), _SURE, "complete")
        for number in np.unique(sets):
            inside = np.flatnonzero(sets == number)
            voice_of[[own[place] for place in inside]] = min(own[place] for place in inside)
    _, numbers = np.unique(voice_of[heard.tracks], return_inverse=True)
    return np.asarray(numbers, np.int64)


def _sets(scores: Floats, least: float, method: str) -> Classes:
    """The set (N,) of each of some voices: the likeliest are joined first, as long as two sets score above `least`.

    Args:
        scores: (N, N).
        least: of two sets.
        method: `complete`, the score of two sets is that of their least likely members, or `average`, it is the mean.
    """
    rows, columns = np.triu_indices(len(scores), 1)
    values = scores[rows, columns]
    if not len(values) or values.max() <= least:
        return np.arange(len(scores))
    top = values.max()
    sets = fcluster(linkage(top - values, method), np.nextafter(top - least, -np.inf), "distance")
    return np.asarray(sets, np.int64)


def labelled(labels: Sequence[str], files: Classes, likeness: Likeness, means: Floats) -> Classes:
    """The group (V,) of every voice by labels alone: voices of one label, unless they speak against it.

    A label says who should be heard in a file, and a guest may be heard there too. So voices of a label are joined,
    the likeliest first, as long as their members are in the mean likelier one speaker than two.
    """
    groups = np.arange(len(labels))
    own: dict[str, list[int]] = {}
    for voice, label in enumerate(labels):
        if label:
            own.setdefault(label, []).append(voice)
    for voices in own.values():
        inside = np.array(voices)
        sets = _sets_of_label(likeness, means[inside], files[inside])
        firsts = np.unique(sets, return_index=True, return_inverse=True)
        groups[inside] = inside[firsts[1]][firsts[2]]
    return groups


def _sets_of_label(likeness: Likeness, means: Floats, files: Classes) -> Classes:
    """The set (N,) of every voice of one label; of very many those of a block first, then the blocks' sets."""
    if len(means) <= _BLOCK:
        scores = likeness.scores(means)
        # Two voices of one file were found to be two: others must speak for it that they are one after all.
        return _sets(np.where(files[:, None] == files, np.minimum(scores, 0.0), scores), 0.0, "average")
    sets, count = np.zeros(len(means), np.int64), 0
    for start in range(0, len(means), _BLOCK):
        block = slice(start, start + _BLOCK)
        sets[block] = np.unique(_sets_of_label(likeness, means[block], files[block]), return_inverse=True)[1] + count
        count = int(sets[block].max()) + 1
    if count > len(means) // 2:  # hardly anybody is like another: further rounds would not end
        return sets
    return _sets_of_label(likeness, means_of(means, sets), np.arange(count))[sets]


@dataclass(frozen=True, eq=False)
class _Links:
    """Neighbours: pairs (L, 2) of voices, their scores and expected strangers (L,), which are mutual (L,), the bars."""

    pairs: Classes
    scores: Floats
    strangers: Floats
    mutual: Truths
    bars: Bars


def _linked(heard: Heard, voices: Classes, likeness: Likeness, rules: SpeakerRules) -> tuple[_Links, Classes]:
    """The neighbours of every voice with their scores, and the group (V,) of every voice."""
    firsts = np.unique(voices, return_index=True)[1]
    labels = [heard.labels[at] for at in firsts]
    recordings, files = (
        np.asarray(np.unique([told[at] for at in firsts], return_inverse=True)[1], np.int64)
        for told in (heard.recordings, heard.files)
    )
    means = means_of(heard.vectors, voices)
    points, copies = likeness.points(means), likeness.points(means_of(heard.copies[:, 0], voices))
    least = 2 * rules.neighbours + _MORE
    near, law = _neighbours(points, recordings, np.linalg.norm(points - copies, axis=1), least)
    pairs, groups = near.pairs, labelled(labels, files, likeness, means)
    strangers = law.strangers(near.lengths)
    possible = _may_be_one(labels, files, pairs)
    allowed = possible & (groups[pairs[:, 0]] != groups[pairs[:, 1]])  # what is known is neither counted nor linked
    told = law.strangers(np.linalg.norm(points - copies, axis=1))

    def unlike(first: list[int], second: list[int]) -> float:
        """Mean logarithm of the strangers expected nearer than the members of two groups are."""
        across = np.linalg.norm(points[_some(first)][:, None] - points[_some(second)], axis=-1)
        return float(np.log(law.strangers(across)).mean())

    mutual = np.zeros(len(pairs), bool)
    for _ in range(_JOININGS):
        # Whoever is joined already makes room for the next: else the nearest of a speaker who is in many recordings
        # would be one another's alone, and never reach the rest.
        mutual |= near.mutual(groups, rules.neighbours)
        bars = bars_of(strangers[mutual & allowed], told, len(points), rules.false_links)
        good = mutual & allowed & (strangers <= bars.linked)
        most = np.full(int(good.sum()), np.log(max(bars.doubtful, 1e-300)))
        before, groups = groups, joined(groups, pairs[good], strangers[good], Unlike(unlike, most), labels)
        if np.array_equal(before, groups):
            break
    queries, keys = likeness.keys(means)
    scores = np.einsum("nd,nd->n", queries[pairs[:, 0]], keys[pairs[:, 1]])
    shown = near.nearest(least) | (strangers <= bars.doubtful) & (groups[pairs[:, 0]] != groups[pairs[:, 1]])
    shown &= possible
    mutual |= near.mutual(np.arange(len(points)), rules.neighbours)
    return _Links(pairs[shown], scores[shown], strangers[shown], mutual[shown], bars), groups


def _some(members: Sequence[int]) -> Sequence[int]:
    """Of very many members some, evenly spread."""
    if len(members) <= _COMPARED:
        return members
    return [members[place] for place in np.linspace(0, len(members) - 1, _COMPARED).astype(int)]


def _neighbours(points: Floats, recordings: Classes, copies: Floats, count: int) -> tuple[Neighbours, Law]:
    """The neighbours of every voice in other recordings, and the law of strangers.

    Where speakers are in so many recordings that the neighbours show no strangers, more of them are asked for, of so
    many voices as fit. What lies nearer than a voice lies to its own copies (V,) does not tell the law: there may be
    nobody else.
    """
    size, typical = len(points), float(np.median(copies))
    index, everyone = index_of(points), np.arange(size)
    asked = everyone
    if size > _ASKED:
        asked = np.sort(np.random.default_rng(_SEED).choice(size, _ASKED, replace=False))

    def asked_for(voices: Classes, many: int) -> Neighbours:
        return Neighbours(*of_others(*searched(index, points[voices], min(size, many)), voices, recordings))

    near = told = asked_for(everyone, count)
    if size > _ASKED:
        told = Neighbours(near.distances[asked], near.places[asked])
    many = count
    while True:
        lengths = told.lengths if size <= _ASKED else told.distances.ravel()  # each pair once, or from one side
        law = replace(Law.of(lengths, size if size <= _ASKED else 2 * _ASKED, typical), others=size - 1)
        if law.settled or many >= min(size, _WIDEST):
            break
        many *= 2
        told = asked_for(asked, many)
    fitting = min(many, _ENTRIES // size)
    if size <= _ASKED:
        return told, law
    return (asked_for(everyone, fitting) if fitting > count else near), law


def _may_be_one(labels: Sequence[str], files: Classes, pairs: Classes) -> Truths:
    """Which pairs (L, 2) may be linked: voices of one file were compared already, and two labels are two speakers."""
    _, names = np.unique(["", *labels], return_inverse=True)  # 0 = nobody has said
    first, second = names[1:][pairs[:, 0]], names[1:][pairs[:, 1]]
    one_file = files[pairs[:, 0]] == files[pairs[:, 1]]
    return np.asarray(~one_file & ((first == 0) | (second == 0) | (first == second)))


@dataclass(frozen=True, eq=False)
class Unlike:
    """How unlike groups may be that are joined.

    Attributes:
        between: of the members of two groups.
        most: value (L,) above which a link does not join its groups.
    """

    between: Callable[[list[int], list[int]], float]
    most: Floats


def joined(groups: Classes, pairs: Classes, ranks: Floats, unlike: Unlike, labels: Sequence[str] = ()) -> Classes:
    """The group (V,) of every voice: the best links first, and none that joins what is unlike on the whole.

    One wrong link must not make one speaker of two, so the members of both groups are compared, all with all. Nor are
    two labels ever one speaker, whoever is like both.

    Args:
        groups: what is joined already: of each voice (V,) the smallest number in its group.
        pairs: links (L, 2).
        ranks: (L,) of each link, the best the smallest.
        unlike: what is not joined.
        labels: of the voices; empty where nobody has said.
    """
    groups = groups.copy()
    members: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for voice, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(voice)
        if labels and labels[voice]:
            names[group] = labels[voice]
    for place in np.argsort(ranks, kind="stable"):
        first, second = sorted(int(groups[voice]) for voice in pairs[place])
        name, other = names.get(first), names.get(second)
        if first == second or (name and other and name != other):
            continue
        if unlike.between(members[first], members[second]) > unlike.most[place]:
            continue
        members[first] = sorted(members[first] + members.pop(second))
        groups[members[first]] = first
        if other:
            names[first] = other
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


def doubts_of(links: Sequence[Row], speakers: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    """Of each speaker those who may be the same, by links above the lower threshold.

    Args:
        links: rows of `LINKS`.
        speakers: of every voice, by its name.
    """
    found: dict[str, set[str]] = {}
    for row in links:
        if not row["doubt"]:
            continue
        for first in speakers.get(row["first"], ()):
            for second in speakers.get(row["second"], ()):
                if first != second:
                    found.setdefault(first, set()).add(second)
                    found.setdefault(second, set()).add(first)
    return found
