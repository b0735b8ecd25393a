# SPDX-License-Identifier: Apache-2.0
"""`idlora world`: clips of the procedural world that the miniature learns from, to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from idlora.data.processes import own_processors
from idlora.errors import InputError, OutputError

app = typer.Typer(help="The procedural world of talking heads.")
CAPTIONS_NAME = "captions.json"
MANIFEST_NAME = "manifest.jsonl"
TRUTH_NAME = "truth.json"


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
    from idlora.data.world.pairs import write_clip
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


@app.command()
def pairs(
    out: Annotated[Path, typer.Argument(help="Folder to write to; it is made if missing.")],
    count: Annotated[int, typer.Option("--count", help="Number of pairs.")] = 3000,
    split: Annotated[str, typer.Option("--split", help="Whose clips: train, validation or test.")] = "train",
    first: Annotated[int, typer.Option("--first", help="Number of the first pair.")] = 0,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; one a processor.")] = None,
) -> None:
    """Write clips, another recording of each speaker, and manifest.jsonl: what an adapter is trained on.

    What is there already is not made again, and pairs of an earlier call stay in the manifest.
    """
    from idlora.cli.bars import work_bar
    from idlora.data.manifest import read_manifest, write_manifest
    from idlora.data.world.pairs import PAIR_SPLITS, WorldPair, render_pairs

    if count < 1 or first < 0:
        raise InputError(f"{count} pairs from number {first}; ask for at least 1, from 0 on")
    chosen = next((name for name in PAIR_SPLITS if name == split), None)
    if chosen is None:
        raise InputError(f"there is no split {split!r}; choose one of {', '.join(PAIR_SPLITS)}")
    for folder in (out, out / "clips", out / "references"):
        make_folder(folder)
    wanted = [WorldPair(chosen, index) for index in range(first, first + count)]
    with work_bar("rendering", len(wanted)) as moved:
        for number in render_pairs(wanted, out, workers or own_processors()):
            moved(number)
    manifest = out / MANIFEST_NAME
    known = {pair.id: pair for pair in read_manifest(manifest)[0]} if manifest.is_file() else {}
    known |= {pair.id: pair for pair in (each.pair(out) for each in wanted)}
    write_manifest(manifest, [known[name] for name in sorted(known)])
    print(f"{manifest}: {len(known)} pairs, of which {len(wanted)} were asked for")


@app.command()
def recordings(
    out: Annotated[Path, typer.Argument(help="Folder to write to; it is made if missing.")],
    speakers: Annotated[int, typer.Option("--speakers", help="Number of speakers.")] = 20,
    files: Annotated[int, typer.Option("--files", help="Files of each, the last in another place.")] = 3,
    conversations: Annotated[int, typer.Option("--conversations", help="Files with two people.")] = 2,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; one a processor.")] = None,
) -> None:
    """Write raw recordings (shots, cuts, listeners, music), for `idlora pairs` to mine, and truth.json.

    What is there already is not made again.
    """
    from idlora.cli.bars import work_bar
    from idlora.data.world.recordings import draw_conversations, draw_recordings, write_recordings
    from idlora.files import write_text

    if speakers < 2 or files < 1 or conversations < 0:
        raise InputError(f"{speakers} speakers with {files} files; ask for at least 2 speakers and 1 file of each")
    make_folder(out)
    wanted = draw_recordings(speakers, files) + draw_conversations(speakers, conversations)
    with work_bar("rendering", len(wanted)) as moved:
        for number in write_recordings(wanted, out, workers or own_processors()):
            moved(number)
    write_text(out / TRUTH_NAME, json.dumps([each.truth() for each in wanted], indent=1) + "\n")
    print(f"{out}: {len(wanted)} recordings of {speakers} speakers, and {TRUTH_NAME}")


def make_folder(folder: Path) -> None:
    """Make a folder where there is none (OutputError if that fails)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}; choose another folder") from error
