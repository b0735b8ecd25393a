# SPDX-License-Identifier: Apache-2.0
"""Results written: the rows as JSON, and a page that says first what failed or surprised."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from idlora.evaluation.figures import Plot
from idlora.evaluation.laboratory.tables import Sheet
from idlora.evaluation.reproduction.arms import MAIN, Extent
from idlora.evaluation.reproduction.findings import NOT_REPRODUCED, REPRODUCED, RULE, UNTESTABLE, Finding
from idlora.evaluation.reproduction.studio import Fault
from idlora.files import write_bytes, write_text

RESULTS, PAGE, PLOTS = "results.json", "results.md", "plots"
_HEAD = ("claim", "paper", "ours (95 % interval)", "n", "verdict", "remark")


def write_rows(out: Path, findings: Sequence[Finding]) -> None:
    """`results.json`, a list of rows; whole at any moment (OutputError if it cannot be written)."""
    write_text(out / RESULTS, json.dumps([row.to_json() for row in findings], indent=1, ensure_ascii=False) + "\n")


def write_plots(out: Path, drawings: Sequence[Plot]) -> None:
    """Every plot as PNG and SVG."""
    for drawing in drawings:
        write_bytes(out / PLOTS / f"{drawing.name}.png", drawing.png)
        write_bytes(out / PLOTS / f"{drawing.name}.svg", drawing.svg)


def write_page(
    out: Path, findings: Sequence[Finding], faults: Sequence[Fault], extent: Extent, told: Mapping[str, Any]
) -> None:
    """`results.md`: what failed or surprised first, then what was reproduced, then what is out of reach."""
    write_text(out / PAGE, page(findings, faults, extent, told))


def page(findings: Sequence[Finding], faults: Sequence[Fault], extent: Extent, told: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    failed, undecided = _failed(findings)
    good = [row for row in findings if row.verdict == REPRODUCED]
    beyond = [row for row in findings if row.verdict == UNTESTABLE]
    counts = (
        f"{len(good)} reproduced, {len(failed) + len(undecided)} not reproduced ({len(undecided)} of them undecided)"
    )
    parts = [
        "# The paper's claims on the miniature\n",
        _head(told, f"{counts}, {len(beyond)} cannot be tested here."),
        _circumstances(extent, told),
        f"{RULE}\n",
        _sheet("What failed or surprised", "The opposite was found, or a control failed.", failed),
        _sheet("Not decided", "The verdict is `not reproduced` because so few speakers cannot tell.", undecided),
        _faults(faults),
        _sheet("Reproduced", "The interval lies on the claimed side.", good),
        _sheet("Cannot be tested here", "n = 0; the commands are what would have to be run.", beyond, command=True),
        _plots(told),
        _measures(findings),
        _versions(told),
    ]
    return "\n".join(part for part in parts if part)


def _head(told: Mapping[str, Any], counts: str) -> str:
    return (
        f"Written by `{told['command']}` on {told['date']}; nothing in it is typed by hand. {counts} Everything is "
        "about the **miniature** (docs/miniature.md) and its procedural world; none of it says how good LTX-2 or the "
        "released adapters are.\n"
    )


def _failed(findings: Sequence[Finding]) -> tuple[list[Finding], list[Finding]]:
    """Those that are decided, and those that are not."""
    missed = [row for row in findings if row.verdict == NOT_REPRODUCED]
    undecided = [row for row in missed if row.remark.startswith("UNDECIDED")]
    return [row for row in missed if row not in undecided], undecided


def _circumstances(extent: Extent, told: Mapping[str, Any]) -> str:
    unlike = "" if extent.modality else ", no modality guidance"
    more = extent.main_prompts > extent.prompts
    main = f" ({extent.main_prompts} in {', '.join(sorted(arm.name for arm in MAIN))})" if more else ""
    return (
        f"Extent `{extent.name}`: {extent.speakers} speakers whom training never heard, {extent.prompts} clip(s) of "
        f"each in an arm{main}, orders of words that it never heard, {extent.steps} Euler steps{unlike}, else the "
        "shipped settings but for what an arm changes. Unless a row says otherwise the reference has 3 s and comes "
        "from another place than the clip asked for, and identity guidance is 1. Half of the clips are asked for in "
        "the quiet room, the others in hall, rain and street; styles are calm, loud and fast, since whispers are "
        "beyond the judges. Intervals redraw speakers; differences are paired by clip, seed and speaker. Rows are not "
        "corrected for being many: some may lie where they lie by chance. Not blind: that the quick form asks for so "
        "many quiet rooms, the rows on the room, words in quiet room and hall alone, and the control of the cascade "
        f"were chosen after readings of some of these very speakers. {told['spent']}\n"
    )


def _sheet(title: str, about: str, rows: Sequence[Finding], *, command: bool = False) -> str:
    if not rows:
        return ""
    head = (*_HEAD[:2], "why", "command") if command else _HEAD
    lines = tuple(_beyond(row) if command else _line(row) for row in rows)
    return Sheet(title, about, head, lines).markdown()


def _beyond(row: Finding) -> tuple[str, ...]:
    return row.claim, row.paper, row.remark, f"`{row.command}`"


def _line(row: Finding) -> tuple[str, ...]:
    value = "-" if row.ours is None else f"{row.ours:.3f}"
    ends = "" if row.interval is None else f" ({row.interval[0]:.3f} to {row.interval[1]:.3f})"
    return row.claim, row.paper, value + ends, f"{row.n} of {row.speakers} speakers", row.verdict, row.remark


def _faults(faults: Sequence[Fault]) -> str:
    rows = tuple((fault.arm, str(fault.speaker), str(fault.prompt), fault.reason) for fault in faults)
    if not rows:
        return ""
    about = "They are in no row; the next call tries them again."
    return Sheet("Clips that could not be made", about, ("arm", "speaker", "prompt", "reason"), rows).markdown()


def _plots(told: Mapping[str, Any]) -> str:
    names = told["plots"]
    return (
        "Plots: " + ", ".join(f"`{PLOTS}/{name}.png`" for name in names) + " beside `results.json`.\n" if names else ""
    )


def _measures(findings: Sequence[Finding]) -> str:
    rows = tuple((row.claim, row.measure) for row in findings if row.n)
    about = "What each row is of; `A - B` is a difference of two arms on the same clips."
    return Sheet("Measures", about, ("claim", "measure"), rows).markdown() if rows else ""


def _versions(told: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    judges = ", ".join(f"{name}: {who}" for name, who in told["judges"].items())
    weights = ", ".join(f"{name} {digest[:12]}" for name, digest in told["weights"].items())
    return f"## Versions\n\n{shown}.\n\nJudges: {judges}.\n\nWeights (SHA-256): {weights}.\n"
