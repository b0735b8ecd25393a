# SPDX-License-Identifier: Apache-2.0
"""From verdicts to results: every measure by system and split with its interval, and systems against one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from idlora.errors import InputError
from idlora.evaluation.comparisons import Comparison, Table, compare, holm, interval
from idlora.evaluation.judges.base import Verdict
from idlora.evaluation.judges.conditions import bins_of
from idlora.evaluation.laboratory.manifest import Entry
from idlora.evaluation.laboratory.measures import MEASURES, Measure
from idlora.evaluation.statistics import Estimate

ALL = "all"
BINS = ("near", "middle", "far")
_SIGNIFICANT = 0.05


@dataclass(frozen=True, eq=False)
class Judged:
    """A clip and what was said of it."""

    entry: Entry
    verdict: Verdict


@dataclass(frozen=True)
class Line:
    """A measure of one system on one split: n clips of so many speakers; `asked` clips were to be judged."""

    system: str
    split: str
    measure: Measure
    estimate: Estimate
    n: int
    asked: int
    speakers: int

    def to_json(self) -> dict[str, Any]:
        """As JSON's own types; an interval that does not exist is null."""
        return {
            "system": self.system,
            "split": self.split,
            "measure": self.measure.name,
            "better": self.measure.better,
            **estimate_json(self.estimate),
            "n": self.n,
            "asked": self.asked,
            "speakers": self.speakers,
        }


@dataclass(frozen=True)
class Duel:
    """A system less the baseline, on the clips of one split that both have.

    `adjusted` is Holm's p over the systems that are compared by this measure on this split, `overall` over all measures
    too. The verdict rests on the first: it is for a measure that was named beforehand.
    """

    system: str
    baseline: str
    split: str
    measure: Measure
    comparison: Comparison
    adjusted: float = math.nan
    overall: float = math.nan

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `differs` where the adjusted p is below 0.05; else `undecided`."""
        if not self.adjusted < _SIGNIFICANT:
            return "undecided"
        if self.measure.better == "neither":
            return "differs"
        return "better" if (self.comparison.difference.value > 0) == (self.measure.better == "higher") else "worse"

    def to_json(self) -> dict[str, Any]:
        """As JSON's own types."""
        found = self.comparison
        return {
            "system": self.system,
            "baseline": self.baseline,
            "split": self.split,
            "measure": self.measure.name,
            "better": self.measure.better,
            **estimate_json(found.difference),
            "p": found.p,
            "p_holm": self.adjusted,
            "p_holm_all_measures": self.overall,
            "smallest_difference": _finite(found.smallest),
            "n": found.n,
            "speakers": found.speakers,
            "verdict": self.verdict,
        }


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """Value and interval, the interval null where there is none."""
    ends = [_finite(estimate.low), _finite(estimate.high)]
    return {"value": round(estimate.value, 5), "interval": None if None in ends else ends}


