# SPDX-License-Identifier: Apache-2.0
"""`idlora precompute`: training pairs through the codecs, once."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from idlora.cli.bars import work_bar
from idlora.cli.generate import checked_device, checked_dtype, quieten
from idlora.errors import InputError

if TYPE_CHECKING:
    from idlora.pipeline import IDLoraPipeline
    from idlora.training.latents.filling import Report


def precompute(  # noqa: PLR0913, PLR0917 - each is an option of the command
    source: Annotated[Path, typer.Argument(help="Manifest, a JSON object a line; or a folder of published latents.")],
    out: Annotated[Path, typer.Argument(help="Folder of the latents; it is made if missing.")],
    model: Annotated[str, typer.Option(help="`miniature`, a model folder, a single file, or a hub repository.")] = (
        "miniature"
    ),
    text_encoder: Annotated[Path | None, typer.Option(help="Folder of Gemma, for a single file.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a clip, 8k + 1; the model's default.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; the model's default.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; the model's default.")] = None,
    frame_rate: Annotated[float | None, typer.Option(help="Frames a second; the model's default.")] = None,
    max_voice_seconds: Annotated[float | None, typer.Option(help="Of a reference; the model's default.")] = None,
    clean_voice: Annotated[
        bool, typer.Option("--clean-voice/--raw-voice", help="Take noise out of references.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the networks: float32, bfloat16 or float16.")] = "float32",
    placement: Annotated[str, typer.Option(help="whole, or offload if not all fits the device.")] = "whole",
    store: Annotated[str, typer.Option(help="Dtype of the files: bfloat16, float16 or float32.")] = "bfloat16",
    shard_mb: Annotated[int, typer.Option(min=1, help="Megabytes of a file.")] = 256,
    keep_others: Annotated[
        bool, typer.Option("--keep-others", help="Keep samples that SOURCE does not name, such as another manifest's.")
    ] = False,
) -> None:
    """Encode training pairs; a second call makes only what is missing or has changed, and drops what was taken away.

    What cannot be used is told in report.json, and stops nothing.
    """
    from idlora.data.manifest import read_manifest
    from idlora.training.latents import encode

    sizes = {"num_frames": frames, "height": height, "width": width}
    given: dict[str, Any] = {**sizes, "frame_rate": frame_rate, "max_voice_seconds": max_voice_seconds}
    given = {name: value for name, value in given.items() if value is not None}
    if source.is_dir():
        if clean_voice or given:
            raise InputError(f"{source} holds latents that are made already; leave sizes, rates and seconds out")
        _tell(out, _imported(source, out, store, shard_mb << 20, keep_others=keep_others))
        return
    pairs, faults = read_manifest(source)
    quieten()
    pipe = _encoders(model, text_encoder, checked_device(device), dtype, placement)
    options = replace(
        encode.EncodeOptions.of(pipe.card.defaults),
        clean_voice=clean_voice,
        dtype=store,
        shard_bytes=shard_mb << 20,
        **given,
    )
    with work_bar("encoding", len(pairs) + len(faults)) as moved:
        report = encode.precompute(
            pairs, faults, pipe, out, options, lambda now: moved(now.seen), keep_others=keep_others
        )
    _tell(out, report)


def _imported(source: Path, out: Path, store: str, shard_bytes: int, *, keep_others: bool) -> Report:
    """Write a folder of the published layout as ours."""
    import torch

    from idlora.training.latents.encode import checked_store
    from idlora.training.latents.published import find_published, import_published

    samples, dtype = find_published(source), getattr(torch, checked_store(store))
    with work_bar("importing", len(samples)) as moved:
        report = import_published(
            samples, out, dtype, shard_bytes, lambda now: moved(now.seen), keep_others=keep_others
        )
    print("note: published latents say nothing of an empty prompt, so train without text dropout", file=sys.stderr)
    return report


def _tell(out: Path, report: Report) -> None:
    """Say what has become of the samples; InputError if some failed."""
    from idlora.training.latents.filling import report_path

    counts = f"{report.done} done, {report.skipped} skipped, {len(report.failed)} failed"
    if report.dropped:
        counts += f"; {report.dropped} dropped, which were asked for no more or failed now"
    if report.others:
        counts += f"; {report.others} kept that were not asked for"
    if report.cut:
        counts += f"; {report.cut} captions are longer than the model reads, and were cut"
    print(f"{out}: {counts}")
    if report.failed:
        raise InputError(f"{len(report.failed)} of {report.total} samples failed; {report_path(out)} says why")


def _encoders(model: str, text_encoder: Path | None, device: str, dtype: str, placement: str) -> IDLoraPipeline:
    """A pipeline that loads a network when it is first needed: the transformer never is."""
    from idlora.networks.generations import generation_of
    from idlora.pipeline import IDLoraPipeline, Parts, Placement
    from idlora.pipeline.card import read_card
    from idlora.pipeline.sources import digests_of, is_distilled, load_model, model_path

    parts, where = Parts(text_encoder), Placement(placement)  # type: ignore[arg-type]  # it refuses what it does not know
    with model_path(model) as path:
        components = load_model(path, checked_dtype(dtype), parts)
        generation = generation_of(components.config("transformer"))
        card = read_card(path, generation, distilled=is_distilled(generation, parts))
        origins = digests_of(path, None, parts)
    return IDLoraPipeline(components, card, device=device, placement=where, origins=origins)
