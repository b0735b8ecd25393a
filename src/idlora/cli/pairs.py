# SPDX-License-Identifier: Apache-2.0
"""`idlora pairs`: raw recordings to training pairs; `idlora withdraw`: a file or a speaker taken back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from idlora.cli.bars import work_bar
from idlora.cli.generate import quieten
from idlora.errors import InputError, SettingsError

if TYPE_CHECKING:
    from idlora.mining.run import Mined
    from idlora.mining.settings import MiningSettings


def pairs(  # noqa: PLR0913, PLR0917 - each is an option of the command
    videos: Annotated[Path, typer.Argument(help="Folder of videos, one video, or a list of their paths.")],
    out: Annotated[Path, typer.Argument(help="Folder of tables, clips, manifest and report; it is made if missing.")],
    layout: Annotated[
        str, typer.Option(help="auto, folder, list, speakers (a folder each), voxceleb, celebv-hq, talkvid.")
    ] = "auto",
    list_: Annotated[Path | None, typer.Option("--list", help="Published JSON of celebv-hq or talkvid.")] = None,
    rights: Annotated[Path | None, typer.Option(help="CSV: path (or pattern), source, licence, consent.")] = None,
    require_consent: Annotated[bool, typer.Option("--require-consent", help="Use what is consented to alone.")] = False,
    frames: Annotated[int, typer.Option(help="Frames of a clip, 8k + 1.")] = 121,
    frame_rate: Annotated[float, typer.Option(help="Frames a second of a clip.")] = 25.0,
    finder: Annotated[str, typer.Option(help="Of faces: auto, mesh, cascade, or world (the miniature's).")] = "auto",
    speaker_weights: Annotated[str, typer.Option(help="JUDGE=PATH, a better encoder of voices.")] = "",
    whisper: Annotated[str, typer.Option(help="Folder of Whisper; pocketsphinx without.")] = "",
    vocabulary: Annotated[Path | None, typer.Option(help="Words that pocketsphinx listens for, one a line.")] = None,
    captioner: Annotated[str, typer.Option(help="Folder of a captioner, or address of an API.")] = "",
    captioner_model: Annotated[str, typer.Option(help="Name of the model at that address.")] = "",
    per_speaker: Annotated[int, typer.Option(min=1, help="Pairs of a speaker at most.")] = 12,
    clean: Annotated[bool, typer.Option("--clean-references/--raw-references", help="Denoise references.")] = True,
    validation: Annotated[float, typer.Option(help="Share of the speakers.")] = 0.05,
    test: Annotated[float, typer.Option(help="Share of the speakers.")] = 0.1,
    settings: Annotated[
        Path | None, typer.Option(help="JSON of further settings, as settings.json shows them.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="By Ray Data, on a cluster or on this machine.")] = False,
    samples: Annotated[int, typer.Option(min=0, max=20, help="That the report plays, of each kind.")] = 3,
) -> None:
    """Make training pairs of ordinary videos; a second call makes only what is new or has changed.

    What is left out is told in the report and in the tables, each with its reason, and stops nothing.
    """
    quieten()
    from idlora.mining.report import write_report
    from idlora.mining.run import mine
    from idlora.mining.sources import find_sources, with_rights
    from idlora.mining.workshop import Workshop

    judge, equals, path = speaker_weights.partition("=")
    if speaker_weights and not (judge and equals and path):
        raise SettingsError(
            f"--speaker-weights {speaker_weights!r} is not JUDGE=PATH; say speaker-ecapa=embedding_model.ckpt"
        )
    given: dict[str, dict[str, Any]] = {
        "files": {"require_consent": require_consent},
        "faces": {"finder": finder},
        "clips": {"num_frames": frames, "frame_rate": frame_rate},
        "speakers": {"encoder": judge, "weights": path} if judge else {},
        "words": {"whisper": whisper, "vocabulary": _vocabulary(vocabulary)},
        "captions": {"captioner": captioner, "model": captioner_model},
        "pairs": {"per_speaker": per_speaker, "clean": clean},
        "splits": {"validation": validation, "test": test},
    }
    sources = with_rights(find_sources(videos, layout, list_), rights, _warned)
    with _bars() as notice:
        mined = mine(sources, Workshop(out, workers, ray, notice), _settings(given, settings))
    report = write_report(out, mined, samples)
    print("\n".join(_told(mined)))
    print(f"{out / 'manifest.jsonl'}: {len(mined.lines)} pairs; {report}")


def withdraw(
    out: Annotated[Path, typer.Argument(help="Folder of `idlora pairs`.")],
    speaker: Annotated[str, typer.Option(help="Name of a speaker, as the manifest has it.")] = "",
    file: Annotated[str, typer.Option(help="Path or name of a recording.")] = "",
) -> None:
    """Remove a speaker, or a recording, and everything that was derived from it; no later run brings it back."""
    from idlora.mining.report import refreshed
    from idlora.mining.withdrawal import withdraw as remove

    counts = remove(out, speaker, file, lambda: refreshed(out))
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{out}: removed {told}; latents and adapters made of it lie elsewhere, so make them anew")


def _warned(message: str) -> None:
    print(message, file=sys.stderr)


def _vocabulary(path: Path | None) -> tuple[str, ...]:
    from idlora.mining.words import vocabulary_of

    if path is None:
        return ()
    try:
        return vocabulary_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; name a text file, a word a line") from error


def _settings(given: dict[str, dict[str, Any]], path: Path | None) -> MiningSettings:
    """Settings of the options; those of a file count where they stand in it."""
    from idlora.mining.settings import settings_of

    return settings_of(given, path)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage, begun when the stage is."""
    current: list[tuple[str, Any, Callable[[int], None]]] = []

    def close() -> None:
        while current:
            current.pop()[1].__exit__(None, None, None)

    def moved(stage: str, done: int, total: int) -> None:
        if not current or current[0][0] != stage:
            close()
            bar = work_bar(stage, max(1, total))
            current.append((stage, bar, bar.__enter__()))
        current[0][2](done)

    try:
        yield moved
    finally:
        close()


def _told(mined: Mined) -> list[str]:
    """A line a stage: what was kept and what was left out, by reason."""
    from collections import Counter

    lines = []
    for name, table in mined.tables.items():
        reasons = Counter(row["reason"] for row in table.dropped)
        gone = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        lines.append(f"{name}: {len(table.rows)}" + (f"; dropped: {gone}" if gone else ""))
    return lines
