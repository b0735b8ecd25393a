# SPDX-License-Identifier: Apache-2.0
"""Mel-frequency cepstra as python_speech_features makes them, which SyncNet was trained on."""

from __future__ import annotations

import numpy as np
from scipy.fft import dct

from idlora.evaluation.judges.sounds import Floats

RATE = 16_000
_FRAME, _HOP, _FFT = 400, 160, 512  # 25 ms every 10 ms
_FILTERS, _COEFFICIENTS, _LIFTER = 26, 13, 22
_EMPHASIS = 0.97
_TINY = np.finfo(np.float64).eps


def mfcc(samples: Floats) -> Floats:
    """Cepstra (T, 13) of 16-bit sample values (N,) at 16 kHz, the first replaced by the frame's log energy."""
    emphasised = np.append(samples[:1], samples[1:] - _EMPHASIS * samples[:-1])
    count = 1 + max(0, -(-(len(samples) - _FRAME) // _HOP))
    padded = np.pad(emphasised, (0, max(0, (count - 1) * _HOP + _FRAME - len(samples))))
    frames = padded[np.arange(count)[:, None] * _HOP + np.arange(_FRAME)]
    power = np.abs(np.fft.rfft(frames, _FFT)) ** 2 / _FFT  # (T, 257)
    filtered = np.maximum(power @ _filters().T, _TINY)
    cepstra = dct(np.log(filtered), type=2, axis=1, norm="ortho")[:, :_COEFFICIENTS]
    cepstra *= 1 + _LIFTER / 2 * np.sin(np.pi * np.arange(_COEFFICIENTS) / _LIFTER)
    cepstra[:, 0] = np.log(np.maximum(power.sum(axis=1), _TINY))
    return np.asarray(cepstra, np.float64)


def _filters() -> Floats:
    """Triangles (26, 257), evenly spaced on the mel scale from 0 to 8 kHz, their corners on whole bins."""
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), _FILTERS + 2)
    corners = np.floor((_FFT + 1) * 700 * (10 ** (mel / 2595) - 1) / RATE)
    bins = np.arange(_FFT // 2 + 1)
    low, peak, high = (corners[start : start + _FILTERS, None] for start in range(3))
    rising = (bins - low) / np.maximum(peak - low, 1)
    falling = (high - bins) / np.maximum(high - peak, 1)
    return np.where((bins >= low) & (bins < peak), rising, np.where((bins >= peak) & (bins < high), falling, 0.0))
