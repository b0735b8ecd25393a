# SPDX-License-Identifier: Apache-2.0
"""Sounds, frames and damaged files that several tests share."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
Sound = NDArray[np.float32]
Frames = NDArray[np.uint8]


def tone(seconds: float, frequency: float = 440.0, rate: int = RATE, gain: float = 0.3, channels: int = 1) -> Sound:
    time = np.arange(round(seconds * rate)) / rate
    waves = [gain * np.sin(2 * np.pi * frequency * (1 + index) * time) for index in range(channels)]
    return np.stack(waves).astype(np.float32)


def speech(seconds: float) -> Sound:
    """Spoken words of the miniature world, (1, N)."""
    from idlora.data.world.clip import render_sound
    from idlora.data.world.speakers import clip

    clips = [render_sound(clip("validation", index)).samples for index in range(math.ceil(seconds / 2))]
    return np.concatenate(clips)[None, : round(seconds * RATE)].astype(np.float32)


def gradient_frames(num_frames: int, height: int = 32, width: int = 48) -> Frames:
    row, column = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    phases = np.linspace(0.0, 1.0, num_frames)
    frames = [np.stack([row, column, np.full_like(row, phase)], axis=-1) for phase in phases]
    rounded: Frames = np.rint(np.stack(frames) * 255).astype(np.uint8)
    return rounded


def truncated(path: Path, source: Path, share: float) -> Path:
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
