# SPDX-License-Identifier: Apache-2.0
"""What every file holds, and which of them are looked at at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from idlora.data.media.timeline import probe
from idlora.errors import IDLoraError, InputError, MediaError
from idlora.files import sha256_of
from idlora.mining.mapping import Item, Outcome
from idlora.mining.settings import FileRules
from idlora.mining.sources import GRANTED, REFUSED, UNKNOWN
from idlora.mining.tables import Row, dropped

SILENT, BRIEF, SMALL, TWICE, REFUSAL, NO_CONSENT, WITHDRAWN = (
    "no audio track", "too short", "too small", "the same file twice", "consent refused", "consent unknown", "withdrawn"
)  # fmt: skip
_BARRED = (REFUSAL, NO_CONSENT, WITHDRAWN)
COLUMNS = {
    "file": "text", "path": "text", "sha256": "text", "start": "number", "end": "number",
    "container": "text", "video_codec": "text", "audio_codec": "text", "width": "whole", "height": "whole",
    "rotation": "whole", "frame_rate": "number", "variable": "truth", "seconds": "number", "sample_rate": "whole",
    "channels": "whole", "label": "text", "recording": "text", "source": "text", "licence": "text", "consent": "text",
}  # fmt: skip
_ID = 16  # hexadecimal digits of a file's name


def item_of(row: Row) -> Item:
    """A source as an item: its file's size and time stand for its contents until they are read."""
    try:
        state = Path(row["path"]).stat()
        seen = [state.st_size, state.st_mtime_ns]
    except (OSError, ValueError):  # a value: names may hold what no system takes
        seen = []
    return {**row, "file": row["path"], "seen": seen, "named": row["path"]}


def probed(item: Item) -> Outcome:
    """One row: what the file holds.

    Raises:
        InputError: it cannot be read or is damaged.
    """
    told = {key: item[key] for key in ("path", "start", "label", "recording", "source", "licence", "consent")}
    if not all(_is_text(value) for value in told.values() if isinstance(value, str)):
        raise InputError("its name, or what is said of it, is no UTF-8 text, which tables are; rename it")
    path = Path(item["path"])
    digest = sha256_of(path)
    if not path.stat().st_size:
        raise MediaError(f"{path.name} is empty, 0 bytes; copy it anew")
    try:
        found = asdict(probe(path))
    except IDLoraError as error:
        raise type(error)(str(error).replace(str(path), path.name)) from error
    end = found["seconds"] if item["end"] < 0 else min(item["end"], found["seconds"])
    name = digest[:_ID] + (f"-{round(item['start'] * 1000)}" if item["start"] > 0 else "")
    return {"rows": [{**found, **told, "name": name, "sha256": digest, "end": end}]}


def _is_text(value: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def chosen(rows: Sequence[Row], rules: FileRules, withdrawn: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """The files that are looked at, and the others with their reasons.

    Args:
        rows: of `probed`, in the order of their paths.
        rules: which.
        withdrawn: digests of the files that were withdrawn.
    """
    kept: list[Row] = []
    gone: list[Row] = []
    names: dict[str, str] = {}
    refused = _refused(rows)
    for row in rows:
        fault = _fault(row, rules, withdrawn) or _as_refused(row, refused)
        if not fault and row["name"] in names:
            fault = (TWICE, f"as {names[row['name']]}")
        if fault:
            gone.append(dropped(row["path"], row["path"], *fault))
            continue
        names[row["name"]] = row["path"]
        end = min(row["end"], row["start"] + 60 * rules.most_minutes)
        kept.append({**row, "file": row["name"], "end": end})
    return kept, gone


def barred(rows: Sequence[Row], rules: FileRules, withdrawn: Sequence[str]) -> set[str]:
    """Names of the files that may not be used: nobody consents to it, or it was taken back."""
    refused = _refused(rows)
    faults = {row["name"]: _fault(row, rules, withdrawn) or _as_refused(row, refused) for row in rows}
    return {name for name, fault in faults.items() if fault and fault[0] in _BARRED}


def _refused(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The stretches that are refused, by the digest of their file: a copy of them is refused too."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if _said(row) in REFUSED:
            found.setdefault(row["sha256"], []).append(row)
    return found


def _as_refused(row: Row, refused: dict[str, list[Row]]) -> tuple[str, str] | None:
    for other in refused.get(row["sha256"], ()):
        if row["start"] < other["end"] and row["end"] > other["start"]:
            return (REFUSAL, f"it holds what {other['path']} holds, and consent to that is {other['consent']!r}")
    return None


def _unsaid(row: Row) -> str:
    return "nobody has said" if _said(row) in ("", UNKNOWN) else f"consent is {row['consent']!r}"


def _said(row: Row) -> str:
    return " ".join(str(row["consent"]).casefold().split())


def _fault(row: Row, rules: FileRules, withdrawn: Sequence[str]) -> tuple[str, str] | None:
    seconds, side = row["end"] - row["start"], min(row["width"], row["height"])
    checks = (
        (WITHDRAWN, "it was withdrawn", row["sha256"] in withdrawn),
        (REFUSAL, f"consent is {row['consent']!r}", _said(row) in REFUSED),
        (NO_CONSENT, _unsaid(row), rules.require_consent and _said(row) not in GRANTED),
        (SILENT, "it has no audio track", not row["audio_codec"]),
        (BRIEF, f"{seconds:.2f} s, at least {rules.least_seconds:g} s", seconds < rules.least_seconds),
        (SMALL, f"{row['width']} x {row['height']}, at least {rules.least_side}", side < rules.least_side),
    )
    return next(((reason, why) for reason, why, wrong in checks if wrong), None)
