# SPDX-License-Identifier: Apache-2.0
"""The manifest that `idlora precompute` reads, a line a pair, with where everything came from in `extra`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idlora.files import write_text
from idlora.mining.chain import one_by
from idlora.mining.pairing import OTHER
from idlora.mining.tables import Row, Table

NAME = "manifest.jsonl"
EASY, HARD = "easy", "hard"


def lines_of(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """One object a pair whose files were all written, in the order of the table of pairs."""
    media, captions = one_by(tables["media"].rows, "clip"), one_by(tables["captions"].rows, "clip")
    splits, files = one_by(tables["splits"].rows, "clip"), one_by(tables["files"].rows, "file")
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
