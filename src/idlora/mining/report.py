# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file: the funnel, why what was dropped, speakers and pairs, plots, and samples to play."""

from __future__ import annotations

import base64
import tempfile
from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from idlora.data.media import write_mp4, write_wav
from idlora.data.media.timeline import frames_between, read_mono
from idlora.errors import IDLoraError
from idlora.evaluation.laboratory.page import page
from idlora.evaluation.laboratory.tables import Sheet
from idlora.files import write_bytes, write_text
from idlora.mining import manifest
from idlora.mining.chain import one_by
from idlora.mining.figures import figures
from idlora.mining.run import Mined
from idlora.mining.tables import Row, Table, read_table

NAME = manifest.REPORT
_SAMPLE_SECONDS = 3.0
_SAMPLE_SIDE = 160  # pixels
_SAMPLE_RATE, _SOUND_RATE = 12.5, 16_000
_WHAT = {
    "probe": "recordings that could be opened",
    "files": "files that are looked at",
    "scenes": "shots",
    "speech": "stretches of speech",
    "faces": "stretches of one large frontal face",
    "active": "utterances said by the face that is seen",
    "clips": "clips of the training length",
    "quality": "clips good enough",
    "voices": "clips with a voice that can be told",
    "speakers": "clips of a speaker",
    "pairable": "clips of a speaker who is heard in several recordings",
    "words": "clips with words",
    "splits": "clips in a split",
    "pairs": "pairs",
    "media": "clips and references written",
    "captions": "captions",
}

_NEWER = {"pairable"}  # than folders that were mined before there was such a table


def write_report(out: Path, mined: Mined, samples: int = 3) -> Path:
    """Write `report.html` and `plots/`; returns the report's path.

    Args:
        out: folder of the tables.
        mined: what is reported.
        samples: pairs that can be played, and as many of each reason for which something was dropped.

    Raises:
        SettingsError: matplotlib is not installed.
        OutputError: a file cannot be written.
    """
    plots = figures(mined.tables)
    for plot in plots:
        write_bytes(out / "plots" / f"{plot.name}.png", plot.png)
        write_bytes(out / "plots" / f"{plot.name}.svg", plot.svg)
    sheets = [_funnel(mined.tables), _reasons(mined.tables), _splits(mined), _speakers(mined), _rights(mined)]
    players = _accepted(out, mined, samples) + _rejected(mined.tables, samples)
    about = f"{len(mined.lines)} pairs of {len({line['speaker'] for line in mined.lines})} speakers."
    write_text(out / NAME, page("From recordings to training pairs", about, sheets, plots, players))
    return out / NAME


def refreshed(out: Path) -> Path | None:
    """The report written anew from what the folder holds; None where there was none, or where tables are lacking.

    The old one is removed first, since it may play what was taken back.

    Raises:
        SettingsError: matplotlib is not installed.
        OutputError: a file cannot be written.
    """
    path = out / NAME
    if not path.is_file():
        return None
    path.unlink()
    tables = {name: table for name in _WHAT | {"links": ""} if (table := read_table(out / "tables", name)) is not None}
    if not tables.keys() >= {*_WHAT, "links"} - _NEWER:
        return None
    return write_report(out, Mined(tables, manifest.read_lines(out)))


def _funnel(tables: Mapping[str, Table]) -> Sheet:
    rows = []
    for name, what in _WHAT.items():
        if name in tables:
            table = tables[name]
            seconds = sum(row["end"] - row["start"] for row in table.rows if "end" in row and "start" in row)
            rows.append(
                (name, what, str(len(table.rows)), f"{seconds / 60:.1f}" if seconds else "", str(len(table.dropped)))
            )
    return Sheet(
        "Funnel",
        "What every stage kept and left out.",
        ("stage", "rows are", "kept", "minutes", "dropped"),
        tuple(rows),
    )


def _reasons(tables: Mapping[str, Table]) -> Sheet:
    rows = []
    for name, table in tables.items():
        for reason, count in Counter(row["reason"] for row in table.dropped).most_common():
            example = next(row for row in table.dropped if row["reason"] == reason)
            rows.append((name, reason, str(count), f"{example['item']}: {example['why']}"[:160]))
    return Sheet(
        "Dropped, and why", "Counted by stage; one example each.", ("stage", "reason", "count", "example"), tuple(rows)
    )


def _splits(mined: Mined) -> Sheet:
    rows = []
    for split in ("train", "validation", "test"):
        lines = [line for line in mined.lines if line["split"] == split]
        hard = sum(line["extra"]["difficulty"] == "hard" for line in lines)
        rows.append((split, str(len({line["speaker"] for line in lines})), str(hard), str(len(lines) - hard)))
    about = (
        "Hard: the reference is another recording; easy: another part of the same one. Speakers are in one split each."
    )
    return Sheet("Splits", about, ("split", "speakers", "hard pairs", "easy pairs"), tuple(rows))


