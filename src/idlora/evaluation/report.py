# SPDX-License-Identifier: Apache-2.0
"""Rows of results with the goals that issue and documentation set, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idlora.evaluation.statistics import Estimate
from idlora.files import write_text


@dataclass(frozen=True)
class Goal:
    """What a measure must reach and should reach; `at_most` = small is good."""

    must: float
    aim: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Whether a value is as good as it must be."""
        return value <= self.must if self.at_most else value >= self.must

    def text(self, limit: float) -> str:
        """A limit as readers see it."""
        return f"{'<=' if self.at_most else '>='} {limit:g}"


GOALS: Mapping[str, Goal] = {
    "speaker EER, true clips": Goal(0.08, 0.08, at_most=True),
    "mouth opening r, true clips": Goal(0.95, 0.95),
    "codec cos": Goal(0.85, 0.90),
    "codec margin": Goal(0.20, 0.25),
    "codec WER": Goal(0.20, 0.10, at_most=True),
    "video PSNR": Goal(28, 32),
    "video PSNR, mouth box": Goal(24, 28),
    "codec mouth opening r": Goal(0.95, 0.98),
    "voice share": Goal(0.65, 0.80),
    "top-1": Goal(0.40, 0.55),
    "WER": Goal(0.40, 0.25, at_most=True),
    "lip correlation": Goal(0.85, 0.90),
    "wrong reference: margin": Goal(0.02, 0.0, at_most=True),
}


@dataclass(frozen=True)
class Row:
    """One measure with its interval over speakers; n = clips (or pairs) that it rests on."""

    measure: str
    estimate: Estimate
    n: int

    @property
    def goal(self) -> Goal | None:
        """What it must reach, if anything."""
        return GOALS.get(self.measure)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON's own types, rounded to four decimals."""
        estimate, goal = self.estimate, self.goal
        return {
            "measure": self.measure,
            "value": round(estimate.value, 4),
            "interval": [round(estimate.low, 4), round(estimate.high, 4)],
            "n": self.n,
            "must": goal.text(goal.must) if goal else None,
            "aim": goal.text(goal.aim) if goal else None,
            "met": goal.met(estimate.value) if goal else None,
        }


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    head = "| measure | value | 95 % interval | n | must | aim |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(_table_line(row) for row in rows)])


def _table_line(row: Row) -> str:
    estimate, goal = row.estimate, row.goal
    must, aim = (goal.text(goal.must), goal.text(goal.aim)) if goal else ("reported", "-")
    failed = "" if goal is None or goal.met(estimate.value) else " (missed)"
    interval = f"{estimate.low:.3f} to {estimate.high:.3f}"
    return f"| {row.measure} | {estimate.value:.3f}{failed} | {interval} | {row.n} | {must} | {aim} |"


def write_results(path: Path, rows: Sequence[Row], circumstances: Mapping[str, Any]) -> None:
    """Write rows and everything they depend on as JSON; raises OutputError as `files.replacing` does."""
    content = {**circumstances, "rows": [row.to_json() for row in rows]}
    write_text(path, json.dumps(content, indent=1) + "\n")
