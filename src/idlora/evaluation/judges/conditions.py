# SPDX-License-Identifier: Apache-2.0
"""How unlike two recordings were made: loudness, noise, room and spectrum as one distance, and bins of distances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, sosfilt

from idlora.data.prompt import Prompt
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import InputError
from idlora.evaluation.judges.base import Footage, JudgeRecord, Reference
from idlora.evaluation.judges.levels import loudness
from idlora.evaluation.judges.sounds import Floats, Sound
from idlora.evaluation.store import Values

# Differences that count as 1: about what a listener calls plainly different.
LOUDNESS_SCALE = 6.0  # LU
NOISE_SCALE = 10.0  # dB
ROOM_SCALE = 1.0  # octaves of RT60
SPECTRUM_SCALE = 6.0  # dB, root mean square over the octaves

_FRAME = 0.02  # seconds
_OCTAVES = (125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0)
_RT60 = (0.1, 3.0)  # seconds; what is estimated beyond is set to the nearer end
_LEAST_FALL, _LEAST_FRAMES = 10.0, 4  # dB and frames of a decay that counts


@dataclass(frozen=True, eq=False)
class Acoustics:
    """How a recording sounds apart from who speaks.

    Attributes:
        loudness: LUFS.
        snr: speech to noise in dB: loud frames over quiet ones.
        rt60: estimate of the reverberation time in seconds; None where noise fills every pause.
        spectrum: level (6,) of the octaves 125 to 4000 Hz in dB, their mean taken off.
    """

    loudness: float
    snr: float
    rt60: float | None
    spectrum: Floats

    @classmethod
    def of(cls, sound: Sound) -> Acoustics:
        """Measure a sound (N,) at 16 kHz.

        Raises:
            InputError: it is silent or shorter than 0.4 s.
        """
        levels = _levels(sound.astype(np.float64))
        return cls(loudness(sound, SAMPLE_RATE), _snr(levels), reverberation(sound), _spectrum(sound))

    def distance(self, other: Acoustics) -> float:
        """Root mean square of four differences, each in its own scale: 0 = alike, 1 = plainly different in each.

        d = sqrt((l^2 + s^2 + c^2 + r^2) / 4) with l = loudness / 6 LU, s = signal-to-noise ratio / 10 dB, c = root mean
        square difference of the octave spectra / 6 dB, r = octaves between the reverberation times. Where one of these
        is unknown, it is the mean square of the other three.
        """
        parts = [
            (self.loudness - other.loudness) / LOUDNESS_SCALE,
            (self.snr - other.snr) / NOISE_SCALE,
            float(np.sqrt(np.mean((self.spectrum - other.spectrum) ** 2))) / SPECTRUM_SCALE,
        ]
        if self.rt60 is not None and other.rt60 is not None:
            parts.append(float(np.log2(self.rt60 / other.rt60)) / ROOM_SCALE)
        return float(np.sqrt(np.mean(np.square(parts))))


def _levels(sound: Floats) -> Floats:
    """Power in dB of frames of 20 ms."""
    length = round(_FRAME * SAMPLE_RATE)
    frames = sound[: len(sound) // length * length].reshape(-1, length)
    return np.asarray(10 * np.log10(np.maximum(np.mean(np.square(frames), axis=1), 1e-12)))


def _snr(levels: Floats) -> float:
    """90th percentile of the frames' levels over the 10th, at most 60 dB."""
    high, low = np.percentile(levels, (90, 10))
    return float(min(60.0, high - low))


