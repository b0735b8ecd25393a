# SPDX-License-Identifier: Apache-2.0
"""Pairs: a clip, and as its reference another recording of the same speaker, in conditions both near and far."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice, zip_longest

import numpy as np
from numpy.typing import NDArray

from idlora.evaluation.judges.conditions import Acoustics, bins_of
from idlora.mining.settings import PairRules
from idlora.mining.tables import Row, dropped

ALONE, WORDS, ENOUGH = "no other recording of the speaker", "words shared with every reference", "enough of the speaker"
OTHER, SAME = "other recording", "same recording"
COLUMNS = {
    "pair": "text", "clip": "text", "reference": "text", "file": "text", "reference_file": "text", "speaker": "text",
    "relation": "text", "distance": "number", "bin": "whole", "shared": "texts",
}  # fmt: skip


_POOL = 64  # references, of all of a speaker's recordings alike, among which those of a clip are looked for


@dataclass(frozen=True, eq=False)
class Candidate:
    """A clip that may be paired: where it is from, what is said in and around it, how it sounds.

    Spans are in seconds of its video; `video` is a digest of that, since several files may be parts of one.
    """

    clip: str
    file: str
    recording: str
    speaker: str
    words: frozenset[str]
    reference_words: frozenset[str]
    span: tuple[float, float]
    reference_span: tuple[float, float]
    acoustics: Acoustics
    video: str = ""


def candidates(
    clips: Sequence[Row], quality: Mapping[str, Row], words: Mapping[str, Row], speakers: Mapping[str, str],
    files: Mapping[str, Row],
) -> list[Candidate]:  # fmt: skip
    """Clips of known speakers whose words are known, from the tables by clip, and that of files by file."""
    found = []
    for row in clips:
        name = row["clip"]
        if name not in speakers or name not in words or name not in quality:
            continue
        told, measured = words[name], quality[name]
        spectrum = np.asarray(measured["spectrum"], np.float64)
        sound = Acoustics(measured["loudness"], measured["contrast"], measured["rt60"], spectrum)
        found.append(
            Candidate(
                clip=name,
                file=row["file"],
                recording=files[row["file"]]["recording"],
                speaker=speakers[name],
                words=frozenset(told["text"].split()),
                reference_words=frozenset(told["reference_text"].split()),
                span=(row["start"], row["end"]),
                reference_span=(row["reference_start"], row["reference_end"]),
                acoustics=sound,
                video=files[row["file"]]["sha256"],
            )
        )
    return found


@dataclass(frozen=True, eq=False)
class _Option:
    """A clip with one possible reference."""

    clip: Candidate
    reference: Candidate
    relation: str
    distance: float


def pairs_of(
    all_clips: Sequence[Candidate], rules: PairRules, tested: Set[str] = frozenset()
) -> tuple[list[Row], list[Row]]:
    """The pairs of every speaker, at most `per_speaker`, filling the bins of distance alike; clips that have none.

    A clip is a target once at most. References of other recordings come first; those of its own are taken where the
    speaker has no other, and are marked. Clips of speakers who are `tested` are paired a second time with a reference
    of their own recording, where there is one: the easy test beside the hard one. Of a speaker with very many clips a
    part are looked through for references, so that the work grows with the clips and not with their square.
    """
    options: dict[str, list[_Option]] = {}
    gone: list[Row] = []
    speakers: dict[str, list[Candidate]] = {}
    for clip in all_clips:
        speakers.setdefault(clip.speaker, []).append(clip)
    pools = {speaker: _pool(own) for speaker, own in speakers.items()}
    for clip in all_clips:
        possible, reason = _options(clip, speakers[clip.speaker], pools[clip.speaker], rules)
        if reason:
            gone.append(dropped(clip.clip, clip.file, reason, span=clip.span))
        else:
            options[clip.clip] = possible
    edges = _edges([option.distance for each in options.values() for option in each], rules.bins)
    rows: list[Row] = []
    for speaker in sorted(speakers):
        mine = {clip.clip: options[clip.clip] for clip in speakers[speaker] if clip.clip in options}
        chosen = _spread(mine, edges, rules)
        rows += [_row(option, place) for option, place in chosen]
        if speaker in tested:
            twins = [_easy(option.clip, speakers[speaker], rules) for option, _ in chosen if option.relation == OTHER]
            rows += [_row(twin, _bin(twin, edges)) for twin in twins if twin is not None]
        taken = {option.clip.clip for option, _ in chosen}
        left = [each[0].clip for name, each in mine.items() if name not in taken]
        gone += [dropped(clip.clip, clip.file, ENOUGH, span=clip.span) for clip in left]
    return rows, gone


def _pool(clips: Sequence[Candidate]) -> Sequence[Candidate]:
    """Of very many clips some, drawn by their names, from each recording in turn."""
    if len(clips) <= _POOL:
        return clips
    drawn: dict[str, list[Candidate]] = {}
    for clip in sorted(clips, key=lambda each: hashlib.sha256(each.clip.encode()).hexdigest()):
        drawn.setdefault(clip.recording, []).append(clip)
    turns = (clip for turn in zip_longest(*drawn.values()) for clip in turn if clip is not None)
    return list(islice(turns, _POOL))


def _options(
    clip: Candidate, others: Sequence[Candidate], pool: Sequence[Candidate], rules: PairRules
) -> tuple[list[_Option], str]:
    """What a clip may be paired with, of a pool of the speaker's clips, else of all; and why there is nothing."""
    reason = ALONE
    for some in (pool, others):
        near = [(other, OTHER) for other in some if other.recording != clip.recording and _other_seconds(clip, other)]
        if not near and rules.same_recording and all(other.recording == clip.recording for other in others):
            near = [(other, SAME) for other in _of_its_own(clip, some)]
        fitting = list(islice(((other, how) for other, how in near if _fit(clip, other, rules)), _POOL))
        if fitting:
            return [_Option(clip, other, how, clip.acoustics.distance(other.acoustics)) for other, how in fitting], ""
        reason = WORDS if near else reason
        if len(some) == len(others):
            break
    return [], reason


