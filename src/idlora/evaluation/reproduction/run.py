# SPDX-License-Identifier: Apache-2.0
"""The whole reproduction: row after row, written as each is known, gone on with by the next call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from idlora.data.processes import own_processors
from idlora.errors import OutputError, SettingsError
from idlora.evaluation.reproduction.ablations import Trained, Workshop
from idlora.evaluation.reproduction.arms import FULL, QUICK, Extent
from idlora.evaluation.reproduction.beyond import out_of_reach
from idlora.evaluation.reproduction.claims import Row, identity_rows, usual_rows
from idlora.evaluation.reproduction.control_rows import control_rows
from idlora.evaluation.reproduction.crew import Crew, tasks_of
from idlora.evaluation.reproduction.curves import drawings
from idlora.evaluation.reproduction.findings import Finding, judged, uncontrolled, untestable
from idlora.evaluation.reproduction.guidance_rows import guidance_rows
from idlora.evaluation.reproduction.makers import Maker, PipelineMaker
from idlora.evaluation.reproduction.pages import PLOTS, write_page, write_plots, write_rows
from idlora.evaluation.reproduction.studio import Studio
from idlora.evaluation.reproduction.training_rows import training_rows
from idlora.evaluation.reproduction.trials import Owner, Trials, offline_judges
from idlora.pipeline import IDLoraPipeline, Settings
from idlora.pipeline.output import versions
from idlora.pipeline.sources import PACKAGED

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Laboratory:
    """What works: a maker with the model's settings, the digests of its weights, who judges, and who trains.

    `options` are those of the command that chose the model and its pairs, for rows to repeat.
    """

    maker: Maker
    shipped: Settings
    owner: Owner
    workshop: Workshop | None = None
    options: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: str, latents: Path | None = None) -> Laboratory:
        """That of a model, with all judges that need no weights.

        Raises:
            SettingsError: a package is missing.
            WeightsError: the model cannot be used.
        """
        pipe = IDLoraPipeline.from_pretrained(model)
        workshop = Workshop(pipe, latents, own_processors())
        options = [f"--model {model}"] if model != PACKAGED else []
        options += [f"--latents {latents}"] if latents else []
        owner = Owner(pipe.digests, offline_judges())
        return cls(PipelineMaker(pipe), pipe.card.defaults, owner, workshop, tuple(options))

    def adapters(self, out: Path) -> dict[str, Trained]:
        """The ablations that are there."""
        return {} if self.workshop is None else self.workshop.found(out)


def extent_of(*, quick: bool, speakers: int = 0) -> Extent:
    """How much is made: by so many speakers, or by as many as the form has.

    Raises:
        SettingsError: there are not so many.
    """
    form = QUICK if quick else FULL
    return replace(form, speakers=speakers, trained_speakers=speakers) if speakers else form


def _command(lab: Laboratory, extent: Extent, out: Path) -> str:
    form = QUICK if extent.name == QUICK.name else FULL
    options = ["--quick", *lab.options] if form is QUICK else [*lab.options]
    options += [f"--speakers {extent.speakers}"] if extent != form else []
    return " ".join(("idlora reproduce", *options, f"--out {out.name}"))


def studio_of(model: str, latents: Path | None, extent: Extent, out: Path) -> Studio:
    """That of a model, for one process of a crew."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    lab = Laboratory.of(model, latents)
    return Studio(lab.maker, lab.shipped, extent, lab.owner.judges, lab.adapters(out))


def reproduce(
    lab: Laboratory, extent: Extent, out: Path, moved: Notice = lambda _: None, crew: Crew | None = None
) -> list[Finding]:
    """Measure every claim and write `results.json`, `results.md` and `plots/`; both files are whole after every row.

    Scores are kept in `scores.jsonl` by what made the clip, so that a second call, after an interruption or with more
    speakers, makes only what is new. A crew makes clips side by side, but for those with adapters yet to be trained.

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
    trials = Trials.of(lab.maker, lab.shipped, extent, out, lab.owner)
    trials = replace(trials, moved=moved, adapters=lab.adapters(out))
    command = _command(lab, extent, out)
    measured: list[Finding] = []
    beyond = out_of_reach()
    began = time.monotonic()
    for row in _rows(extent) if crew is None else crew.through(trials, _rows(extent)):
        if extent.trains:
            _train(lab, trials, row, out)
        measured.append(_finding(trials, row, command))
        write_rows(out, [*measured, *beyond])
        write_page(out, [*measured, *beyond], trials.faults, extent, _told(lab, trials, command, began))
    found = [*measured, *beyond]
    pictures = drawings(trials, found)
    write_plots(out, pictures)
    told = {**_told(lab, trials, command, began), "plots": [picture.name for picture in pictures]}
    write_page(out, found, trials.faults, extent, told)
    return found


def _rows(extent: Extent) -> Iterator[Row]:
    """All rows, in the order of their worth."""
    yield from identity_rows()
    yield from control_rows(extent)
    yield from usual_rows(extent)
    yield from guidance_rows()
    yield from training_rows(extent)


def _train(lab: Laboratory, trials: Trials, row: Row, out: Path) -> None:
    """Train what a row needs and nobody has trained yet."""
    missing = [key for key in row.adapters if not trials.has(key)]
    if missing and lab.workshop is not None:
        lab.workshop.train(missing, out, trials.moved)
        trials.adapters.update(lab.workshop.found(out))


def _finding(trials: Trials, row: Row, command: str) -> Finding:
    trials.run(tasks_of(trials, row))
    measured, remark = row.measured(trials), row.remark
    if missing := [key for key in row.adapters if not trials.has(key)]:
        told = f"without {', '.join(missing)}, not trained yet; the command trains them where --quick is left out"
        remark = ". ".join(filter(None, (told, remark)))
        if measured is None:
            return untestable(row.claim, remark, command.replace("--quick ", ""))
    found = judged(row.claim, measured, row.measure, command, remark)
    return found if row.control is None else _controlled(found, trials, row.control)


def _controlled(found: Finding, trials: Trials, control: Row) -> Finding:
    measured = control.measured(trials)
    if measured is not None and control.claim.holds(measured.estimate):
        return found
    return uncontrolled(found, failed=measured is not None and control.claim.fails(measured.estimate))


@cache
def _versions() -> dict[str, str]:
    return versions()


def _told(lab: Laboratory, trials: Trials, command: str, began: float) -> dict[str, Any]:
    arms = dict.fromkeys(arm for row in _rows(trials.extent) for arm in row.arms)
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "spent": (
            f"All clips, made and judged, took {trials.seconds(arms):.0f} s of processor time; "
            f"the call that wrote this took {time.monotonic() - began:.0f} s by the clock."
        ),
        "versions": _versions(),
        "judges": {name: f"{judge.record.name} {judge.record.version}" for name, judge in trials.panel.items()},
        "weights": dict(lab.owner.weights),
        "plots": [],
    }
