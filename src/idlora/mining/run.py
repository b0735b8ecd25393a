# SPDX-License-Identifier: Apache-2.0
"""From recordings to manifest and report: all stages, one after the other; a second call makes what is missing."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from idlora.errors import InputError, SettingsError
from idlora.files import write_text
from idlora.mining import manifest, probing, splits
from idlora.mining.chain import Chain, kept_of
from idlora.mining.cutting import removed
from idlora.mining.grouping import doubts_of
from idlora.mining.ledger import is_ledger
from idlora.mining.mapping import cluster
from idlora.mining.settings import MiningSettings
from idlora.mining.sources import Source
from idlora.mining.splits import Frozen, read_frozen, write_frozen
from idlora.mining.tables import Row, Table, key_of, read_table, remove_table
from idlora.mining.withdrawal import SPLITS_NAME, Withdrawn, ended
from idlora.mining.workshop import FOLDERS, Workshop

logger = logging.getLogger(__name__)

GIVEN_NAME = "settings.json"
_DIGITS = 8  # with which a clip's name ends, at the least: when it begins


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
        sources: recordings; clips that an earlier call made are passed over.
        shop: where and how to work.
        settings: what is wanted.

    Raises:
        InputError: nothing can be used, or a recording lies where files are written and removed.
        SettingsError: a package that a stage needs is not installed.
        OutputError: something cannot be written.
    """
    _check_denoiser(settings)
    sources = outside(sources, shop)
    shop.prepare()
    write_text(shop.out / GIVEN_NAME, json.dumps(asdict(settings), indent=1) + "\n")
    withdrawn = ended(shop.out)
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
    tidied(chain.shop, tables["media"])
    tables["captions"] = chain.captions(tables["files"], tables["clips"], tables)
    return tables


def tidied(shop: Workshop, media: Table) -> None:
    """Remove clips and references that no pair is made of any more (OutputError if that fails).

    Only files with the name of a clip of a recording that was mined here: `out` may be somebody's folder of work.
    """
    wanted = {row[name] for row in media.rows for name in ("video", "original", "reference")}
    known = _known_files(shop)
    removed(shop.out, lambda name, clip: name not in wanted and _is_ours(clip, known))


def outside(sources: Sequence[Source], shop: Workshop) -> list[Source]:
    """Sources without clips that this command made: `out` may lie among the videos.

    Raises:
        InputError: another source lies in a folder in which files are written and removed, or none is left.
    """
    folders = {os.path.realpath(shop.out / name) for name in FOLDERS}
    known = _known_files(shop) if shop.out.is_dir() else set()
    kept = []
    for source in sources:
        try:
            real = Path(os.path.realpath(source.path))
        except ValueError:  # a name that no system takes: it is told with its reason later
            kept.append(source)
            continue
        if not folders & {str(parent) for parent in real.parents}:
            kept.append(source)
        elif not _is_ours(real.stem, known):
            raise InputError(
                f"{source.path} lies in {shop.out}, in a folder whose files are written and removed; "
                "choose another folder for what is made"
            )
    if sources and not kept:
        raise InputError(f"all {len(sources)} videos are clips that were made in {shop.out}; name the recordings")
    if len(kept) < len(sources):
        logger.info("%d clips of %s are no recordings", len(sources) - len(kept), shop.out)
    return kept


def _known_files(shop: Workshop) -> set[str]:
    """Names of all recordings that were ever looked at here, as far as it is known."""
    found: set[str] = set()
    for stage, column in (("probe", "name"), ("media", "file")):
        path = shop.out / "cache" / f"{stage}.jsonl"
        for _, entry in shop.ledger(stage).entries() if is_ledger(path) else ():
            found |= {str(row.get(column, entry["file"])) for row in entry["outcome"].get("rows", ())}
        if key_of(shop.tables, stage) and (table := read_table(shop.tables, stage)):
            found |= {str(row[column]) for row in table.rows}
    return found


def _is_ours(clip: str, files: Collection[str]) -> bool:
    file, _, begins = clip.rpartition("-")
    return file in files and begins.isdigit() and len(begins) >= _DIGITS


