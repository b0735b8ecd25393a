# SPDX-License-Identifier: Apache-2.0
"""How fast somebody speaks, by the bumps of loudness alone: one for each syllable, more or less."""

from __future__ import annotations

import numpy as np
from scipy.signal import find_peaks

from idlora.data.media.sounds import Voice

SYLLABLES_A_WORD = 1.5  # of running English
_HOP_SECONDS = 0.01
_SMOOTH_SECONDS = 0.05
_SYLLABLE_SECONDS = 0.1
_SPEECH_RANGE_DB = 25.0
_PROMINENCE_DB = 2.0
_PAUSE_SECONDS = 0.3


def syllables_per_second(voice: Voice) -> float:
    """Bumps of loudness a second, over the time in which somebody speaks; 0 for silence.

    A bump is a maximum of the level (10 ms frames, smoothed over 50 ms) in the upper 25 dB that stands 2 dB out of its
    surroundings and comes at least 100 ms after the one before. Pauses longer than 0.3 s do not count as time.
    """
    hop = max(1, round(_HOP_SECONDS * voice.sample_rate))
    power = np.square(voice.samples.astype(np.float64)).mean(axis=0)
    num_frames = len(power) // hop
    width = round(_SMOOTH_SECONDS / _HOP_SECONDS)
    if num_frames < width:
        return 0.0
    frames = power[: num_frames * hop].reshape(num_frames, hop).mean(axis=1)
    level = 10 * np.log10(np.maximum(np.convolve(frames, np.ones(width) / width, mode="same"), 1e-12))
    floor = max(float(level.max()) - _SPEECH_RANGE_DB, -90.0)
    peaks, _ = find_peaks(
        level, height=floor, prominence=_PROMINENCE_DB, distance=round(_SYLLABLE_SECONDS / _HOP_SECONDS)
    )
    if len(peaks) == 0:
        return 0.0
    gaps = np.minimum(np.diff(peaks) * _HOP_SECONDS, _PAUSE_SECONDS)
    return float(len(peaks) / (gaps.sum() + gaps.mean() if len(gaps) else _PAUSE_SECONDS))