def reverberation(sound: Sound) -> float | None:
    """RT60 in seconds by the slopes of free decays of a sound (N,) at 16 kHz, 500 to 4000 Hz.

    Every stretch in which the level (frames of 20 ms, smoothed over three) falls steadily by 10 dB or more is a decay;
    60 dB over the median slope of the steeper half is the estimate, since speech itself fades too but never faster than
    its room. None where nothing decays. Blind and coarse: it orders rooms, it does not measure them.
    """
    band = sosfilt(butter(4, (500, 4000), "bandpass", fs=SAMPLE_RATE, output="sos"), sound.astype(np.float64))
    levels = np.convolve(_levels(np.asarray(band)), np.ones(3) / 3, "valid")
    slopes: list[float] = []
    start = 0
    for end in range(1, len(levels) + 1):
        if end < len(levels) and levels[end] < levels[end - 1]:
            continue
        fall, frames = levels[start] - levels[end - 1], end - start
        if fall >= _LEAST_FALL and frames >= _LEAST_FRAMES:
            slopes.append(float(fall / ((frames - 1) * _FRAME)))
        start = end
    if not slopes:
        return None
    steep = sorted(slopes)[len(slopes) // 2 :]
    return float(np.clip(60 / np.median(steep), *_RT60))


def _spectrum(sound: Sound) -> Floats:
    power = np.abs(np.fft.rfft(sound.astype(np.float64))) ** 2
    frequencies = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    edges = [(centre / np.sqrt(2), centre * np.sqrt(2)) for centre in _OCTAVES]
    bands = [power[(frequencies >= low) & (frequencies < high)].sum() for low, high in edges]
    levels = 10 * np.log10(np.maximum(bands, 1e-12))
    return np.asarray(levels - levels.mean())


class ConditionsJudge:
    """How far the reference's recording conditions are from those of the true clip.

    Limits: every part is a blind estimate of one recording; the distance orders pairs, it is no measurement of a room.
    """

    @property
    def record(self) -> JudgeRecord:
        """Who this is."""
        return JudgeRecord("acoustic distance", "1", "blind estimates: it orders pairs of recordings")

    def score(
        self,
        clip: Footage,  # noqa: ARG002 - conditions are those of the two recordings, whatever was made of them
        reference: Reference,
        prompt: Prompt | None,  # noqa: ARG002 - likewise
    ) -> Values:
        """`distance` of the reference to the true clip."""
        if reference.truth is None:
            raise InputError("no true clip is given; name one to know the conditions that were asked for")
        given, true = (Acoustics.of(footage.audible) for footage in (reference.speaker, reference.truth))
        return {"distance": given.distance(true)}


def bins_of(distances: Floats, count: int = 3) -> tuple[Floats, list[int]]:
    """Edges (count + 1,) that part distances (N,) into bins of as many each, and the bin of every distance.

    Equal distances stay together. Where they are so many that a bin would be empty, the cuts give way to them; where
    there are fewer different distances than bins, there are no bins: both are empty.

    Raises:
        InputError: there are fewer distances than bins.
    """
    if len(distances) < count:
        raise InputError(f"{len(distances)} distances do not fill {count} bins; evaluate more clips")
    if len(np.unique(distances)) < count:
        return np.zeros(0), []
    edges = np.quantile(distances, np.linspace(0, 1, count + 1))
    places = np.searchsorted(edges[1:-1], distances, side="right")
    if len(np.unique(places)) < count:
        edges[1:-1] = _cuts(np.sort(distances), count)
        places = np.searchsorted(edges[1:-1], distances, side="right")
    return np.asarray(edges), [int(place) for place in places]


def _cuts(distances: Floats, count: int) -> Floats:
    """The least distance (count - 1,) of every bin but the first, of distances (N,) in order, `count` different ones.

    Each cut lies where the value changes, as near as may be to an equal share of what the cuts before it left.
    """
    changes = np.flatnonzero(np.diff(distances)) + 1
    cuts = [0]
    for left in range(count - 1, 0, -1):
        free = changes[changes > cuts[-1]]
        free = free[: len(free) - left + 1]  # a change for each of the cuts to come
        share = (len(distances) - cuts[-1]) / (left + 1)
        cuts.append(int(free[np.argmin(np.abs(free - cuts[-1] - share))]))
    return np.asarray(distances[cuts[1:]])
