# SPDX-License-Identifier: Apache-2.0
"""How high a voice is and how it moves: the pitch of voiced frames by their autocorrelation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, sosfiltfilt

Floats = NDArray[np.float64]

LOWEST, HIGHEST = 60.0, 400.0  # Hz
_BAND = (300.0, 3000.0)  # Hz: harmonics have the period of their fundamental, and traffic rumbles below
_HOP, _WINDOW = 0.01, 0.04  # seconds
_VOICED = 0.55  # of the energy that must repeat
_NEARLY = 0.9  # of the best peak: the first that reaches it is the period, not its double
_LOUD = 30.0  # dB below the loudest frames within which a frame counts
_LEAST = 10  # voiced frames
_TINY = 1e-12


@dataclass(frozen=True)
class Pitch:
    """The pitch of a recording.

    Attributes:
        hertz: median of the voiced frames; 0 where none is voiced.
        spread: half the width, in octaves, of the middle half of them.
        voiced: share of the loud frames that are voiced: near 0 in a whisper.
    """

    hertz: float
    spread: float
    voiced: float


def pitch_of(sound: NDArray[np.float32], rate: int = 16_000) -> Pitch:
    """Measure a sound (N,)."""
    found, loud = pitch_track(sound, rate)
    voiced = found[loud & (found > 0)]
    share = float(np.mean(found[loud] > 0)) if loud.any() else 0.0
    if len(voiced) < _LEAST:
        return Pitch(0.0, 0.0, share)
    low, middle, high = np.percentile(np.log2(voiced), (25, 50, 75))
    return Pitch(float(2.0**middle), float((high - low) / 2), share)


def pitch_track(sound: NDArray[np.float32], rate: int = 16_000) -> tuple[Floats, NDArray[np.bool_]]:
    """Hertz (T,) of frames every 10 ms, 0 where unvoiced, and which frames (T,) are loud.

    A window of 40 ms under Hann's taper, its autocorrelation divided by the taper's own (Boersma 1993), the peak
    refined by a parabola.
    """
    size, hop = round(_WINDOW * rate), round(_HOP * rate)
    if len(sound) < size + hop:
        return np.zeros(0), np.zeros(0, bool)
    band = sosfiltfilt(butter(4, _BAND, "bandpass", fs=rate, output="sos"), sound.astype(np.float64))
    frames = np.lib.stride_tricks.sliding_window_view(band, size)[::hop]
    frames = frames - frames.mean(axis=1, keepdims=True)
    window = np.hanning(size)
    power = np.square(frames).mean(axis=1)
    levels = 10 * np.log10(power + _TINY)
    taper = _autocorrelation(window[None])[0]
    found = _autocorrelation(frames * window)
    found = found / (found[:, :1] + _TINY) / (taper / taper[0] + _TINY)
    first, last = int(rate / HIGHEST), min(int(rate / LOWEST) + 1, size - 2)
    return _periods(found, first, last, rate), levels > np.percentile(levels, 95) - _LOUD


def _autocorrelation(frames: Floats) -> Floats:
    size = frames.shape[1]
    spectrum = np.fft.rfft(frames, 2 * size)
    return np.asarray(np.fft.irfft(np.abs(spectrum) ** 2, 2 * size)[:, :size])


def _periods(found: Floats, first: int, last: int, rate: int) -> Floats:
    """Hertz (T,) by the first peak between two lags that is nearly the highest."""
    inner = found[:, first : last + 1]
    peaks = (inner >= found[:, first - 1 : last]) & (inner > found[:, first + 1 : last + 2])
    heights = np.where(peaks, inner, -1.0)
    best = heights.max(axis=1)
    lag = (heights >= _NEARLY * best[:, None]).argmax(axis=1) + first
    rows = np.arange(len(found))
    before, here, after = (found[rows, lag + step] for step in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = np.where(np.abs(bend) > _TINY, 0.5 * (before - after) / np.where(bend == 0, 1, bend), 0.0)
    return np.where(best > _VOICED, rate / (lag + np.clip(shift, -0.5, 0.5)), 0.0)
