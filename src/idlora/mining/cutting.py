# SPDX-License-Identifier: Apache-2.0
"""The files of a pair: the clip at the training rate, the reference as recorded, and the reference cleaned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from idlora.data.media import Voice, clean_voice, write_mp4, write_wav
from idlora.data.media.timeline import frames_between, read_mono
from idlora.errors import MediaError, OutputError
from idlora.mining.mapping import Item, Outcome

RATE = 16_000
COLUMNS = {"clip": "text", "file": "text", "video": "text", "original": "text", "reference": "text", "cleaned": "truth"}
KINDS = {"clips": ".mp4", "originals": ".wav", "references": ".wav"}
"""Folders of the files of pairs, and the ending of their files; the rest of a name is the clip's."""

_LEAST_KEPT = 0.05  # of the power that cleaning must leave: less, and it has taken the voice for noise
_SOUND_RATES = (16_000, 48_000)  # Hz between which a clip's sound keeps its own rate


def cut(item: Item) -> Outcome:
    """Write the files of a clip: as a target (`as_clip`), as a reference (`as_reference`), or both.

    Raises:
        MediaError: the source cannot be decoded, or ends before the clip does.
        OutputError: a file cannot be written.
        SettingsError: cleaning is asked for and the denoiser is not installed.
    """
    out, name = Path(item["out"]), item["clip"]
    row: dict[str, object] = {"clip": name, "video": "", "original": "", "reference": "", "cleaned": False}
    if item["as_clip"]:
        row["video"] = f"clips/{name}.mp4"
        _write_clip(item, out / "clips" / f"{name}.mp4")
    if item["as_reference"]:
        row["original"] = f"originals/{name}.wav"
        row["reference"], row["cleaned"] = _write_reference(item, out, name)
    return {"rows": [row]}


def removed(out: Path, goes: Callable[[str, str], bool]) -> int:
    """Remove files of clips; returns how many.

    Args:
        out: folder of the folders in `KINDS`.
        goes: told of a file, as rows name it, and of the clip that its name would be of. Others than ours may lie here.

    Raises:
        OutputError: one cannot be removed.
    """
    count = 0
    for folder, ending in KINDS.items():
        for path in sorted((out / folder).glob(f"*{ending}")):
            clip = path.name.lstrip(".").partition(".")[0]  # of a file, too, that its writer did not finish
            if path.is_file() and goes(f"{folder}/{path.name}", clip):
                try:
                    path.unlink()
                except OSError as error:
                    raise OutputError(f"cannot remove {path}: {error.strerror}; remove it by hand") from error
                count += 1
    return count


def _write_clip(item: Item, path: Path) -> None:
    rate, count = item["frame_rate"], item["num_frames"]
    end = item["start"] + count / rate
    frames = list(frames_between(item["path"], rate, item["start"], end - 0.5 / rate))
    if len(frames) != count:
        raise MediaError(f"{len(frames)} of {count} frames are there from {item['start']:g} s on")
    height, width = frames[0].shape[:2]
    even = np.stack(frames)[:, : height // 2 * 2, : width // 2 * 2]
    heard = min(max(item["sample_rate"], _SOUND_RATES[0]), _SOUND_RATES[1])
    sound = read_mono(item["path"], heard, item["start"], end)
    write_mp4(path, even, rate, sound[None], heard, {"comment": f"from {item['file']} at {item['start']:.3f} s"})


def _write_reference(item: Item, out: Path, name: str) -> tuple[str, bool]:
    """Original and cleaned reference; the name of the one to be used, and whether it is the cleaned one."""
    low, high = item["reference_start"], item["reference_end"]
    original = Voice(read_mono(item["path"], RATE, low, high)[None], RATE)
    write_wav(out / "originals" / f"{name}.wav", original.samples, RATE)
    if not item["clean"]:
        return f"originals/{name}.wav", False
    cleaned = clean_voice(original)
    if np.mean(cleaned.samples**2) < _LEAST_KEPT * np.mean(original.samples**2):
        return f"originals/{name}.wav", False
    write_wav(out / "references" / f"{name}.wav", cleaned.samples, RATE)
    return f"references/{name}.wav", True
