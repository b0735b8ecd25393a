# SPDX-License-Identifier: Apache-2.0
"""The whole evaluation of a manifest or folder: judged where it is not judged yet, summed up, written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from idlora.data.manifest import Fault
from idlora.errors import OutputError, SettingsError
from idlora.evaluation.comparisons import LEVEL, POWER
from idlora.evaluation.laboratory.bench import content_of, judge_key, verdict_of
from idlora.evaluation.laboratory.manifest import Entry, read_entries
from idlora.evaluation.laboratory.page import example_section, page
from idlora.evaluation.laboratory.panel import Panel
from idlora.evaluation.laboratory.plots import plots
from idlora.evaluation.laboratory.results import Judged, Results, systems_of
from idlora.evaluation.laboratory.tables import Sheet, sheets
from idlora.evaluation.laboratory.workers import Task, judged
from idlora.evaluation.store import Store, Values
from idlora.files import write_bytes, write_text
from idlora.pipeline.output import versions

_OWNER = "clips by contents, 1"  # another number when what a key means changes


@dataclass(frozen=True)
class Order:
    """How to evaluate.

    Attributes:
        out: folder of the report and of the scores so far.
        baseline: the system that others are compared with; the first by default.
        workers: processes.
        ray: on a Ray cluster.
        examples: requests whose clips the report plays.

    Raises:
        SettingsError: a number is out of its range.
    """

    out: Path
    baseline: str = ""
    workers: int = 1
    ray: bool = False
    examples: int = 3

    def __post_init__(self) -> None:
        if self.workers < 1 or not 0 <= self.examples <= 50:
            raise SettingsError(f"{self.workers} workers, {self.examples} examples: at least 1, and 0 to 50")


def write_report(
    source: str | os.PathLike[str], order: Order, panel: Panel, moved: Callable[[int, int], None] | None = None
) -> Results:
    """Judge the clips of a manifest or folder and write the report.

    Scores are kept in `scores.jsonl` by the contents of the files and by judge as they come, so a second call judges
    only what is new, whoever stopped the first one, and what a judge could not score by no fault of the clip's.
    `results.json`, `results.md`, `report.html`, `clips.jsonl` and `plots/` are written anew.

    Args:
        source: manifest or folder, see `laboratory.manifest`.
        order: where and how.
        panel: who judges.
        moved: called with the number of clips judged and the number there are to judge.

    Raises:
        InputError: nothing in the source can be used, or the baseline is unknown.
        SettingsError: matplotlib, or ray where it is asked for, is not installed; or no judge is there.
        OutputError: the folder cannot be written.
    """
    if not panel.judges:
        raise SettingsError(
            "no judge can work here: " + "; ".join(f"{each.name}: {each.remedy}" for each in panel.absent)
        )
    if find_spec("matplotlib") is None:
        raise SettingsError("the report's plots need matplotlib: pip install 'idlora[eval]'")
    entries, faults = read_entries(source)
    systems_of(entries, order.baseline)  # known before any work
    _make(order.out / "plots")
    told = judge_all(entries, order, panel, moved)
    results = Results.of(told, order.baseline)
    _write(order, panel, told, results, faults)
    return results


def judge_all(
    entries: Sequence[Entry], order: Order, panel: Panel, moved: Callable[[int, int], None] | None = None
) -> list[Judged]:
    """Every entry with its verdict, of the store where it is known; what is to be tried again is not kept there."""
    store = Store(order.out / "scores.jsonl", _OWNER)
    keys = {name: judge_key(name, judge) for name, judge in panel.judges.items()}
    contents = [content_of(entry) for entry in entries]
    tasks = _tasks(entries, contents, keys, store)
    names, passing = list(tasks), dict[str, Values]()
    if moved is not None:
        moved(0, len(names))
    for done, (place, outcome) in enumerate(
        judged([tasks[name] for name in names], panel.judges, order.workers, ray=order.ray), 1
    ):
        for name, values in outcome.items():
            key = f"{keys[name]}/{names[place]}"
            if values.get("again"):
                passing[key] = values
            else:
                store.put(key, values)
        if moved is not None:
            moved(done, len(names))
    told: list[Judged] = []
    for entry, content in zip(entries, contents, strict=True):
        wanted = {name: f"{key}/{content}" for name, key in keys.items()}
        told.append(Judged(entry, verdict_of({name: passing.get(key) or store[key] for name, key in wanted.items()})))
    return told


def _tasks(entries: Sequence[Entry], contents: Sequence[str], keys: Mapping[str, str], store: Store) -> dict[str, Task]:
    """What is not judged yet, by content: equal clips are judged once."""
    tasks: dict[str, Task] = {}
    for entry, content in zip(entries, contents, strict=True):
        wanted = tuple(name for name, key in keys.items() if f"{key}/{content}" not in store)
        if wanted:
            tasks.setdefault(content, (entry, wanted))
    return tasks


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}; choose another --out") from error


def _write(order: Order, panel: Panel, told: Sequence[Judged], results: Results, faults: Sequence[Fault]) -> None:
    tables = [*sheets(results, told, dict(panel.judges), panel.absent), *_of_faults(faults)]
    pictures = plots(results)
    for plot in pictures:
        write_bytes(order.out / "plots" / f"{plot.name}.png", plot.png)
        write_bytes(order.out / "plots" / f"{plot.name}.svg", plot.svg)
    content = {**circumstances(panel), **results.to_json(), "unread_lines": [asdict(fault) for fault in faults]}
    write_text(order.out / "results.json", json.dumps(content, indent=1) + "\n")
    write_text(order.out / "clips.jsonl", "".join(_clip_line(each) for each in told))
    about = f"{len(told)} clips of {len(results.systems)} systems, {content['date']}."
    images = "\n".join(f"![{plot.name}](plots/{plot.name}.png)\n" for plot in pictures)
    text = "\n".join(["# Evaluation\n", about + "\n", *(sheet.markdown() for sheet in tables), images])
    write_text(order.out / "results.md", text)
    examples = example_section(told, results.systems, order.examples)
    write_text(order.out / "report.html", page("Evaluation", about, tables, pictures, examples))


def circumstances(panel: Panel) -> dict[str, Any]:
    """Everything that results depend on beside the clips."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "statistics": {
            "interval": LEVEL,
            "resampled": "speakers",
            "power": POWER,
            "p_holm": "over the systems of one measure and split",
            "p_holm_all_measures": "over everything that is compared on one split",
        },
        "judges": {name: asdict(judge.record) for name, judge in panel.judges.items()},
        "absent": [asdict(absent) for absent in panel.absent],
    }


def _clip_line(each: Judged) -> str:
    entry = each.entry
    unjudged = {told.judge: told.reason for told in each.verdict.unjudged}
    line: Values = {"system": entry.system, "id": entry.id, "speaker": entry.speaker, "split": entry.split}
    return json.dumps({**line, "scores": each.verdict.scores, "unjudged": unjudged}, ensure_ascii=False) + "\n"


def _of_faults(faults: Sequence[Fault]) -> list[Sheet]:
    rows = tuple((str(fault.line), fault.reason) for fault in faults)
    about = "Lines of the manifest that name no clip to judge."
    return [Sheet("Lines that could not be used", about, ("line", "reason"), rows)] if rows else []
