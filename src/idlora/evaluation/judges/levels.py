# SPDX-License-Identifier: Apache-2.0
"""What can be measured of a sound without hearing it: loudness, silence, clipping, and intelligibility to its truth."""

from __future__ import annotations

import math

import numpy as np
from scipy.signal import lfilter

from idlora.data.media.sounds import resample
from idlora.data.prompt import Prompt
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import IDLoraError, InputError
from idlora.evaluation.judges.base import Footage, JudgeRecord, Reference
from idlora.evaluation.judges.sounds import Floats, Sound
from idlora.evaluation.judges.stoi import stoi
from idlora.evaluation.store import Values

_RATE = 48_000
_SILENCE_DB, _FRAME = -50.0, 0.02  # dBFS of a frame of so many seconds
_FULL, _RUN = 0.999, 3  # so many samples on end at full scale are clipped
_BLOCK, _HOP = 0.4, 0.1  # seconds
_ABSOLUTE, _RELATIVE = -70.0, -10.0  # LUFS, and LU below the mean

# ITU-R BS.1770-4, tables 1 and 2, at 48 kHz: the head as a shelf, then a high pass.
_SHELF = ((1.53512485958697, -2.69169618940638, 1.19839281085285), (1.0, -1.69065929318241, 0.73248077421585))
_HIGH_PASS = ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621))


def loudness(sound: Sound, rate: int) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4) of a mono sound (N,): K-weighted, gated blocks of 0.4 s.

    Raises:
        InputError: the sound is shorter than a block, or silent: then it has no loudness.
    """
    weighted = resample(sound[None].astype(np.float32), rate, _RATE)[0].astype(np.float64)
    for numerator, denominator in (_SHELF, _HIGH_PASS):
        weighted = lfilter(numerator, denominator, weighted)
    length, hop = round(_BLOCK * _RATE), round(_HOP * _RATE)
    if len(weighted) < length:
        raise InputError(f"{len(weighted) / _RATE:.2f} s have no loudness; a block of {_BLOCK} s is measured")
    blocks = np.lib.stride_tricks.sliding_window_view(weighted, length)[::hop]
    power = np.mean(np.square(blocks), axis=1)
    power = power[_lufs(power) > _ABSOLUTE]
    if not len(power):
        raise InputError(f"the sound stays below {_ABSOLUTE:g} LUFS: it is silent")
    gated = power[_lufs(power) > _lufs(power.mean()) + _RELATIVE]
    return float(_lufs(gated.mean()))


def _lufs(power: Floats) -> Floats:
    return np.asarray(-0.691 + 10 * np.log10(np.maximum(power, 1e-20)))


def silent_share(sound: Sound) -> float:
    """Share of frames of 20 ms of a sound (N,) at 16 kHz whose root mean square is below -50 dBFS."""
    length = round(_FRAME * SAMPLE_RATE)
    frames = sound[: len(sound) // length * length].reshape(-1, length).astype(np.float64)
    levels = 10 * np.log10(np.maximum(np.mean(np.square(frames), axis=1), 1e-20))
    return float(np.mean(levels < _SILENCE_DB))


def clipped_share(samples: Sound) -> float:
    """Share of samples (N,), at the rate they came in, that stand at full scale three or more on end."""
    full = np.abs(samples) >= _FULL
    edges = np.diff(np.concatenate([[0], full.astype(np.int8), [0]]))
    runs = np.flatnonzero(edges < 0) - np.flatnonzero(edges > 0)
    return float(runs[runs >= _RUN].sum() / max(1, len(samples)))


class LevelsJudge:
    """Loudness, silence, peak and clipping; intelligibility where the true clip is known.

    Limits: clips of lossy files are decoded without the clipping that was there when they were encoded, and `write_mp4`
    attenuates to -3 dBFS. STOI wants the truth's words at the truth's times: use it for codecs and for clips that were
    driven by the true sound; free generation is out of step with the truth and scores low however clear it is.
    """

    @property
    def record(self) -> JudgeRecord:
        """Who this is."""
        return JudgeRecord("levels", "1", "clipping is seen in what is decoded; STOI wants words at the truth's times")

    def score(
        self,
        clip: Footage,
        reference: Reference,
        prompt: Prompt | None,  # noqa: ARG002 - levels are levels
    ) -> Values:
        """`loudness` LUFS, `peak` dBFS, shares `silent` and `clipped`, `seconds`; `stoi` with a true clip."""
        sound = clip.audible
        samples = sound if clip.samples is None else clip.samples
        found: Values = {
            "loudness": loudness(sound, SAMPLE_RATE),
            "peak": 20 * math.log10(float(np.abs(samples).max())),
            "silent": silent_share(sound),
            "clipped": clipped_share(samples),
            "seconds": len(sound) / SAMPLE_RATE,
        }
        if reference.truth is not None:
            try:
                shared = min(len(sound), len(reference.truth.audible))
                found["stoi"] = stoi(reference.truth.audible[:shared], sound[:shared], SAMPLE_RATE)
            except IDLoraError as error:
                found["stoi_unjudged"] = str(error)
        return found
