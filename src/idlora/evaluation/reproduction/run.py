# SPDX-License-Identifier: Apache-2.0
"""The whole reproduction: row after row, written as each is known, gone on with by the next call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from idlora.errors import OutputError, SettingsError
from idlora.evaluation.reproduction.arms import FULL, QUICK, Extent, arms_of
from idlora.evaluation.reproduction.beyond import out_of_reach
from idlora.evaluation.reproduction.claims import Row, rows_of
from idlora.evaluation.reproduction.curves import drawings
from idlora.evaluation.reproduction.findings import Finding, judged, uncontrolled
from idlora.evaluation.reproduction.makers import Maker, PipelineMaker
from idlora.evaluation.reproduction.pages import PLOTS, write_page, write_plots, write_rows
from idlora.evaluation.reproduction.trials import Owner, Trials, offline_judges
from idlora.pipeline import IDLoraPipeline, Settings
from idlora.pipeline.output import versions

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Laboratory:
    """What works: a maker with the model's settings, the digests of its weights, and who judges."""

    maker: Maker
    shipped: Settings
    owner: Owner

    @classmethod
    def of(cls, pipe: IDLoraPipeline) -> Laboratory:
        """That of a pipeline, with all judges that need no weights (SettingsError if a package is missing)."""
        return cls(PipelineMaker(pipe), pipe.card.defaults, Owner(pipe.digests, offline_judges()))


def extent_of(*, quick: bool) -> Extent:
    """How much is made."""
    return QUICK if quick else FULL


def reproduce(lab: Laboratory, extent: Extent, out: Path, moved: Notice = lambda _: None) -> list[Finding]:
    """Measure every claim and write `results.json`, `results.md` and `plots/`; both files are whole after every row.

    Scores are kept in `scores.jsonl` by what made the clip, so that a second call, after an interruption or with more
    speakers, makes only what is new.

    Raises:
        SettingsError: matplotlib or a judge's package is missing, or the folder holds scores of another model.
        OutputError: the folder cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise SettingsError("the plots need matplotlib: pip install 'idlora[eval]'")
    try:
        (out / PLOTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {out}: {error.strerror or error}; choose another --out") from error
    trials = replace(Trials.of(lab.maker, lab.shipped, extent, out, lab.owner), moved=moved)
    command = f"idlora reproduce {'--quick ' if extent.name == 'quick' else ''}--out {out.name}"
    measured: list[Finding] = []
    beyond = out_of_reach()
    began = time.process_time()
    for row in rows_of(extent):
        measured.append(_finding(trials, row, command))
        write_rows(out, [*measured, *beyond])
        write_page(out, [*measured, *beyond], trials.faults, extent, _told(lab, trials, command, began))
    found = [*measured, *beyond]
    pictures = drawings(trials, found)
    write_plots(out, pictures)
    told = {**_told(lab, trials, command, began), "plots": [picture.name for picture in pictures]}
    write_page(out, found, trials.faults, extent, told)
    return found


def _finding(trials: Trials, row: Row, command: str) -> Finding:
    for arm in row.arms:
        trials.run(arm)
    if row.held_out:
        trials.run_held_out()
    found = judged(row.claim, row.measured(trials), row.measure, command, row.remark)
    return found if row.control is None or _holds(trials, row.control) else uncontrolled(found)


def _holds(trials: Trials, control: Row) -> bool:
    measured = control.measured(trials)
    return measured is not None and control.claim.holds(measured.estimate)


@cache
def _versions() -> dict[str, str]:
    return versions()


def _told(lab: Laboratory, trials: Trials, command: str, began: float) -> dict[str, Any]:
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "spent": (
            f"All clips, made and judged, took {trials.seconds(arms_of(trials.extent)):.0f} s of processor time; "
            f"the call that wrote this {time.process_time() - began:.0f} s."
        ),
        "versions": _versions(),
        "judges": {name: f"{judge.record.name} {judge.record.version}" for name, judge in trials.panel.items()},
        "weights": dict(lab.owner.weights),
        "plots": [],
    }
