# SPDX-License-Identifier: Apache-2.0
"""Noise taken out of a recording by RNNoise (Valin 2018), as it was out of what the adapters were trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from idlora.data.media.sounds import Voice, resample
from idlora.errors import SettingsError

_DELAY = 960  # samples at 48 kHz by which RNNoise is late: its window of 20 ms


def clean_voice(voice: Voice) -> Voice:
    """The same recording, as long and at the same rate, with its noise taken out, each channel by itself.

    Raises:
        SettingsError: the denoiser is not installed.
    """
    try:
        from pyrnnoise import rnnoise
    except (ImportError, OSError) as error:  # OSError: its library is not there for this system
        raise SettingsError(
            f"cleaning a voice needs RNNoise, which is not here ({error}): pip install 'idlora[clean]', or do without"
        ) from error
    samples = resample(voice.samples, voice.sample_rate, rnnoise.SAMPLE_RATE)
    late = np.pad(np.clip(samples, -1, 1), ((0, 0), (0, _DELAY)))
    cleaned = np.stack([_through(rnnoise, channel) for channel in late])[:, _DELAY:]
    back = resample(cleaned, rnnoise.SAMPLE_RATE, voice.sample_rate)
    missing = max(0, voice.samples.shape[1] - back.shape[1])
    return Voice(np.pad(back, ((0, 0), (0, missing)))[:, : voice.samples.shape[1]], voice.sample_rate)


def _through(rnnoise: Any, channel: NDArray[np.float32]) -> NDArray[np.float32]:
    """One channel (N,) at 48 kHz through a fresh state."""
    state = rnnoise.create()
    try:
        starts = range(0, len(channel), rnnoise.FRAME_SIZE)
        frames = [rnnoise.process_mono_frame(state, channel[start : start + rnnoise.FRAME_SIZE])[0] for start in starts]
    finally:
        rnnoise.destroy(state)
    cleaned: NDArray[np.float32] = np.concatenate(frames).astype(np.float32) / np.float32(np.iinfo(np.int16).max)
    return cleaned
