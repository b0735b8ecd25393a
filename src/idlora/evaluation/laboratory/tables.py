# SPDX-License-Identifier: Apache-2.0
"""Results as tables of texts, which Markdown and HTML then dress."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from idlora.evaluation.judges.base import Absent, Judge
from idlora.evaluation.laboratory.results import ALL, BINS, Duel, Judged, Line, Results
from idlora.evaluation.statistics import Estimate


@dataclass(frozen=True)
class Sheet:
    """A table with a title, what is to be known about it, its head and its rows."""

    title: str
    about: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"## {self.title}\n\n{self.about}\n\n{body}\n"


def shown(estimate: Estimate) -> str:
    """Value and interval, to three decimals."""
    if math.isnan(estimate.low):
        return f"{estimate.value:.3f} (no interval)"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def sheets(
    results: Results, judged: Sequence[Judged], judges: dict[str, Judge], absent: Sequence[Absent]
) -> list[Sheet]:
    """All tables of a report, those without rows left out."""
    found = [
        _by_system(results),
        _duels(results),
        _not_compared(results),
        _by_split(results),
        _unjudged(judged),
        _judges(judges),
        _absent(absent),
    ]
    return [sheet for sheet in found if sheet.rows]


def _by_system(results: Results) -> Sheet:
    names = list(dict.fromkeys(line.measure.name for line in results.lines if line.split == ALL))
    rows = tuple((name, *(_cell(results.line(system, name)) for system in results.systems)) for name in names)
    about = (
        "Value (95 % interval; speakers are redrawn, all clips of one together), n = clips judged of clips given. One "
        "speaker gives no interval, nor do speakers who all have the same value. A clip that a judge could not score "
        "is in no mean; it is listed below."
    )
    return Sheet("All clips", about, ("measure", *results.systems), rows)


def _cell(line: Line | None) -> str:
    if line is None:
        return "not judged"
    return f"{shown(line.estimate)}, n {line.n} of {line.asked}, {line.speakers} speakers"


def _by_split(results: Results) -> Sheet:
    rows = tuple(
        (line.split, line.measure.name, line.system, shown(line.estimate), str(line.n), str(line.speakers))
        for line in results.lines
        if line.split != ALL
    )
    about = "easy: reference and target of one recording; hard: of two."
    if results.edges:
        parts = (
            f"{name}: {low:.2f} to {high:.2f}"
            for name, low, high in zip(BINS, results.edges, results.edges[1:], strict=False)
        )
        about += f" Acoustic distance of the reference to the clip asked for, in thirds: {'; '.join(parts)}."
    return Sheet("By split", about, ("split", "measure", "system", "value (95 % interval)", "n", "speakers"), rows)


def _duels(results: Results) -> Sheet:
    rows = tuple(_duel(duel) for duel in results.duels)
    about = (
        "System less baseline on the clips that both have, paired by speaker. p: permutation of the labels, speaker by "
        "speaker; adjusted by Holm's method for the systems compared by one measure on one split, and for all measures "
        "too. The verdict is by the first, for a measure named beforehand: of twenty one differs by chance. Smallest "
        "difference: what so many speakers show with a power of 0.8 at 5 %, one comparison alone; below it `undecided` "
        "means little."
    )
    head = ("split", "measure", "system - baseline", "difference (95 % interval)", "p", "adjusted", "for all measures")
    return Sheet("Systems compared", about, (*head, "smallest", "n", "verdict"), rows)


def _duel(duel: Duel) -> tuple[str, ...]:
    found = duel.comparison
    smallest = f"{found.smallest:.3f}" if math.isfinite(found.smallest) else "unknown"
    if math.isinf(found.smallest):
        smallest = "none"
    pair = f"{duel.system} - {duel.baseline}"
    ps = (f"{found.p:.4f}", f"{duel.adjusted:.4f}", f"{duel.overall:.4f}")
    n = f"{found.n} clips, {found.speakers} speakers"
    return duel.split, duel.measure.name, pair, shown(found.difference), *ps, smallest, n, duel.verdict


def _not_compared(results: Results) -> Sheet:
    about = "Clips that two systems have both and that are in no comparison, since it is by speaker."
    return Sheet("What could not be compared", about, ("why",), tuple((fault,) for fault in results.faults))


def _unjudged(judged: Sequence[Judged]) -> Sheet:
    """Each reason with how many clips it befell and the first of them."""
    counts: Counter[tuple[str, str, str]] = Counter()
    first: dict[tuple[str, str, str], str] = {}
    for each in judged:
        by_reason: dict[str, list[str]] = {}
        for told in each.verdict.unjudged:
            by_reason.setdefault(told.reason, []).append(told.judge)
        for reason, names in by_reason.items():
            key = (each.entry.system, ", ".join(names), reason)
            counts[key] += 1
            first.setdefault(key, each.entry.id)
    rows = tuple((*key, str(count), first[key]) for key, count in sorted(counts.items()))
    about = "Never counted as 0: these clips are missing from the judge's rows. Every clip by name is in clips.jsonl."
    return Sheet("What could not be judged", about, ("system", "judges", "reason", "clips", "first"), rows)


def _judges(judges: dict[str, Judge]) -> Sheet:
    rows = []
    for name, judge in judges.items():
        record = judge.record
        rows.append((name, record.name, record.version, record.weights[:16] or "none", record.limits))
    head = ("judge", "who", "version", "weights (SHA-256)", "limits")
    return Sheet("Judges", "Who judged, and what the verdicts are worth.", head, tuple(rows))


def _absent(absent: Sequence[Absent]) -> Sheet:
    rows = tuple((each.name, each.reason, each.remedy) for each in absent)
    return Sheet("Judges that were not here", "Nothing stands in for them.", ("judge", "why", "how to get it"), rows)
