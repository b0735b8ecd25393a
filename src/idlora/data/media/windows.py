# SPDX-License-Identifier: Apache-2.0
"""Which seconds of a recording serve as the voice: the window with the most speech, found by level alone."""

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

    The best window has the largest sum of speech activity: the level of each 20 ms frame, clipped to the 35 dB below
    the recording's 95th percentile and scaled to [0, 1]. The first of equal windows wins, so the choice is
    deterministic, and it does not depend on the recording's gain.

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
    first, last = _best_window(levels, samples.shape[1], rate, max_seconds)
    return PreparedVoice(Voice(samples[:, first:last], rate), start=first / rate, total=voice.seconds)


def _levels_db(samples: NDArray[np.float32], hop: int) -> NDArray[np.float64]:
    """Return the RMS level of each whole frame of `hop` samples in dB, the constant offset of each channel removed."""
    centred = samples.astype(np.float64) - samples.mean(axis=1, keepdims=True)
    num_frames = samples.shape[1] // hop
    frames = centred[:, : num_frames * hop].reshape(samples.shape[0], num_frames, hop)
    power = np.square(frames).mean(axis=(0, 2))
    decibels: NDArray[np.float64] = 10.0 * np.log10(np.maximum(power, 1e-20))
    return decibels


def _best_window(levels: NDArray[np.float64], num_samples: int, rate: int, max_seconds: float) -> tuple[int, int]:
    length = round(max_seconds * rate)
    if num_samples <= length:
        return 0, num_samples
    hop = int(_FRAME_SECONDS * rate)
    num_frames = min(length // hop, len(levels))
    activity = np.clip(1.0 + (levels - np.percentile(levels, 95)) / _SPEECH_RANGE_DB, 0.0, 1.0)
    sums = np.cumsum(np.concatenate([[0.0], activity]))
    # Rounded, so that the order of summation cannot decide between equal windows.
    scores = np.round(sums[num_frames:] - sums[:-num_frames], 9)
    first = min(int(scores.argmax()) * hop, num_samples - length)
    return first, first + length
