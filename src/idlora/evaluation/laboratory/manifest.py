# SPDX-License-Identifier: Apache-2.0
"""What is to be judged: a manifest of clips, a JSON object a line, or a folder of them, a system to each subfolder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idlora.data.manifest import Fault
from idlora.data.prompt import Prompt, parse_prompt
from idlora.errors import InputError, nearest

MANIFEST_NAME = "manifest.jsonl"
SPLITS = ("easy", "hard")
_PARTS = ("visual", "speech", "sounds")
_KEYS: Mapping[str, str] = {
    "clip": "video or sound file that is judged",
    "system": "text, who made it; `clips` by default",
    "id": "text, equal for the clips of all systems that answer one request; the clip's name by default",
    "speaker": "text, whose voice it should be; the id by default",
    "prompt": "text, as it was given to the system",
    "visual": "text, a part of the prompt, as are:",
    "speech": "text",
    "sounds": "text",
    "reference": "sound or video file of the speaker",
    "said": "text, the reference's words",
    "picture": "picture of the face",
    "truth": "video or sound file, what was truly recorded with these words by this speaker in this place",
    "split": "easy or hard: reference and truth of one recording, or of two",
    "recording": "text, names the recording that the truth is of; with the next it gives the split",
    "reference_recording": "text",
    "face_box": "left, top, width, height in pixels of the face, for lip sync by SyncNet",
    "extra": "object, passed over",
}
_CLIPS = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".wav", ".flac", ".mp3", ".m4a", ".ogg"})
_SOUNDS = (".wav", ".flac", ".mp3", ".m4a", ".mp4")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Entry:
    """One clip and what it is measured by; see the keys above. Paths need not be there: that is found when judging."""

    id: str
    system: str
    clip: Path
    speaker: str
    prompt: str = ""
    voice: Path | None = None
    picture: Path | None = None
    truth: Path | None = None
    said: str = ""
    split: str = ""
    face_box: tuple[int, int, int, int] | None = None

    @property
    def asked(self) -> Prompt | None:
        """The prompt in parts; None if there is none."""
        return parse_prompt(self.prompt) if self.prompt.strip() else None


def read_entries(source: str | os.PathLike[str]) -> tuple[list[Entry], list[Fault]]:
    """The clips of a manifest, of a folder that holds `manifest.jsonl`, or of a folder's media files.

    In a folder without manifest every subfolder is a system, files at its top are system `clips`, and a file's name is
    the id. Beside `a.mp4` may lie `a.mp4.json` (its `prompt`, as `idlora generate` writes it), `a.voice.wav` (or
    another sound file) and `a.face.png`; or, for all systems at once, `references/a.wav`, `pictures/a.png` and
    `truths/a.mp4` at the top.

    Raises:
        InputError: nothing can be read, or no line can be used.
    """
    path = Path(source)
    if path.is_dir() and (path / MANIFEST_NAME).is_file():
        path = path / MANIFEST_NAME
    if path.is_dir():
        entries = _of_folder(path)
        if not entries:
            raise InputError(f"{path} holds no clips and no {MANIFEST_NAME}; name a folder of MP4 files, or a manifest")
        return entries, []
    return _of_manifest(path)


def _of_manifest(path: Path) -> tuple[list[Entry], list[Fault]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}; a manifest is text, one JSON object a line") from error
    entries: dict[tuple[str, str], Entry] = {}
    faults: list[Fault] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = _entry(_object(line), path.parent)
            if (entry.system, entry.id) in entries:
                raise InputError(f"system {entry.system!r} has a clip {entry.id!r} already; give each its own id")
            entries[entry.system, entry.id] = entry
        except InputError as error:
            faults.append(Fault("", number, str(error)))
    if not entries:
        first = f"; line {faults[0].line}: {faults[0].reason}" if faults else ", it is empty"
        raise InputError(f"{path} has no line that can be used{first}")
    return list(entries.values()), faults


def _object(line: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise InputError('it is no object; write {"clip": ..., "system": ..., "reference": ..., "prompt": ...}')
    for key in data:
        if key not in _KEYS:
            raise InputError(f"it has no use for {key[:60]!a}{nearest(key, _KEYS)}")
    return data


def _entry(data: Mapping[str, Any], folder: Path) -> Entry:
    clip = _file(data, "clip", folder)
    if clip is None:
        raise InputError("clip is missing; name a file, relative to the manifest")
    name = _text(data, "id") or clip.stem
    return Entry(
        id=name,
        system=_text(data, "system") or "clips",
        clip=clip,
        speaker=_text(data, "speaker") or name,
        prompt=_prompt(data),
        voice=_file(data, "reference", folder),
        picture=_file(data, "picture", folder),
        truth=_file(data, "truth", folder),
        said=_text(data, "said"),
        split=_split(data),
        face_box=_box(data.get("face_box")),
    )


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key, "")
    if not isinstance(value, str) or "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{key} is {str(value)[:60]!a}; it must be text")
    return value


def _file(data: Mapping[str, Any], key: str, folder: Path) -> Path | None:
    return folder / _text(data, key) if _text(data, key) else None


def _prompt(data: Mapping[str, Any]) -> str:
    parts = {part: _text(data, part) for part in _PARTS if part in data}
    if parts and "prompt" in data:
        raise InputError(f"it has both prompt and {', '.join(parts)}; give the one or the others")
    if not parts:
        return _text(data, "prompt")
    return Prompt(**parts).text()


def _split(data: Mapping[str, Any]) -> str:
    split, recordings = _text(data, "split"), [_text(data, key) for key in ("recording", "reference_recording")]
    if split and split not in SPLITS:
        raise InputError(f"split is {split[:60]!r}; choose easy or hard")
    if split or not all(recordings):
        return split
    return "easy" if recordings[0] == recordings[1] else "hard"


def _box(value: object) -> tuple[int, int, int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(type(part) is int and part >= 0 for part in value):
        raise InputError(f"face_box is {str(value)[:60]}; it must be [left, top, width, height] in pixels")
    return value[0], value[1], value[2], value[3]


def _of_folder(folder: Path) -> list[Entry]:
    shared = {name: folder / name for name in ("references", "pictures", "truths")}
    systems = [path for path in sorted(folder.iterdir()) if path.is_dir() and path not in shared.values()]
    found = [_of_file(file, "clips", shared) for file in _clips(folder)]
    for system in systems:
        found += [_of_file(file, system.name, shared) for file in _clips(system)]
    return found


def _clips(folder: Path) -> list[Path]:
    files = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in _CLIPS and path.is_file())
    return [path for path in files if not path.stem.endswith(".voice")]


def _of_file(file: Path, system: str, shared: Mapping[str, Path]) -> Entry:
    name = file.stem
    return Entry(
        id=name,
        system=system,
        clip=file,
        speaker=name,
        prompt=_sidecar_prompt(file),
        voice=_beside(file, ".voice", _SOUNDS) or _named(shared["references"], name, _SOUNDS),
        picture=_beside(file, ".face", _PICTURES) or _named(shared["pictures"], name, _PICTURES),
        truth=_named(shared["truths"], name, _SOUNDS),
    )


def _beside(file: Path, mark: str, endings: tuple[str, ...]) -> Path | None:
    return _named(file.parent, file.stem + mark, endings)


def _named(folder: Path, name: str, endings: tuple[str, ...]) -> Path | None:
    return next((path for ending in endings if (path := folder / f"{name}{ending}").is_file()), None)


def _sidecar_prompt(file: Path) -> str:
    try:
        data = json.loads(file.with_name(f"{file.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    prompt = data.get("prompt") if isinstance(data, dict) else None
    return prompt if isinstance(prompt, str) else ""
