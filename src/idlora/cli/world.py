# SPDX-License-Identifier: Apache-2.0
"""`idlora world`: clips of the procedural world that the miniature learns from, to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idlora.errors import InputError, OutputError

if TYPE_CHECKING:
    from idlora.data.world.clip import ClipSpec

app = typer.Typer(help="The procedural world of talking heads.")
CAPTIONS_NAME = "captions.json"


@app.callback()
def _group() -> None:
    """Without a callback typer would turn a group of one command into that command."""


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(help="Folder to write to; it is made if missing.")],
    count: Annotated[int, typer.Option("--count", help="Number of clips.")] = 8,
    first: Annotated[int, typer.Option("--first", help="Number of the first clip.")] = 0,
) -> None:
    """Write clips of training speakers as MP4, and their captions."""
    from idlora.data.world.captions import caption
    from idlora.data.world.speakers import clip
    from idlora.files import write_text

    if count < 1 or first < 0:
        raise InputError(f"{count} clips from number {first}; ask for at least 1, from 0 on")
    make_folder(out)
    captions = {}
    for index in range(first, first + count):
        spec = clip("train", index)
        name = f"clip-{index:03d}.mp4"
        write_clip(out / name, spec)
        captions[name] = caption(spec)
        print(f"{out / name}  {captions[name]}")
    write_text(out / CAPTIONS_NAME, json.dumps(captions, indent=1) + "\n")


def make_folder(folder: Path) -> None:
    """Make a folder where there is none (OutputError if that fails)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}; choose another folder") from error


def write_clip(path: Path, spec: ClipSpec) -> None:
    """Render a clip and write it as MP4."""
    import numpy as np

    from idlora.data.media import write_mp4
    from idlora.data.world.clip import FRAME_RATE, render_picture, render_sound
    from idlora.data.world.voice import SAMPLE_RATE

    sound = render_sound(spec)
    samples = sound.samples.astype(np.float32)[None]
    write_mp4(path, render_picture(spec, sound), FRAME_RATE, samples, SAMPLE_RATE)
