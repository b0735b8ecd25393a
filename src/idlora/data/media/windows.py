# SPDX-License-Identifier: Apache-2.0
"""Which seconds of a recording serve as the voice: the window with the most speech, by level and voicing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idlora.data.media.sounds import Voice, resample
from idlora.errors import MediaError, SettingsError

SILENCE_DB = -60.0
"""Level (dB full scale, RMS of 20 ms) that the loudest part must exceed for a recording to count as sound."""

_FRAME_SECONDS = 0.02
_SPEECH_RANGE_DB = 35.0
_PITCHES = (60, 400)  # Hz
_NOISE = 0.4  # periodicity that noise reaches by chance
_UNVOICED = 0.1  # of the activity counts without a pitch, so that whispered recordings are judged by level
_CHUNK = 1024  # frames
_TINY = 1e-20


@dataclass(frozen=True, eq=False)
class PreparedVoice:
    """A voice ready for the model.

    Attributes:
        voice: the window, resampled.
        start: where it begins in the recording, seconds.
        total: duration of the whole recording, seconds.
    """

    voice: Voice
    start: float
    total: float

    @property
    def shortened(self) -> bool:
        """Whether part of the recording was left out."""
        return self.voice.seconds < self.total - _FRAME_SECONDS


def prepare_voice(
    voice: Voice, rate: int = 16_000, max_seconds: float = 5.0, min_seconds: float = 0.5
) -> PreparedVoice:
    """Resample a voice to `rate` Hz and, if it is longer than `max_seconds`, keep its best window.

    The best window has the largest sum of speech activity over its frames of 20 ms: the level, clipped to the 35 dB
    below the recording's 95th percentile and scaled to [0, 1], times how periodic the sound is at the pitches of
    voices (see `_voicing`), so that noise as loud as the voice loses against it; music does not. The first of equal
    windows wins, so the choice is deterministic, and it does not depend on the recording's gain.

    Raises:
        MediaError: the recording is shorter than `min_seconds` or silent.
        SettingsError: the limits contradict each other.
    """
    if not 0 < min_seconds <= max_seconds:
        raise SettingsError(f"voice limits {min_seconds} s and {max_seconds} s must satisfy 0 < min <= max")
    if voice.seconds < min_seconds:
        raise MediaError(f"the voice is {voice.seconds:.2f} s long; at least {min_seconds:g} s are needed")
    samples = resample(voice.samples, voice.sample_rate, rate)
    levels = _levels_db(samples, int(_FRAME_SECONDS * rate))
    if levels.max() < SILENCE_DB:
        raise MediaError(
            f"the voice is silent: its loudest part is at {levels.max():.0f} dB, below {SILENCE_DB:.0f} dB; "
            "choose a recording with speech"
        )
    length = round(max_seconds * rate)
    first = 0 if samples.shape[1] <= length else _best_start(samples, levels, rate, length)
    samples = samples[:, first : first + length]
    return PreparedVoice(Voice(samples, rate), start=first / rate, total=voice.seconds)


def _levels_db(samples: NDArray[np.float32], hop: int) -> NDArray[np.float64]:
    """Return the RMS level of each whole frame of `hop` samples in dB, the constant offset of each channel removed."""
    centred = samples.astype(np.float64) - samples.mean(axis=1, keepdims=True)
    num_frames = samples.shape[1] // hop
    frames = centred[:, : num_frames * hop].reshape(samples.shape[0], num_frames, hop)
    power = np.square(frames).mean(axis=(0, 2))
    decibels: NDArray[np.float64] = 10.0 * np.log10(np.maximum(power, 1e-20))
    return decibels


def _best_start(samples: NDArray[np.float32], levels: NDArray[np.float64], rate: int, length: int) -> int:
    """First sample of the window of `length` samples with the most speech."""
    hop = int(_FRAME_SECONDS * rate)
    num_frames = min(length // hop, len(levels))
    activity = np.clip(1.0 + (levels - np.percentile(levels, 95)) / _SPEECH_RANGE_DB, 0.0, 1.0)
    activity *= _UNVOICED + (1.0 - _UNVOICED) * _voicing(samples.mean(axis=0), rate, len(levels))
    sums = np.cumsum(np.concatenate([[0.0], activity]))
    # Rounded, so that neither the order of summation nor a gain can decide between equal windows.
    scores = np.round(sums[num_frames:] - sums[:-num_frames], 3)
    return int(min(scores.argmax() * hop, samples.shape[1] - length))


def _voicing(samples: NDArray[np.float32], rate: int, num_frames: int) -> NDArray[np.float64]:
    """How periodic each frame (num_frames,) of a sound (N,) is, from 0 to 1.

    The greatest autocorrelation over the periods of 60 to 400 Hz in a window of two periods of the lowest, relative to
    the energy and corrected for the window's taper (Boersma 1993): near 1 in vowels, 0.2 to 0.4 in noise.
    """
    hop, size = int(_FRAME_SECONDS * rate), round(2 * rate / _PITCHES[0])
    shortest, longest = rate // _PITCHES[1], rate // _PITCHES[0]
    window = np.hanning(size)
    taper = _autocorrelation(window[None])[0]
    padded = np.pad(samples, (0, size))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:num_frames]
    peaks = np.empty(num_frames)
    for start in range(0, num_frames, _CHUNK):
        part = windows[start : start + _CHUNK].astype(np.float64)
        found = _autocorrelation((part - part.mean(axis=1, keepdims=True)) * window)
        found = found / np.maximum(found[:, :1], _TINY) / (taper / taper[0])
        peaks[start : start + _CHUNK] = found[:, shortest:longest].max(axis=1)
    return np.clip((peaks - _NOISE) / (1.0 - _NOISE), 0.0, 1.0)


def _autocorrelation(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of windows (B, N) at the lags 0 to N - 1."""
    size = windows.shape[1]
    spectrum = np.fft.rfft(windows, 2 * size)
    found: NDArray[np.float64] = np.fft.irfft(np.square(np.abs(spectrum)), 2 * size)[:, :size]
    return found
