# SPDX-License-Identifier: Apache-2.0
"""The sound of places and struck objects in the miniature world: rooms, rain, traffic, bell, drum and glass.

Levels are in dBFS (root mean square) and fixed for each place, so that a listener can tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.signal import butter, fftconvolve, sosfilt

from idlora.data.world.voice import SAMPLE_RATE, Array

STRIKE_PEAK = 0.25
# object -> (partials in Hz, their amplitudes, decay in seconds of the first partial)
PARTIALS = {
    "bell": ((523.0, 1256.0, 2090.0, 3140.0), (1.0, 0.7, 0.5, 0.3), 0.9),
    "drum": ((95.0, 152.0, 205.0), (1.0, 0.5, 0.3), 0.18),
    "glass": ((2480.0, 4010.0, 6120.0), (1.0, 0.6, 0.4), 0.35),
}


def in_place(dry: Array, place: str, strikes: Sequence[float], kind: str, rng: np.random.Generator) -> Array:
    """Put speech (N,) at 16 kHz and the object's strikes (seconds) into a place; returns (N,), peak at most 0.99."""
    sound = dry + struck(kind, strikes, len(dry), rng)
    if place == "hall":
        sound = 0.7 * sound + 0.55 * _reverberate(sound, 1.4, rng)
    else:
        sound = sound + 0.08 * _reverberate(sound, 0.12, rng)
    sound = sound + background(place, len(dry), rng)
    return np.asarray(sound / max(1.0, np.abs(sound).max() / 0.99))


def background(place: str, length: int, rng: np.random.Generator) -> Array:
    """Ambient sound of a place, (length,): a faint floor, falling rain, or traffic with a horn."""
    if place == "rain":
        return _scaled(_band(rng.standard_normal(length), 900.0, 7000.0), -33.0) + _drops(length, rng)
    if place == "street":
        rumble = _scaled(_band(rng.standard_normal(length), 40.0, 350.0), -27.0) * _passing(length, rng)
        return rumble + _horn(length, rng)
    return _scaled(rng.standard_normal(length), -62.0)


def struck(kind: str, strikes: Sequence[float], length: int, rng: np.random.Generator) -> Array:
    """Sound (length,) of the object struck at the given seconds; silence for kind "none"."""
    out = np.zeros(length)
    if kind == "none":
        return out
    for second in strikes:
        start = round(second * SAMPLE_RATE)
        ring = _ring(kind, length - start, rng)
        out[start:] += ring
    return out


def _ring(kind: str, length: int, rng: np.random.Generator) -> Array:
    frequencies, amplitudes, decay = PARTIALS[kind]
    time = np.arange(max(length, 0)) / SAMPLE_RATE
    partials = [
        amplitude * np.sin(2 * np.pi * frequency * time) * np.exp(-time * (1.0 + 0.6 * order) * 3.0 / decay)
        for order, (frequency, amplitude) in enumerate(zip(frequencies, amplitudes, strict=True))
    ]
    click = rng.standard_normal(len(time)) * np.exp(-time / 0.003) * 0.3
    return np.asarray(STRIKE_PEAK * (np.sum(partials, axis=0) + click) / sum(amplitudes))


def _reverberate(sound: Array, rt60: float, rng: np.random.Generator) -> Array:
    """Convolve with exponentially decaying noise of the given RT60 in seconds (energy 1)."""
    length = round(rt60 * SAMPLE_RATE)
    decay = np.exp(-6.9 * np.arange(length) / length)
    response = rng.standard_normal(length) * decay
    response[: round(0.004 * SAMPLE_RATE)] = 0.0
    return np.asarray(fftconvolve(sound, response / np.sqrt(np.sum(response**2)))[: len(sound)])


def _drops(length: int, rng: np.random.Generator) -> Array:
    clicks = np.zeros(length)
    positions = rng.integers(0, length, size=round(length / SAMPLE_RATE * 25))
    clicks[positions] = rng.uniform(0.05, 0.3, size=len(positions))
    time = np.arange(round(0.01 * SAMPLE_RATE)) / SAMPLE_RATE
    drop = np.sin(2 * np.pi * 2800.0 * time) * np.exp(-time / 0.002)
    return np.asarray(fftconvolve(clicks, drop)[:length]) * 0.3


def _passing(length: int, rng: np.random.Generator) -> Array:
    """A car goes by: a slow swell between half and full level."""
    time = np.arange(length) / max(length, 1)
    return np.asarray(0.6 + 0.6 * np.exp(-(((time - rng.uniform(0.1, 0.9)) / 0.25) ** 2)))


def _horn(length: int, rng: np.random.Generator) -> Array:
    """Two tones for 0.25 s at a random time, heard from afar."""
    time = np.arange(length) / SAMPLE_RATE - rng.uniform(0.0, length / SAMPLE_RATE)
    gate = ((time > 0) & (time < 0.25)).astype(float)
    return np.asarray(0.012 * gate * (np.sin(2 * np.pi * 392.0 * time) + np.sin(2 * np.pi * 494.0 * time)))


def _band(noise: Array, low: float, high: float) -> Array:
    return np.asarray(sosfilt(butter(2, (low, high), "bandpass", fs=SAMPLE_RATE, output="sos"), noise))


def _scaled(sound: Array, level: float) -> Array:
    return np.asarray(sound * 10 ** (level / 20) / (np.sqrt(np.mean(sound**2)) + 1e-9))
