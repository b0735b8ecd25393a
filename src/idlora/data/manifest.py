# SPDX-License-Identifier: Apache-2.0
"""Training pairs as a file, a JSON object a line: a clip, another recording of who speaks in it, and a caption."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from idlora.data.prompt import Prompt, parse_prompt
from idlora.errors import InputError, nearest
from idlora.files import write_text

SPLITS = ("train", "validation", "test")
_PARTS = ("visual", "speech", "sounds")
_KEYS: Mapping[str, str] = {
    "id": "text; by default the video's name without its ending",
    "video": "file",
    "reference": "sound or video file of the same speaker",
    "caption": "text",
    "visual": "text, a part of the caption, as are:",
    "speech": "text",
    "sounds": "text",
    "speaker": "text",
    "split": "one of SPLITS",
    "start": "seconds into the video",
    "extra": "object, passed over",
}


@dataclass(frozen=True)
class Pair:
    """One line.

    Attributes:
        id: unique in the file.
        video: the clip.
        reference: sound or video file of the same speaker, best another recording.
        caption: as the text encoder is given it: in tagged parts.
        speaker: who; empty if nobody knows.
        split: train, validation or test.
        start: seconds into the video at which the clip begins.
        line: its number in the file, from 1.
    """

    id: str
    video: Path
    reference: Path
    caption: str
    speaker: str = ""
    split: str = "train"
    start: float = 0.0
    line: int = 0


@dataclass(frozen=True)
class Fault:
    """A sample that cannot be used: its id as far as it is known, its line from 1 (0 = of no file), and why."""

    id: str
    line: int
    reason: str


def read_manifest(path: str | os.PathLike[str]) -> tuple[list[Pair], list[Fault]]:
    """The pairs of a manifest, and its lines that are none; paths in it are relative to the file.

    A pair without an id has the video's name, and the line's number too where that name is taken. Empty lines are
    passed over. Whether the named files are there is not looked at.

    Raises:
        InputError: the file cannot be read, or no line of it can be used.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}; a manifest is text, one JSON object a line") from error
    found: list[Pair] = []
    faults: list[Fault] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            pair, fault = _read(number, line, file.parent)
            found += [pair] if pair else []
            faults += [fault] if fault else []
    pairs, doubles = _named(found)
    faults = sorted((*faults, *doubles), key=lambda fault: fault.line)
    if not pairs:
        first = f"; line {faults[0].line}: {faults[0].reason}" if faults else ", it is empty"
        raise InputError(f"{path} has no line that can be used{first}")
    return pairs, faults


def write_manifest(path: str | os.PathLike[str], pairs: Sequence[Pair]) -> None:
    """Write pairs so that `read_manifest` finds them, with paths relative to the file where they lie below it.

    Raises:
        OutputError: the file cannot be written.
    """
    folder = Path(path).parent
    write_text(path, "".join(json.dumps(_line(pair, folder), ensure_ascii=False) + "\n" for pair in pairs))


def _line(pair: Pair, folder: Path) -> dict[str, Any]:
    files = {"video": pair.video, "reference": pair.reference}
    shown = {key: (file.relative_to(folder) if file.is_relative_to(folder) else file) for key, file in files.items()}
    data: dict[str, Any] = {"id": pair.id, **{key: file.as_posix() for key, file in shown.items()}}
    data |= {"caption": pair.caption, "speaker": pair.speaker, "split": pair.split, "start": pair.start}
    return {key: value for key, value in data.items() if value not in ("", 0.0)}


def _read(number: int, line: str, folder: Path) -> tuple[Pair | None, Fault | None]:
    name = ""
    try:
        data = json.loads(line)
        if not isinstance(data, dict):
            raise InputError('it is no object; write {"video": ..., "reference": ..., "caption": ...}')
        name = data["id"] if isinstance(data.get("id"), str) else ""
        return _pair(number, data, folder), None
    except InputError as error:
        return None, Fault(name, number, str(error))
    except (ValueError, RecursionError) as error:
        return None, Fault(name, number, f"it is not JSON ({error})")


def _pair(number: int, data: Mapping[str, Any], folder: Path) -> Pair:
    for key in data:
        if key not in _KEYS:
            raise InputError(f"it has no use for {key[:60]!a}{nearest(key, _KEYS)}")
    split = _text(data, "split", "train")
    if split not in SPLITS:
        raise InputError(f"split is {split[:60]!r}; choose one of {', '.join(SPLITS)}")
    if "id" in data and not _text(data, "id"):
        raise InputError("id is empty; give it a name, or leave it out")
    return Pair(
        id=_text(data, "id"),
        video=_file(data, "video", folder),
        reference=_file(data, "reference", folder),
        caption=_caption(data),
        speaker=_text(data, "speaker"),
        split=split,
        start=_start(data.get("start", 0)),
        line=number,
    )


def _text(data: Mapping[str, Any], key: str, default: str = "") -> str:
    value = data.get(key, default)
    # JSON can spell halves of characters, which no file and no tokenizer takes.
    if not isinstance(value, str) or "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{key} is {str(value)[:60]!a}; it must be text")
    return value


def _file(data: Mapping[str, Any], key: str, folder: Path) -> Path:
    if not _text(data, key):
        raise InputError(f"{key} is missing; name a file, relative to the manifest")
    return folder / _text(data, key)


def _caption(data: Mapping[str, Any]) -> str:
    parts = {part: _text(data, part) for part in _PARTS if part in data}
    if parts and "caption" in data:
        raise InputError(f"it has both caption and {', '.join(parts)}; give the one or the others")
    prompt = Prompt(**parts) if parts else parse_prompt(_text(data, "caption"))
    return prompt.text()


def _start(value: object) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < 1e9
        or not math.isfinite(value)
    ):
        raise InputError(f"start is {str(value)[:60]!r}; it must be seconds, 0 or more")
    return float(value)


def _named(found: Sequence[Pair]) -> tuple[list[Pair], list[Fault]]:
    """Pairs with an id each, given ones first; a second one of the same id is a fault."""
    given = {pair.id for pair in found if pair.id}
    taken: set[str] = set()
    pairs, faults = [], []
    for pair in found:
        name = pair.id or _free(pair, given | taken)
        if name in taken:
            faults.append(Fault(name, pair.line, f"an earlier line has the id {name!r} too; give each its own"))
        else:
            pairs.append(replace(pair, id=name))
            taken.add(name)
    return pairs, faults


def _free(pair: Pair, taken: set[str]) -> str:
    name = pair.video.stem
    if name in taken:
        name = f"{name}-{pair.line}"
    while name in taken:
        name += "_"
    return name
