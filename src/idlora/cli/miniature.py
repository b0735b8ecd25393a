# SPDX-License-Identifier: Apache-2.0
"""`idlora miniature`: train the stages of the miniature, export its weights, evaluate it by the protocol."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from idlora.cli.generate import checked_device
from idlora.data.processes import own_processors

app = typer.Typer(no_args_is_help=True, help="Make and measure the miniature, the same model made small.")

Work = Annotated[Path, typer.Option(help="Folder of pools, checkpoints and the components so far.")]


class Faster(StrEnum):
    """What may make training faster."""

    BF16 = "bf16"
    COMPILE = "compile"


@app.command("train")
def train(
    stage: Annotated[str, typer.Argument(help="One of the stages of docs/miniature.md, which gives their order.")],
    work: Work = Path("runs/miniature"),
    start: Annotated[Path | None, typer.Option("--from", help="Model folder to start from.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; the recipe's number by default.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="Peak learning rate; the recipe's by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws batches and noise.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    faster: Annotated[
        list[Faster] | None,
        typer.Option(
            "--with", help="bf16: mixed precision, where the processor has it. compile: needs a C++ compiler."
        ),
    ] = None,
) -> None:
    """Train one stage; a second call goes on where the first stopped."""
    from dataclasses import replace

    from idlora.training.miniature import stages
    from idlora.training.miniature.workshop import Workshop

    checked_device(device)
    schedule = stages.schedule_of(stage)
    rate = schedule.learning_rate if rate is None else rate
    schedule = replace(schedule, steps=steps or schedule.steps, learning_rate=rate, seed=seed)
    shop = Workshop(work, start, device=device, workers=own_processors())
    shop = replace(shop, compile=Faster.COMPILE in (faster or ()), bf16=Faster.BF16 in (faster or ()))
    logging.getLogger("idlora").setLevel(logging.INFO)
    with _progress() as progress:
        task = progress.add_task(stage, total=schedule.steps)

        def report(step: int, values: dict[str, float]) -> None:
            shown = " ".join(f"{name} {value:.3g}" for name, value in values.items())
            progress.update(task, completed=step, description=f"{stage}: {shown}")

        stages.train(stage, shop, schedule, report)


def _progress() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


@app.command("export")
def export(
    out: Annotated[Path, typer.Argument(help="Folder of the finished model, in diffusers' layout.")],
    work: Work = Path("runs/miniature"),
    start: Annotated[Path | None, typer.Option("--from", help="Model folder with what the work folder lacks.")] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter that `idlora train` wrote, instead of --from's.")
    ] = None,
    learned_vocoder: Annotated[
        bool, typer.Option("--learned-vocoder", help="With the trained LTX2Vocoder, not Griffin-Lim.")
    ] = False,
) -> None:
    """Write the trained components as a model folder: bfloat16, with card and adapter."""
    from idlora.training.miniature import export as finished
    from idlora.training.miniature.workshop import Workshop

    finished.export(Workshop(work, start), out, adapter, learned_vocoder=learned_vocoder)
    print(f"{out}: {sum(file.stat().st_size for file in out.rglob('*') if file.is_file()) / 1e6:.1f} MB")


@app.command("evaluate")
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of results.json and of the scores so far.")] = Path(
        "runs/evaluation"
    ),
    model: Annotated[str, typer.Option(help="`miniature` or a model folder.")] = "miniature",
    rows: Annotated[list[str] | None, typer.Option(help="Groups of rows; all but validation by default.")] = None,
    speakers: Annotated[int | None, typer.Option(min=2, help="Speakers of each split; the protocol's 40.")] = None,
) -> None:
    """Measure a miniature by the protocol of docs/miniature.md; a second call goes on where the first stopped."""
    from idlora.evaluation import protocol
    from idlora.evaluation.clips import Plan
    from idlora.evaluation.report import table
    from idlora.evaluation.voice_rows import Subject
    from idlora.pipeline import IDLoraPipeline

    logging.getLogger("idlora").setLevel(logging.INFO)
    pipe = IDLoraPipeline.from_pretrained(model)
    plan = Plan() if speakers is None else Plan(speakers=speakers)
    results = protocol.run(Subject.of(pipe, {"name": model, **pipe.digests}), out, rows or protocol.PROTOCOL, plan)
    print(table(results))