def _speakers(mined: Mined) -> Sheet:
    clips, files = Counter[str](), dict[str, set[str]]()
    for row in mined.tables["speakers"].rows:
        clips[row["speaker"]] += 1
        files.setdefault(row["speaker"], set()).add(row["file"])
    pairs = Counter(str(line["speaker"]) for line in mined.lines)
    rows = [(who, str(len(files[who])), str(count), str(pairs[who])) for who, count in clips.most_common(40)]
    return Sheet("Speakers", "The forty with most clips.", ("speaker", "files", "clips", "pairs"), tuple(rows))


def _rights(mined: Mined) -> Sheet:
    counts = Counter((row["licence"], row["consent"]) for row in mined.tables["files"].rows)
    rows = tuple((licence, consent, str(count)) for (licence, consent), count in counts.most_common(20))
    return Sheet(
        "Rights",
        "By what right the files are used, as far as somebody has said.",
        ("licence", "consent", "files"),
        rows,
    )


def _accepted(out: Path, mined: Mined, count: int) -> str:
    """Pairs, evenly spread: the clip, its reference, and the reference as recorded."""
    lines = [line for line in mined.lines if all((out / name).is_file() for _, name in _files_of(line))]
    chosen = [lines[place] for place in np.linspace(0, len(lines) - 1, min(count, len(lines))).astype(int)]
    parts = []
    for line in chosen:
        extra = line["extra"]
        shown = "".join(
            f"<div><b>{label}</b>{_player((out / name).read_bytes(), Path(name).suffix)}</div>"
            for label, name in _files_of(line)
        )
        caption = " ".join(f"[{part.upper()}] {line[part]}" for part in ("visual", "speech", "sounds") if part in line)
        told = f"{line['speaker']}, {line['split']}, {extra['difficulty']}, distance {extra['distance']:.2f}. {caption}"
        parts.append(
            f'<h3>{escape(str(line["id"]))}</h3><p class="about">{escape(told)}</p><div class="examples">{shown}</div>'
        )
    return "<h2>Accepted pairs</h2>" + "".join(parts) if parts else ""


def _files_of(line: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    original = line["extra"]["original_reference"]
    return (("clip", line["video"]), ("reference", line["reference"]), ("as recorded", original))


def _rejected(tables: Mapping[str, Table], count: int) -> str:
    """Of every reason some stretches, cut small from their files."""
    files = one_by(tables["files"].rows, "file")
    parts = []
    for name, table in tables.items():
        by_reason: dict[str, list[Row]] = {}
        for row in table.dropped:
            if row["end"] > row["start"] and row["file"] in files:
                by_reason.setdefault(row["reason"], []).append(row)
        for reason, rows in by_reason.items():
            chosen = [rows[place] for place in np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
            shown = "".join(_stretch(files[row["file"]]["path"], row) for row in chosen)
            parts.append(f'<h3>{escape(name)}: {escape(reason)} ({len(rows)})</h3><div class="examples">{shown}</div>')
    return "<h2>Rejected</h2>" + "".join(parts) if parts else ""


def _stretch(path: str, row: Row) -> str:
    told = f"{row['item']} {row['start']:.1f} to {row['end']:.1f} s: {row['why']}"
    try:
        content, kind = _small(path, row["start"], min(row["end"], row["start"] + _SAMPLE_SECONDS))
    except IDLoraError as error:
        return f"<div><p>{escape(told)}: {escape(str(error)[:120])}</p></div>"
    return f"<div>{_player(content, kind)}<p>{escape(told[:160])}</p></div>"


def _small(path: str, start: float, end: float) -> tuple[bytes, str]:
    """A stretch as a small MP4, or its sound alone where it is shorter than a frame."""
    sound = read_mono(path, _SOUND_RATE, start, end)[None]
    frames = list(frames_between(path, _SAMPLE_RATE, start, end, _SAMPLE_SIDE))
    with tempfile.TemporaryDirectory() as folder:
        if not frames or len({frame.shape for frame in frames}) > 1:
            write_wav(Path(folder) / "stretch.wav", sound, _SOUND_RATE)
            return (Path(folder) / "stretch.wav").read_bytes(), ".wav"
        height, width = (side // 2 * 2 for side in frames[0].shape[:2])
        write_mp4(Path(folder) / "stretch.mp4", np.stack(frames)[:, :height, :width], _SAMPLE_RATE, sound, _SOUND_RATE)
        return (Path(folder) / "stretch.mp4").read_bytes(), ".mp4"


def _player(content: bytes, suffix: str) -> str:
    tag, kind = ("video", "video/mp4") if suffix == ".mp4" else ("audio", "audio/wav")
    coded = base64.b64encode(content).decode("ascii")
    return f'<{tag} controls preload="metadata" src="data:{kind};base64,{coded}"></{tag}>'
