# SPDX-License-Identifier: Apache-2.0
"""Spans of files without an index are those of the whole: MPEG-TS and MPEG-PS lead past what is looked for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from idlora.data.media.timeline import _shown, frames_between, read_mono

KINDS = {
    "a.ts": ("mpegts", "libx264", "aac"),
    "a.mpg": ("mpeg", "mpeg2video", "mp2"),
    "a.mkv": ("matroska", "libx264", "aac"),
}


def written(path: Path, kind: str, video: str, audio: str) -> Path:
    """Seven seconds whose every frame has a grey of its own, a key frame every 30."""
    clock = np.arange(7 * 16_000) / 16_000
    sound = 0.3 * np.sin(2 * np.pi * (200 + 80 * clock) * clock)  # a rising tone: every moment is another
    with av.open(str(path), "w", format=kind) as container:
        seen: Any = container.add_stream(video, rate=25, options={"g": "30", "bf": "0"})
        seen.width = seen.height = 64
        seen.pix_fmt, seen.bit_rate = "yuv420p", 400_000
        heard: Any = container.add_stream(audio, rate=44_100)
        for number in range(175):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 40 + number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(seen.encode(frame))
        container.mux(seen.encode(None))
        resampler = av.AudioResampler(format=heard.codec_context.format.name, layout="mono", rate=44_100)
        whole = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
        whole.sample_rate, whole.pts = 16_000, 0
        for part in (*resampler.resample(whole), *resampler.resample(None)):
            container.mux(heard.encode(part))
        container.mux(heard.encode(None))
    return path


@pytest.mark.parametrize("name", list(KINDS))
def test_a_span_is_the_same_as_the_part_of_the_whole(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, *KINDS[name])
    whole = np.stack(list(frames_between(path, 25.0)))
    sound = read_mono(path)
    for first in range(13, 150, 7):
        start = first / 25
        part = np.stack(list(frames_between(path, 25.0, start, start + 0.79)))
        assert np.array_equal(part, whole[first : first + 20]), start
        heard = read_mono(path, start=start, end=start + 0.5)
        assert len(heard) == 8000
        places = range(round(16_000 * start) - 16, round(16_000 * start) + 17)  # a millisecond: containers round
        assert max(np.corrcoef(heard, sound[place : place + 8000])[0, 1] for place in places) > 0.95, start


def test_frames_without_a_time_are_passed_over() -> None:
    frame: Any = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
    timed: Any = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
    timed.pts, timed.time_base = 5, Fraction(1, 25)
    container: Any = SimpleNamespace(decode=lambda **_: iter([frame, timed]))
    assert [time for time, _ in _shown(container, 0.0, 0)] == [0.2]