def _finite(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


@dataclass(frozen=True, eq=False)
class Results:
    """Everything that is reported.

    Attributes:
        systems: by name, the baseline first.
        lines: measures by system and split.
        duels: systems against the baseline.
        edges: of the bins of acoustic distance; empty without distances.
        distances: mean distance of each bin.
        faults: what the manifest says of two systems that keeps clips from being compared.
    """

    systems: tuple[str, ...]
    lines: tuple[Line, ...]
    duels: tuple[Duel, ...]
    edges: tuple[float, ...] = ()
    distances: tuple[float, ...] = ()
    faults: tuple[str, ...] = ()

    @classmethod
    def of(cls, judged: Sequence[Judged], baseline: str = "") -> Results:
        """Sum up; the baseline is the first system of the list unless one is named.

        Raises:
            InputError: there is no such system.
        """
        systems = systems_of([each.entry for each in judged], baseline)
        splits, edges, means = _splits(judged)
        lines = [line for part, inside in splits.items() for line in _lines(judged, systems, part, inside)]
        duels = [duel for part, inside in splits.items() for duel in _duels(judged, systems, part, inside)]
        return cls(systems, tuple(lines), tuple(duels), edges, means, _faults(judged, systems))

    def line(self, system: str, measure: str, split: str = ALL) -> Line | None:
        """One of the lines."""
        return next(
            (line for line in self.lines if (line.system, line.measure.name, line.split) == (system, measure, split)),
            None,
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON's own types."""
        return {
            "systems": list(self.systems),
            "acoustic_distance": {"edges": list(self.edges), "means": list(self.distances)},
            "rows": [line.to_json() for line in self.lines],
            "comparisons": [duel.to_json() for duel in self.duels],
            "not_compared": list(self.faults),
        }


def systems_of(entries: Sequence[Entry], baseline: str = "") -> tuple[str, ...]:
    """The systems in their order, the baseline first (InputError if there is no such system)."""
    names = list(dict.fromkeys(entry.system for entry in entries))
    if baseline and baseline not in names:
        raise InputError(f"there is no system {baseline!r} to compare with; there are {', '.join(names)}")
    first = baseline or names[0]
    return (first, *(name for name in names if name != first))


Inside = Callable[[Judged], bool]


def _splits(judged: Sequence[Judged]) -> tuple[dict[str, Inside], tuple[float, ...], tuple[float, ...]]:
    """Which clips belong to which split: all, easy and hard as the manifest says, and thirds by acoustic distance."""
    splits: dict[str, Inside] = {ALL: lambda _: True}
    for name in ("easy", "hard"):
        if any(each.entry.split == name for each in judged):
            splits[name] = lambda each, name=name: each.entry.split == name  # type: ignore[misc]
    # One distance an id, the first that is known, so that the bins are the same for every system.
    distances: dict[str, float] = {}
    for each in judged:
        if (value := each.verdict.value("conditions", "distance")) is not None:
            distances.setdefault(each.entry.id, float(value))
    if len(distances) < 2 * len(BINS) or len(set(distances.values())) < len(BINS):
        return splits, (), ()
    values = np.array(list(distances.values()))
    edges, places = bins_of(values, len(BINS))
    place_of = dict(zip(distances, places, strict=True))
    for index, name in enumerate(BINS):
        splits[name] = lambda each, index=index: place_of.get(each.entry.id) == index  # type: ignore[misc]
    means = [float(values[np.array(places) == index].mean()) for index in range(len(BINS))]
    return splits, tuple(round(float(edge), 4) for edge in edges), tuple(round(mean, 4) for mean in means)


def _lines(judged: Sequence[Judged], systems: Sequence[str], split: str, inside: Inside) -> list[Line]:
    lines = []
    for system in systems:
        chosen = [each for each in judged if each.entry.system == system and inside(each)]
        for measure in MEASURES:
            rows = _rows(chosen, measure)
            table = _table(rows.values())
            if table is not None:
                line = Line(system, split, measure, interval(table), len(rows), len(chosen), len(table.speakers))
                lines.append(line)
    return lines


Row = tuple[str, float, float]


def _rows(judged: Sequence[Judged], measure: Measure) -> dict[str, Row]:
    """Speaker, sum and weight of each clip that has the score, by id."""
    found = {each.entry.id: (each.entry.speaker, measure.parts(each.verdict)) for each in judged}
    return {name: (speaker, *parts) for name, (speaker, parts) in found.items() if parts is not None}


def _table(rows: Iterable[Row]) -> Table | None:
    """The table of rows; None of none."""
    given = list(rows)
    return Table.of(given) if given else None


def _duels(judged: Sequence[Judged], systems: Sequence[str], split: str, inside: Inside) -> list[Duel]:
    chosen = [each for each in judged if inside(each)]
    of: Mapping[str, list[Judged]] = {name: [each for each in chosen if each.entry.system == name] for name in systems}
    duels = []
    for system in systems[1:]:
        for measure in MEASURES:
            pair = [_rows(of[name], measure) for name in (system, systems[0])]
            shared = sorted(name for name in pair[0].keys() & pair[1].keys() if pair[0][name][0] == pair[1][name][0])
            tables = [_table(rows[name] for name in shared) for rows in pair]
            if tables[0] is not None and tables[1] is not None:
                found = compare(tables[0], tables[1], len(shared))
                duels.append(Duel(system, systems[0], split, measure, found))
    overall = holm([duel.comparison.p for duel in duels])
    duels = [replace(duel, overall=p) for duel, p in zip(duels, overall, strict=True)]
    return [duel for measure in MEASURES for duel in _adjusted([each for each in duels if each.measure is measure])]


def _faults(judged: Sequence[Judged], systems: Sequence[str]) -> tuple[str, ...]:
    """Of each system how many clips it says to be of another speaker than the baseline does."""
    speakers: dict[str, dict[str, str]] = {name: {} for name in systems}
    for each in judged:
        speakers[each.entry.system][each.entry.id] = each.entry.speaker
    first, told = speakers[systems[0]], list[str]()
    for system in systems[1:]:
        both = [name for name in speakers[system] if name in first]
        other = [name for name in both if speakers[system][name] != first[name]]
        if other:
            example = f"{other[0]!r} is of {speakers[system][other[0]]!r} here and of {first[other[0]]!r} there"
            told.append(
                f"{len(other)} of the {len(both)} clips that {system!r} shares with {systems[0]!r} are not compared, "
                f"since their lines name other speakers: {example}; give `speaker` alike in the lines of both systems"
            )
    return tuple(told)


def _adjusted(duels: Sequence[Duel]) -> list[Duel]:
    """Duels by one measure on one split, with Holm's p among them."""
    ps = holm([duel.comparison.p for duel in duels])
    return [replace(duel, adjusted=p) for duel, p in zip(duels, ps, strict=True)]
