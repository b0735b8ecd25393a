# SPDX-License-Identifier: Apache-2.0
"""Copies of a recording as it would have sounded in another room and other noise: what they share is the speaker.

From how an embedding moves between a clip and its copies is learnt, without any label, what of it is not the voice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve

Sound = NDArray[np.float32]

_RATE = 16_000
_RT60 = (0.1, 1.8)  # seconds
_SNR = (2.0, 25.0)  # dB
_ECHO, _NOISE = 0.7, 0.8  # shares of the copies that have some


def degraded(sound: Sound, rng: np.random.Generator) -> Sound:
    """A copy of a sound (N,) at 16 kHz in a drawn room and under drawn noise."""
    copy = sound.astype(np.float64)
    if rng.random() < _ECHO:
        copy = copy + rng.uniform(0.1, 1.2) * _reverberated(copy, rng)
    if rng.random() < _NOISE:
        noise = _noise(len(copy), rng)
        level = np.sqrt(np.mean(copy**2) / (np.mean(noise**2) + 1e-12)) * 10 ** (-rng.uniform(*_SNR) / 20)
        copy = copy + level * noise
    return np.asarray(copy / max(1.0, float(np.abs(copy).max())), np.float32)


def _reverberated(sound: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """The echo of a room: noise that decays by 60 dB within a drawn time."""
    length = round(float(np.exp(rng.uniform(*np.log(_RT60)))) * _RATE)
    response = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
    return np.asarray(fftconvolve(sound, response / np.sqrt(np.sum(response**2)))[: len(sound)])


def _noise(length: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise of a drawn band and tilt: wind, rain, rumble, hiss."""
    low = float(np.exp(rng.uniform(np.log(30), np.log(1500))))
    high = float(np.exp(rng.uniform(np.log(3 * low), np.log(8000))))
    frequencies = np.fft.rfftfreq(length, 1 / _RATE)
    tilt = (np.maximum(frequencies, 20) / 1000) ** (rng.uniform(-8, 4) / 6)
    spectrum = np.fft.rfft(rng.standard_normal(length)) * tilt * ((frequencies >= low) & (frequencies <= high))
    return np.asarray(np.fft.irfft(spectrum, length))
