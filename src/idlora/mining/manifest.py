# SPDX-License-Identifier: Apache-2.0
"""The manifest that `idlora precompute` reads, a line a pair, with where everything came from in `extra`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from idlora.files import write_text
from idlora.mining.pairing import OTHER
from idlora.mining.tables import Row, Table

NAME = "manifest.jsonl"
REPORT = "report.html"
EASY, HARD = "easy", "hard"


def lines_of(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """One object a pair whose files were all written, in the order of the table of pairs."""
    media, captions, splits = (
        {row["clip"]: row for row in tables[name].rows} for name in ("media", "captions", "splits")
    )
    files = {row["file"]: row for row in tables["files"].rows}
    found = []
    for pair in tables["pairs"].rows:
        clip, reference = media.get(pair["clip"]), media.get(pair["reference"])
        caption = captions.get(pair["clip"])
        if clip and reference and caption and clip["video"] and reference["reference"]:
            extra = _extra(pair, reference, caption, files)
            parts = {part: caption[part] for part in ("visual", "speech", "sounds") if caption[part]}
            named = {"id": pair["pair"], "video": clip["video"], "reference": reference["reference"], **parts}
            split = splits[pair["clip"]]["split"]
            found.append({**named, "speaker": pair["speaker"], "split": split, "extra": extra})
    return found


def _extra(pair: Row, reference: Row, caption: Row, files: Mapping[str, Row]) -> dict[str, Any]:
    told = {key: files[pair["file"]][key] for key in ("recording", "source", "licence", "consent")}
    other = {f"reference_{key}": files[pair["reference_file"]][key] for key in told}
    return {
        "difficulty": HARD if pair["relation"] == OTHER else EASY,
        "distance": round(pair["distance"], 4),
        "bin": pair["bin"],
        "file": pair["file"],
        "reference_file": pair["reference_file"],
        "original_reference": reference["original"],
        "reference_cleaned": reference["cleaned"],
        "captioner": caption["captioner"],
        **told,
        **other,
    }


def write_manifests(out: Path, lines: list[dict[str, Any]]) -> None:
    """Write `manifest.jsonl`, and the pairs of the test split as `test-easy.jsonl` and `test-hard.jsonl`.

    Raises:
        OutputError: a file cannot be written.
    """
    _write(out / NAME, lines)
    for name in (EASY, HARD):
        tests = [line for line in lines if line["split"] == "test" and line["extra"]["difficulty"] == name]
        _write(out / f"test-{name}.jsonl", tests)


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_lines(out: Path) -> list[dict[str, Any]]:
    """The lines of `manifest.jsonl`; none where there is no such file."""
    path = out / NAME
    return [json.loads(line) for line in _split(path)] if path.is_file() else []


def without_clips(out: Path, goes: Callable[[str], bool]) -> int:
    """Rewrite the manifests of a folder without lines of some clips; returns how many went.

    Args:
        out: folder of `idlora pairs`; lines of all `*.jsonl` in it are looked at, since people part manifests.
        goes: told of a clip.

    Raises:
        OutputError: a manifest cannot be rewritten.
    """
    count = 0
    for path in sorted(out.glob("*.jsonl")):
        lines = _split(path)
        kept = [line for line in lines if not any(goes(clip) for clip in _clips_of(line))]
        if len(kept) < len(lines):
            write_text(path, "".join(f"{line}\n" for line in kept))
        count += len(lines) - len(kept)
    return count


def _split(path: Path) -> list[str]:
    """The lines of a file, parted where lines of JSON are: texts in them may hold other ends of lines."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _clips_of(line: str) -> set[str]:
    """The clips that a line is made of; none of what is no line of a manifest."""
    try:
        told = json.loads(line)
    except ValueError:
        return set()
    return (
        {Path(str(told[key])).stem for key in ("video", "reference") if key in told}
        if isinstance(told, dict)
        else set()
    )
