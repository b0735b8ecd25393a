# SPDX-License-Identifier: Apache-2.0
"""Sounds as judges take them: mono (N,) float32 in [-1, 1], brought to 16 kHz; correlation of two rows of numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from idlora.data.media.sounds import resample
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import InputError

Sound = NDArray[np.float32]
Floats = NDArray[np.float64]

QUIETEST = 1e-4  # root mean square below which there is nothing to judge: -80 dBFS


def at_16_khz(waveform: Sound, rate: int) -> Sound:
    """The sound (N,) at the rate of all judges.

    Raises:
        InputError: not mono, or not finite.
    """
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise InputError(f"a judge takes finite mono samples (N,), not {waveform.shape}; average the channels first")
    return np.asarray(resample(waveform[None].astype(np.float32), rate, SAMPLE_RATE)[0])


def mono(audio: Sound) -> Sound:
    """Mean (N,) of the channels (C, N)."""
    return np.asarray(audio.mean(axis=0), np.float32)


def rms(sound: Sound | Floats) -> float:
    """Root mean square of samples (N,), 0 of none."""
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))) if len(sound) else 0.0


def refuse_silence(sound: Sound) -> None:
    """Raise InputError if there is nothing to be heard."""
    if rms(sound) < QUIETEST:
        raise InputError(f"the sound's level is below {QUIETEST}, so no voice can be judged; hand in speech")


def pearson(first: Floats, second: Floats) -> float:
    """Correlation of two rows (N,); 0 if one is constant."""
    a, b = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 1e-9 else 0.0