def _check_denoiser(settings: MiningSettings) -> None:
    """A missing denoiser is told before hours of work, not after."""
    if settings.pairs.clean or settings.speakers.clean:
        from importlib.util import find_spec

        if find_spec("pyrnnoise") is None:
            raise SettingsError("cleaning needs RNNoise: pip install 'idlora[clean]', or say --raw-references")


def _looked_at(chain: Chain, sources: Sequence[Source], withdrawn: Withdrawn) -> dict[str, Table]:
    """Files, shots, speech, faces, who speaks, clips."""
    probe, files = _allowed(chain, sources, withdrawn)
    if not files.rows:
        told = ", ".join(sorted({row["reason"] for row in (*probe.dropped, *files.dropped)}))
        raise InputError(f"none of {len(sources)} recordings can be used ({told}); see tables/files.dropped.parquet")
    shots, spoken = (chain.spared(files, table, withdrawn) for table in (chain.scenes(files), chain.speech(files)))
    faces = chain.faces(files, shots)
    active = chain.active(files, faces, spoken)
    cut = chain.clips(faces, spoken, active)
    seen = {"scenes": shots, "speech": spoken, "faces": faces, "active": active, "clips": cut}
    return {"probe": probe, "files": files, **seen}


def _allowed(chain: Chain, sources: Sequence[Source], withdrawn: Withdrawn) -> tuple[Table, Table]:
    """What the files hold, and which are looked at; what was made of those that may not be used any more is removed.

    Here already, and not only at the end: what follows may fail, or end for want of any other file.
    """
    out, rules = chain.shop.out, chain.settings.files
    probe, files = chain.files(sources, withdrawn.files)
    if [row["file"] for row in files.rows] != [
        row["file"] for row in probing.chosen(probe.rows, rules, withdrawn.files)[0]
    ]:
        remove_table(chain.shop.tables, files.name)  # of a version that had other rules of consent
        probe, files = chain.files(sources, withdrawn.files)
    barred = probing.barred(probe.rows, rules, withdrawn.files) - {row["file"] for row in files.rows}
    count = manifest.without_clips(out, lambda clip: _is_ours(clip, barred))
    count += removed(out, lambda _, clip: _is_ours(clip, barred))
    if count:
        (out / manifest.REPORT).unlink(missing_ok=True)  # it plays them
    return probe, files


def _known(chain: Chain, tables: Mapping[str, Table]) -> dict[str, Table]:
    """Quality, voices, words, speakers."""
    files, cut = tables["files"], tables["clips"]
    quality = chain.quality(files, tables["faces"], tables["speech"], cut)
    good = kept_of(cut, quality)
    voices = chain.voices(files, good)
    speakers, links = chain.speakers(files, kept_of(good, voices), voices)
    # Hearing words takes longest, so only of those of whom there can be a pair.
    pairable = chain.pairable(files, speakers)
    words = chain.words(files, kept_of(good, pairable))
    known = {"quality": quality, "voices": voices, "words": words, "speakers": speakers, "links": links}
    return {**known, "pairable": pairable}


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
    # A link names its voices by clips that may have no words; a voice is that of all of its clips.
    voices: dict[str, set[str]] = {}
    for row in tables["speakers"].rows:
        if row["clip"] in speakers:
            voices.setdefault(row["voice"], set()).add(speakers[row["clip"]])
    doubts = doubts_of(tables["links"].rows, voices)
    known = {row["file"]: row["label"] for row in tables["files"].rows}
    people = splits.people_of({clip: known[files[clip]] for clip in speakers}, speakers)
    shares, torn = splits.shared_by_people(people, eligible, doubts, frozen, settings.splits)
    bridging |= {clip for clip, who in speakers.items() if who in torn}
    out = splits.in_doubt(shares, doubts, frozen) if settings.splits.doubts == "drop" else set()
    clips = [(row["clip"], row["file"]) for row in tables["speakers"].rows if row["clip"] in groups]
    return splits.rows_of(clips, speakers, shares, out, bridging)
