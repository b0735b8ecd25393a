# SPDX-License-Identifier: Apache-2.0
"""When a struck object of the world is struck: by the sound, and by the picture."""

from __future__ import annotations

import numpy as np

from idlora.data.world.sound import PARTIALS
from idlora.data.world.voice import SAMPLE_RATE
from idlora.evaluation.judges import Floats, Sound
from idlora.evaluation.judges.base import Frames

_WINDOW, _HOP = 512, 80  # samples: 32 ms, every 5 ms
_SPAN = 8  # hops before and after a moment: 40 ms
_AROUND = 40.0  # Hz about a partial
_EDGE = 0.06  # seconds at either end in which nothing can be told


def struck_by_sound(sound: Sound, kind: str) -> float:
    """Second at which the partials of an object rise most in a sound (N,) at 16 kHz, by their mean log level."""
    frames = np.lib.stride_tricks.sliding_window_view(sound.astype(np.float64), _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW), axis=1)) ** 2
    frequencies = np.asarray(np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE), np.float64)
    rises = [_rise(_level(power, frequencies, partial)) for partial in PARTIALS[kind][0]]
    total = np.mean(rises, axis=0)
    first = round(_EDGE * SAMPLE_RATE / _HOP)
    best = first + int(np.argmax(total[first : len(total) - first]))
    return float((best * _HOP + _WINDOW / 2) / SAMPLE_RATE)


def _level(power: Floats, frequencies: Floats, partial: float) -> Floats:
    return np.asarray(np.log(power[:, np.abs(frequencies - partial) <= _AROUND].sum(axis=1) + 1e-6))


def _rise(level: Floats) -> Floats:
    """Mean (T,) of the level over 40 ms after less over 40 ms before."""
    sums = np.concatenate([[0.0], np.cumsum(level)])
    rise = np.zeros(len(level))
    middle = np.arange(_SPAN, len(level) - _SPAN)
    rise[middle] = (sums[middle + _SPAN] - 2 * sums[middle] + sums[middle - _SPAN]) / _SPAN
    return rise


def struck_by_picture(frames: Frames, frame_rate: float) -> float:
    """Second at which the mallet is furthest down in frames (F, H, W, 3): the middle of its greatest unrest.

    The lower right, where objects stand, is compared with its median over time; the frame that differs most is the one
    of the flash and of the mallet.
    """
    height, width = frames.shape[1:3]
    part = frames[:, round(0.64 * height) :, round(0.6 * width) :].astype(np.float64)
    unrest = np.abs(part - np.median(part, axis=0)).mean(axis=(1, 2, 3))
    return float(np.argmax(unrest) / frame_rate)
