# SPDX-License-Identifier: Apache-2.0
"""`idlora reproduce`: the paper's claims, one row each, measured on the miniature."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from idlora.cli.generate import quieten
from idlora.data.processes import own_processors

_MOST_WORKERS = 8  # each holds the model and the judges


def reproduce(
    out: Annotated[Path, typer.Option(help="Folder of results.json, results.md, plots and the scores so far.")] = Path(
        "reproduction"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Twelve speakers, few steps, no training: minutes instead of hours.")
    ] = False,
    speakers: Annotated[
        int, typer.Option(min=0, help="Unseen speakers of each row, to 40; more decide more. 0: as the form has it.")
    ] = 0,
    latents: Annotated[
        Path | None, typer.Option(help="Encoded pairs of the world for training; without, they are made.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes side by side; 0: as many as processors, to 8.")] = 0,
    model: Annotated[str, typer.Option(help="`miniature` or a model folder of its kind.")] = "miniature",
) -> None:
    """Measure every claim of the paper that can be; a second call goes on where the first stopped."""
    quieten()
    from idlora.evaluation.reproduction.crew import Crew
    from idlora.evaluation.reproduction.findings import NOT_REPRODUCED, REPRODUCED, UNTESTABLE
    from idlora.evaluation.reproduction.run import Laboratory, extent_of, reproduce, studio_of

    extent = extent_of(quick=quick, speakers=speakers)
    lab = Laboratory.of(model, latents)
    workers = workers or min(own_processors(), _MOST_WORKERS)
    crew = Crew(partial(studio_of, model, latents, extent, out), workers) if workers > 1 else None
    found = reproduce(lab, extent, out, lambda text: print(text, file=sys.stderr, flush=True), crew)
    for row in found:
        if row.n:
            ends = "" if row.interval is None else f" ({row.interval[0]:.3f} to {row.interval[1]:.3f})"
            print(f"{row.verdict}: {row.claim}: {row.ours:.3f}{ends}, n {row.n}")
    for verdict in (REPRODUCED, NOT_REPRODUCED, UNTESTABLE):
        print(f"{sum(row.verdict == verdict for row in found)} {verdict}")
    print(f"{out / 'results.json'}, results.md, plots")
