# SPDX-License-Identifier: Apache-2.0
"""`idlora evaluate`: clips of any systems, judged, compared and reported."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idlora.cli.bars import work_bar
from idlora.cli.generate import quieten
from idlora.errors import InputError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from idlora.evaluation.laboratory.panel import Panel


def evaluate(  # noqa: PLR0913, PLR0917 - each is an option of the command
    source: Annotated[
        Path | None, typer.Argument(help="Manifest, a JSON object a line; or a folder, a system a subfolder.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the report and of the scores so far.")] = Path("evaluation"),
    judge: Annotated[list[str] | None, typer.Option(help="Name of a judge; all that can work by default.")] = None,
    weights: Annotated[list[str] | None, typer.Option(help="JUDGE=FILE, folder or hub name of its weights.")] = None,
    baseline: Annotated[str, typer.Option(help="System that others are compared with; the first by default.")] = "",
    workers: Annotated[int, typer.Option(min=1, help="Processes that judge.")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="On a Ray cluster, or on this machine by Ray.")] = False,
    examples: Annotated[int, typer.Option(min=0, max=50, help="Requests whose clips the report plays.")] = 3,
    judges: Annotated[bool, typer.Option("--judges", help="Tell who can judge here and who lacks what; stop.")] = False,
) -> None:
    """Judge clips of one or several systems; a second call judges only what is new."""
    quieten()
    from idlora.evaluation.laboratory.panel import Panel
    from idlora.evaluation.laboratory.run import Order, write_report
    from idlora.evaluation.laboratory.tables import shown

    panel = Panel.of(judge or None, _weights(weights or []))
    if judges:
        print("\n".join(_told(panel)))
        return
    if source is None:
        raise InputError("there is nothing to judge; name a manifest or a folder of clips")
    order = Order(out, baseline, workers, ray=ray, examples=examples)
    with ExitStack() as stack:
        results = write_report(source, order, panel, _bar(stack))
    for line in results.lines:
        if line.split == "all":
            print(f"{line.system}: {line.measure.name} {shown(line.estimate)}, {line.n} of {line.asked} clips")
    for absent in panel.absent:
        print(f"absent: {absent.name}, {absent.reason}; {absent.remedy}")
    print(f"{out / 'report.html'}, results.json, results.md, clips.jsonl, plots")


def _weights(given: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for name, equals, path in pairs:
        if not (name and equals and path):
            raise SettingsError(f"--weights {name!r} is not JUDGE=PATH; say lips-syncnet=syncnet_v2.model")
    return {name: path for name, _, path in pairs}


def _told(panel: Panel) -> list[str]:
    here = [f"{name}: {judge.record.name} {judge.record.version}" for name, judge in panel.judges.items()]
    return here + [f"{each.name}: absent, {each.reason}; {each.remedy}" for each in panel.absent]


def _bar(stack: ExitStack) -> Callable[[int, int], None]:
    """A bar that begins when it is known how much there is to do."""
    bars: list[Callable[[int], None]] = []

    def moved(done: int, total: int) -> None:
        if not bars:
            bars.append(stack.enter_context(work_bar("judging", total)))
        bars[0](done)

    return moved
