# SPDX-License-Identifier: Apache-2.0
"""A claim beside what was found, and the rule by which it counts as reproduced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from idlora.evaluation.comparisons import Table, compare, interval
from idlora.evaluation.statistics import Estimate

REPRODUCED, NOT_REPRODUCED, UNTESTABLE = "reproduced", "not reproduced", "cannot be tested here"
RULE = (
    f"`{REPRODUCED}`: the 95 % interval lies wholly on the claimed side of the number in the claim. "
    f"`{NOT_REPRODUCED}`: it does not; the remark says whether it lies on the other side or "
    "whether so few speakers cannot decide, or that the baseline failed its control. "
    f"`{UNTESTABLE}`: nothing was measured, n = 0, and the remark says what it would take."
)
Score = tuple[str, float, float]  # speaker, sum, weight


@dataclass(frozen=True)
class Claim:
    """What is claimed.

    Attributes:
        text: with the number that the interval is held against.
        paper: what the paper or its repository gives, in words.
        side: of the bound on which the value is claimed to lie.
        bound: in the measure's unit.
    """

    text: str
    paper: str
    side: Literal["above", "below"] = "above"
    bound: float = 0.0

    def holds(self, estimate: Estimate) -> bool:
        """Whether the interval lies wholly on the claimed side; one without ends never does."""
        return estimate.low > self.bound if self.side == "above" else estimate.high < self.bound

    def fails(self, estimate: Estimate) -> bool:
        """Whether it lies wholly on the other side."""
        return estimate.high < self.bound if self.side == "above" else estimate.low > self.bound


@dataclass(frozen=True)
class Finding:
    """A row of the results: `ours` is None where nothing was measured."""

    claim: str
    paper: str
    verdict: str
    command: str
    ours: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 0
    speakers: int = 0
    measure: str = ""
    remark: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON's own types, rounded to four decimals."""
        ends = None if self.interval is None else [round(end, 4) for end in self.interval]
        return {
            "claim": self.claim,
            "paper": self.paper,
            "ours": None if self.ours is None else round(self.ours, 4),
            "interval": ends,
            "n": self.n,
            "verdict": self.verdict,
            "command": self.command,
            "speakers": self.speakers,
            "measure": self.measure,
            "remark": self.remark,
        }


def untestable(claim: Claim, remark: str, command: str) -> Finding:
    """A row of what was not measured."""
    return Finding(claim.text, claim.paper, UNTESTABLE, command, remark=remark)


@dataclass(frozen=True)
class Measured:
    """An estimate with clips, speakers and the smallest difference that so many speakers show (nan = unknown)."""

    estimate: Estimate
    n: int
    speakers: int
    smallest: float = math.nan


def judged(claim: Claim, measured: Measured | None, measure: str, command: str, remark: str = "") -> Finding:
    """The row of what was measured; of nothing (None) that it could not be."""
    if measured is None or not math.isfinite(measured.estimate.value):
        return untestable(claim, "no clip could be made and judged in this call; call again", command)
    estimate = measured.estimate
    if math.isnan(estimate.low):
        words, ends = f"UNDECIDED: {_no_interval(measured.speakers)}", None
    else:
        words, ends = _words(claim, measured), (estimate.low, estimate.high)
    verdict = REPRODUCED if claim.holds(estimate) else NOT_REPRODUCED
    told = ". ".join(part for part in (words, remark) if part)
    return Finding(
        claim.text, claim.paper, verdict, command, estimate.value, ends, measured.n, measured.speakers, measure, told
    )


def uncontrolled(finding: Finding, *, failed: bool) -> Finding:
    """The row whose control failed, or is not decided: on the claimed side or not, it is no reproduction."""
    if finding.verdict != REPRODUCED:
        return finding
    words = "UNDECIDED: the interval lies on the claimed side, but whether the baseline is sound is not decided"
    if failed:
        words = "CONTROL FAILED: the interval lies on the claimed side, but the baseline is not sound"
    return replace(finding, verdict=NOT_REPRODUCED, remark=". ".join(filter(None, (words, finding.remark))))


def _no_interval(speakers: int) -> str:
    if speakers < 2:
        return "one speaker gives no interval"
    return f"all {speakers} speakers gave the same value, from which no interval can be drawn"


def _words(claim: Claim, measured: Measured) -> str:
    if claim.holds(measured.estimate):
        return ""
    if claim.fails(measured.estimate):
        return "the interval lies on the other side: the opposite was found"
    least = "" if math.isnan(measured.smallest) else f", which show differences from {measured.smallest:.3f} on"
    return f"UNDECIDED: the interval holds {claim.bound:g}; n cannot decide with {measured.speakers} speakers{least}"


def mean_of(scores: Sequence[Score]) -> Measured | None:
    """Sum over sum of clips' scores, with its interval over speakers; None of none."""
    if not scores or not sum(weight for _, _, weight in scores):
        return None
    table = Table.of(scores)
    return Measured(interval(table), len(scores), len(table.speakers))


def difference_of(first: dict[Any, Score], second: dict[Any, Score]) -> Measured | None:
    """First less second on the clips of both, paired by speaker; None if there is none."""
    both = [place for place in first if place in second]
    pair = [[scores[place] for place in both] for scores in (first, second)]
    if not both or not all(sum(weight for _, _, weight in scores) for scores in pair):
        return None
    system, baseline = (Table.of(scores) for scores in pair)
    found = compare(system, baseline, len(both))
    return Measured(found.difference, len(both), found.speakers, found.smallest)
