# SPDX-License-Identifier: Apache-2.0
"""From recordings to manifest and report: all stages, one after the other; a second call makes what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from idlora.errors import InputError, OutputError, SettingsError
from idlora.files import write_text
from idlora.mining import manifest, splits
from idlora.mining.chain import Chain, kept_of
from idlora.mining.grouping import doubts_of
from idlora.mining.mapping import cluster
from idlora.mining.settings import MiningSettings
from idlora.mining.sources import Source
from idlora.mining.splits import Frozen, read_frozen, write_frozen
from idlora.mining.tables import Row, Table
from idlora.mining.withdrawal import SPLITS_NAME, Withdrawn, read_withdrawn
from idlora.mining.workshop import Workshop

GIVEN_NAME = "settings.json"


@dataclass(frozen=True)
class Mined:
    """All tables by stage, and the lines of the manifest."""

    tables: Mapping[str, Table]
    lines: Sequence[dict[str, Any]]


def mine(sources: Sequence[Source], shop: Workshop, settings: MiningSettings) -> Mined:
    """Make training pairs of recordings.

    Tables lie in `tables/`, what is known of single files in `cache/`; both are used again by the next call, whatever
    ended this one. The manifest is written last.

    Args:
        sources: recordings.
        shop: where and how to work.
        settings: what is wanted.

    Raises:
        InputError: nothing can be used.
        SettingsError: a package that a stage needs is not installed.
        OutputError: something cannot be written.
    """
    _check_denoiser(settings)
    shop.prepare()
    write_text(shop.out / GIVEN_NAME, json.dumps(asdict(settings), indent=1) + "\n")
    withdrawn = read_withdrawn(shop.out)
    with cluster(shop.workers, ray=shop.ray):
        tables = _all(Chain(shop, settings), sources, withdrawn)
    lines = manifest.lines_of(tables)
    manifest.write_manifests(shop.out, lines)
    return Mined(tables, lines)


def _all(chain: Chain, sources: Sequence[Source], withdrawn: Withdrawn) -> dict[str, Table]:
    """Every table by the name of its stage."""
    tables = _looked_at(chain, sources, withdrawn)
    tables |= _known(chain, tables)
    tables["splits"] = _split(chain, tables)
    held = kept_of(tables["clips"], tables["quality"], tables["words"])
    parts = [tables[name] for name in ("quality", "words", "splits")]
    tables["pairs"] = chain.pairs(tables["files"], held, *parts)
    tables["media"] = chain.media(tables["files"], tables["clips"], tables["pairs"])
    tidied(chain.shop.out, tables["media"])
    tables["captions"] = chain.captions(tables["files"], tables["clips"], tables)
    return tables


def tidied(out: Path, media: Table) -> None:
    """Remove clips and references that no pair is made of any more (OutputError if that fails)."""
    wanted = {row[name] for row in media.rows for name in ("video", "original", "reference")}
    for folder in ("clips", "originals", "references"):
        for path in (out / folder).iterdir():
            if f"{folder}/{path.name}" not in wanted:
                try:
                    path.unlink()
                except OSError as error:
                    raise OutputError(f"cannot remove {path}: {error.strerror}; remove it by hand") from error


def _check_denoiser(settings: MiningSettings) -> None:
    """A missing denoiser is told before hours of work, not after."""
    if settings.pairs.clean or settings.speakers.clean:
        from importlib.util import find_spec

        if find_spec("pyrnnoise") is None:
            raise SettingsError("cleaning needs RNNoise: pip install 'idlora[clean]', or say --raw-references")


def _looked_at(chain: Chain, sources: Sequence[Source], withdrawn: Withdrawn) -> dict[str, Table]:
    """Files, shots, speech, faces, who speaks, clips."""
    probe, files = chain.files(sources, withdrawn.files)
    if not files.rows:
        told = ", ".join(sorted({row["reason"] for row in (*probe.dropped, *files.dropped)}))
        raise InputError(f"none of {len(sources)} recordings can be used ({told}); see tables/files.dropped.parquet")
    shots, spoken = (chain.spared(files, table, withdrawn) for table in (chain.scenes(files), chain.speech(files)))
    faces = chain.faces(files, shots)
    active = chain.active(files, faces, spoken)
    cut = chain.clips(faces, spoken, active)
    seen = {"scenes": shots, "speech": spoken, "faces": faces, "active": active, "clips": cut}
    return {"probe": probe, "files": files, **seen}


def _known(chain: Chain, tables: Mapping[str, Table]) -> dict[str, Table]:
    """Quality, voices, words, speakers."""
    files, cut = tables["files"], tables["clips"]
    quality = chain.quality(files, tables["faces"], tables["speech"], cut)
    good = kept_of(cut, quality)
    voices = chain.voices(files, good)
    speakers, links = chain.speakers(files, kept_of(good, voices), voices)
    # Hearing words takes longest, so only of those of whom there can be a pair.
    words = chain.words(files, kept_of(good, chain.pairable(files, speakers)))
    return {"quality": quality, "voices": voices, "words": words, "speakers": speakers, "links": links}


def _split(chain: Chain, tables: Mapping[str, Table]) -> Table:
    """Speakers shared out; who is in a split stays there from now on."""
    path = chain.shop.out / SPLITS_NAME
    frozen = read_frozen(path)
    rows, gone = shared(tables, frozen, chain.settings)
    # By its contents: what is frozen changes by this very call, and the next one must find the same table.
    table = chain.shop.settled("splits", splits.COLUMNS, rows, gone)
    after = Frozen(
        {**frozen.speakers, **{row["speaker"]: row["split"] for row in table.rows}},
        {**frozen.clips, **{row["clip"]: row["speaker"] for row in table.rows}},
    )
    if after != frozen:
        write_frozen(path, after)
    return table


def shared(tables: Mapping[str, Table], frozen: Frozen, settings: MiningSettings) -> tuple[list[Row], list[Row]]:
    """The table of splits with what is left out."""
    said = {row["clip"] for row in tables["words"].rows}
    groups = {row["clip"]: row["speaker"] for row in tables["speakers"].rows if row["clip"] in said}
    speakers, bridging = splits.settled(groups, frozen)
    recordings = {row["file"]: row["recording"] for row in tables["files"].rows}
    files = {row["clip"]: row["file"] for row in tables["speakers"].rows}
    heard: dict[str, set[str]] = {}
    for clip, who in speakers.items():
        heard.setdefault(who, set()).add(recordings[files[clip]])
    eligible = {who for who, where in heard.items() if len(where) > 1}
    doubts = doubts_of(tables["links"].rows, speakers)
    shares = splits.shared_out(heard, eligible, doubts, frozen, settings.splits)
    out = splits.in_doubt(shares, doubts, frozen) if settings.splits.doubts == "drop" else set()
    clips = [(row["clip"], row["file"]) for row in tables["speakers"].rows if row["clip"] in groups]
    return splits.rows_of(clips, speakers, shares, out, bridging)
