# SPDX-License-Identifier: Apache-2.0
"""`idlora train`: an identity adapter from encoded pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from idlora.cli.generate import quieten
from idlora.errors import SettingsError

if TYPE_CHECKING:
    from idlora.training.identity.config import TrainingConfig
    from idlora.training.identity.watch import Judge


def train(
    config: Annotated[Path | None, typer.Argument(help="YAML file; what it leaves out is the preset's.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Of a published recipe or of ours, if the file names none.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE over the file, such as engine.batch=2; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run, instead of the file's.")] = None,
    keep_last: Annotated[int | None, typer.Option(help="Checkpoints that stay.")] = None,
    keep_best: Annotated[
        str | None, typer.Option(help="validation_loss, speaker_similarity or word_error: whose best adapter is kept.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Tell what will happen and stop.")] = False,
) -> None:
    """Train an identity adapter; a second call goes on where the first stopped."""
    from idlora.training.identity.run import run_training

    quieten()
    logging.getLogger("idlora").setLevel(logging.WARNING)
    flags = {"out": None if out is None else str(out), "saving.keep_last": keep_last, "saving.keep_best": keep_best}
    named = [_nested(name, value) for name, value in flags.items() if value is not None]
    chosen = _config(config, preset, [*map(_read_set, set_ or []), *named])
    if plan:
        from idlora.training.identity.planning import foretell

        print("\n".join(foretell(chosen)))
        return
    with _bar(chosen.steps) as progress:
        file = run_training(chosen, progress, lambda: _judges(chosen))
    print(f"{file}: {chosen.steps} steps; see {chosen.out}/log.jsonl, or `tensorboard --logdir {chosen.out}`")


def _config(file: Path | None, preset: str | None, over: Sequence[Mapping[str, Any]]) -> TrainingConfig:
    """Preset, over it the file, over it the options; only all of it together has to make sense."""
    from idlora.training.identity.config import configured, merged, read_yaml

    if file is None and preset is None:
        raise SettingsError("there is nothing to train by; give a YAML file, or --preset NAME")
    data: Mapping[str, Any] = {} if file is None else read_yaml(file)
    for each in over:
        data = merged(data, each)
    names = [] if file is None else [file.name]
    return configured(data, preset, " with ".join([*names, "--set"] if over else names))


def _read_set(text: str) -> dict[str, Any]:
    """An option of `--set` as a record."""
    from idlora.training.identity.config import parse_yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"--set {text!r} is not NAME=VALUE; say engine.batch=2")
    return _nested(name, parse_yaml(value, f"--set {text}"))


def _nested(name: str, value: object) -> dict[str, Any]:
    """A value in the record that a dotted name means."""
    *outer, last = name.split(".")
    data = {last: value}
    for key in reversed(outer):
        data = {key: data}
    return data


@contextmanager
def _bar(steps: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A line with losses, speed and the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading", total=steps)

        def moved(step: int, values: Mapping[str, float]) -> None:
            shown = {
                "loss": "loss",
                "loss_audio": "audio",
                "gradient_norm": "gradient",
                "tokens_per_second": "tokens/s",
            }
            told = " ".join(f"{word} {values[name]:.3g}" for name, word in shown.items() if name in values)
            bar.update(task, completed=step, description=told)

        yield moved


def _judges(config: TrainingConfig) -> Mapping[str, Judge]:
    """The judges that the configuration names; both work offline."""
    from idlora.evaluation.training_judges import judges

    return judges(config.watching.judges)
