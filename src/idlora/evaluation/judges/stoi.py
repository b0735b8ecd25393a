# SPDX-License-Identifier: Apache-2.0
"""Short-time objective intelligibility (Taal, Hendriks, Heusdens and Jensen 2011) of a sound by its clean truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from idlora.data.media.sounds import resample
from idlora.errors import InputError
from idlora.evaluation.judges.sounds import Floats, Sound

RATE = 10_000  # Hz, as the definition wants
_FRAME, _HOP, _FFT = 256, 128, 512
_BANDS, _LOWEST = 15, 150.0  # third octaves, Hz
_SEGMENT = 30  # frames: 384 ms
_RANGE_DB = 40.0  # frames of the clean sound this far below its loudest are silence
_CLIP = 1 + 10 ** (15 / 20)  # signal-to-distortion ratio of at least -15 dB
_TINY = np.finfo(np.float64).eps


def stoi(clean: Sound | Floats, heard: Sound | Floats, rate: int) -> float:
    """How well `heard` (N,) can be understood, given the `clean` sound (N,) of the same words at the same times.

    The mean correlation of short third-octave envelopes, 1 for equal sounds, about 0.3 for unrelated speech. Silent
    frames of the clean sound are left out.

    Raises:
        InputError: the lengths differ, or fewer than 30 frames (0.4 s) are left.
    """
    if clean.shape != heard.shape or clean.ndim != 1:
        raise InputError(f"intelligibility compares sounds of one length, not {clean.shape} with {heard.shape}")
    pair = [
        resample(np.asarray(sound, np.float32)[None], rate, RATE)[0] if rate != RATE else sound
        for sound in (clean, heard)
    ]
    speech = _spoken(*(np.asarray(sound, np.float64) for sound in pair))
    envelopes = [_envelope(sound) for sound in speech]  # (bands, M)
    if envelopes[0].shape[1] < _SEGMENT:
        raise InputError(f"{envelopes[0].shape[1]} frames of speech are too few; intelligibility needs {_SEGMENT}")
    # (bands, segments, 30)
    x, y = (np.lib.stride_tricks.sliding_window_view(envelope, _SEGMENT, axis=1) for envelope in envelopes)
    scale = np.linalg.norm(x, axis=2, keepdims=True) / (np.linalg.norm(y, axis=2, keepdims=True) + _TINY)
    limited = np.minimum(y * scale, x * _CLIP)
    return float(np.mean(np.sum(_standard(x) * _standard(limited), axis=2)))


def _resampled(sound: Sound | Floats, rate: int) -> Floats:
    moved = sound if rate == RATE else resample(np.asarray(sound, np.float32)[None], rate, RATE)[0]
    return np.asarray(moved, np.float64)


def _standard(segments: Floats) -> Floats:
    centred = segments - segments.mean(axis=2, keepdims=True)
    return np.asarray(centred / (np.linalg.norm(centred, axis=2, keepdims=True) + _TINY))


def _window() -> Floats:
    return np.hanning(_FRAME + 2)[1:-1]


def _frames(sound: Floats) -> Floats:
    """Windowed frames (M, 256), every 128 samples; the last whole one is left out, as in the authors' program."""
    starts = np.arange(0, len(sound) - _FRAME, _HOP)
    return np.asarray(sound[starts[:, None] + np.arange(_FRAME)] * _window())


def _spoken(clean: Floats, heard: Floats) -> tuple[Floats, Floats]:
    """Both sounds without the frames in which the clean one is silent."""
    pair = np.stack([_frames(clean), _frames(heard)])  # (2, M, 256)
    level = 20 * np.log10(np.linalg.norm(pair[0], axis=1) + _TINY)
    kept = pair[:, level > level.max(initial=-np.inf) - _RANGE_DB]
    out = np.zeros((2, max(0, kept.shape[1] - 1) * _HOP + _FRAME))
    for index in range(kept.shape[1]):
        out[:, index * _HOP : index * _HOP + _FRAME] += kept[:, index]
    return out[0], out[1]


def _envelope(sound: Floats) -> Floats:
    """Root of the power in each third octave (15, M)."""
    power = np.abs(np.fft.rfft(_frames(sound), _FFT, axis=1)) ** 2
    return np.asarray(np.sqrt(_third_octaves() @ power.T))


def _third_octaves() -> NDArray[np.float64]:
    """Which bins (257) belong to which band (15): edges at the bins nearest to the bands' own."""
    bins = np.linspace(0, RATE, _FFT + 1)[: _FFT // 2 + 1]
    bands = np.arange(_BANDS)
    edges = [_LOWEST * 2 ** ((2 * bands + side) / 6) for side in (-1, 1)]
    low, high = (np.abs(bins[None] - edge[:, None]).argmin(axis=1) for edge in edges)
    index = np.arange(len(bins))
    return np.asarray((index >= low[:, None]) & (index < high[:, None]), np.float64)
