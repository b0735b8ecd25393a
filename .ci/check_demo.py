# SPDX-License-Identifier: Apache-2.0
"""Look at what `make demo` wrote: clips with picture and sound, neither empty nor the same, a picture, and words."""

import re
import sys
from pathlib import Path

import numpy as np

from idlora.data.media import Video, read_image, read_video

NUM_FRAMES, SIDE = 57, 96
SIMILARITY = re.compile(
    r"^speaker similarity to the voice: (0\.\d+) with the reference, (-?0\.\d+) without$", re.MULTILINE
)


def checked_clip(path: Path) -> Video:
    """Read a clip and insist on its size, on motion and on sound as long as the picture."""
    clip = read_video(path)
    num_frames, height, width, _ = clip.frames.shape
    if num_frames != NUM_FRAMES or min(height, width) < SIDE:
        raise SystemExit(f"{path}: {num_frames} frames of {height} x {width}; {NUM_FRAMES} of {SIDE} x {SIDE} expected")
    if np.ptp(clip.frames) < 64 or np.abs(np.diff(clip.frames.astype(int), axis=0)).max() < 16:
        raise SystemExit(f"{path}: the picture is flat or does not move")
    if clip.audio is None or np.abs(clip.audio.samples).max() < 0.01:
        raise SystemExit(f"{path}: there is no sound")
    if abs(clip.audio.seconds - num_frames / clip.frame_rate) > 1 / clip.frame_rate:
        raise SystemExit(f"{path}: {clip.audio.seconds:.2f} s of sound beside {num_frames} frames")
    return clip


def main(folder: Path, printed: Path) -> None:
    """Check a folder written by `idlora demo` and what it printed; exits 1 with a sentence if something is missing."""
    others = [path for path in sorted(folder.glob("*.mp4")) if path.name != "result.mp4"]
    pictures = sorted(folder.glob("*.png"))
    if not others or not pictures:
        raise SystemExit(f"{folder}: a clip without the reference and a picture are expected beside result.mp4")
    result = checked_clip(folder / "result.mp4")
    for path in others:
        other = checked_clip(path)
        if result.audio is None or other.audio is None or np.array_equal(result.audio.samples, other.audio.samples):
            raise SystemExit(f"{path}: sounds the same as result.mp4, so the reference had no effect")
    for path in pictures:
        if np.ptp(np.asarray(read_image(path))) < 64:
            raise SystemExit(f"{path}: the picture is flat")
    told = SIMILARITY.search(printed.read_text(encoding="utf-8"))
    if told is None or not float(told[1]) > float(told[2]):
        raise SystemExit(f"{printed}: no line tells that the voice is nearer with the reference than without")
    sys.stdout.write(f"{folder}: {1 + len(others)} clips and {len(pictures)} pictures are as promised\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