def _fit(clip: Candidate, reference: Candidate, rules: PairRules) -> bool:
    return rules.share_words or clip.words.isdisjoint(reference.reference_words)


def _of_its_own(clip: Candidate, others: Iterable[Candidate]) -> list[Candidate]:
    """References of the clip's own recording that do not overlap with it."""
    here = [other for other in others if other.recording == clip.recording and other.clip != clip.clip]
    return [other for other in here if _other_seconds(clip, other)]


def _other_seconds(clip: Candidate, reference: Candidate) -> bool:
    """Whether a reference is of other seconds: files that are parts of one video share its clock."""
    one_video = (clip.video or clip.file) == (reference.video or reference.file)
    return not one_video or _apart(clip.span, reference.reference_span)


def _easy(clip: Candidate, others: Sequence[Candidate], rules: PairRules) -> _Option | None:
    fitting = [other for other in _of_its_own(clip, others) if _fit(clip, other, rules)]
    options = [_Option(clip, other, SAME, clip.acoustics.distance(other.acoustics)) for other in fitting]
    return min(options, key=_lot, default=None)


def _apart(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return min(first[1], second[1]) <= max(first[0], second[0])


def _edges(distances: Sequence[float], bins: int) -> NDArray[np.float64]:
    """Inner edges of the bins; none where there are too few distances to part."""
    values = np.asarray(distances, np.float64)
    return bins_of(values, bins)[0][1:-1] if len(values) >= bins else np.zeros(0)


def _spread(
    options: Mapping[str, list[_Option]], edges: NDArray[np.float64], rules: PairRules
) -> list[tuple[_Option, int]]:
    """One option a clip, each time of the bin that has the fewest pairs so far; ties by a digest of the names."""
    by_bin: dict[int, list[tuple[str, _Option]]] = {}
    for each in options.values():
        for option in each:
            by_bin.setdefault(_bin(option, edges), []).append((_lot(option), option))
    for drawn in by_bin.values():
        drawn.sort(key=lambda lot: lot[0], reverse=True)  # the next one stands last
    counts = dict.fromkeys(by_bin, 0)
    chosen: list[tuple[_Option, int]] = []
    taken: set[str] = set()
    while len(chosen) < rules.per_speaker:
        for place, drawn in list(by_bin.items()):
            while drawn and drawn[-1][1].clip.clip in taken:
                drawn.pop()
            if not drawn:
                del by_bin[place]
        if not by_bin:
            break
        place = min(by_bin, key=lambda each: (counts[each], by_bin[each][-1][0]))
        _, option = by_bin[place].pop()
        counts[place] += 1
        chosen.append((option, place))
        taken.add(option.clip.clip)
    return sorted(chosen, key=lambda each: each[0].clip.clip)


def _bin(option: _Option, edges: NDArray[np.float64]) -> int:
    return int(np.searchsorted(edges, option.distance, side="right"))


def _lot(option: _Option) -> str:
    return hashlib.sha256(f"{option.clip.clip} {option.reference.clip}".encode()).hexdigest()


def _row(option: _Option, place: int) -> Row:
    clip, reference = option.clip, option.reference
    return {
        "pair": f"{clip.clip}-{hashlib.sha256(reference.clip.encode()).hexdigest()[:6]}",
        "clip": clip.clip,
        "reference": reference.clip,
        "file": clip.file,
        "reference_file": reference.file,
        "speaker": clip.speaker,
        "relation": option.relation,
        "distance": option.distance,
        "bin": place,
        "shared": sorted(clip.words & reference.reference_words),
    }
