# SPDX-License-Identifier: Apache-2.0
"""Whether lips follow the sound, in pictures of the miniature's world, and by how much the sound is late."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idlora.data.prompt import Prompt
from idlora.data.world.clip import FRAME_RATE, speech_energy
from idlora.data.world.expression import MAX_OPENING
from idlora.data.world.reader import read_mouth_height, read_mouth_opening
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import InputError
from idlora.evaluation.judges.base import Footage, Frames, JudgeRecord, Reference
from idlora.evaluation.judges.sounds import QUIETEST, Floats, Sound, at_16_khz, pearson, rms
from idlora.evaluation.judges.world_faces import face_cells, refuse_no_face
from idlora.evaluation.store import Values

MAX_SHIFT, STEP = 0.4, 0.01  # seconds
_LEAST_FRAMES = 13
_LEAST_MOVED = 0.02  # of the picture's height: two rows of pixels of 96
# Of the greatest energy of a frame of 40 ms. A steady hum of 50 Hz or more moves by less, noise of 2.3 s by 0.04 or
# more, a clip of the world in which somebody speaks by 0.38.
_LEAST_SWELL = 0.035


def lip_correlation(frames: NDArray[np.uint8], waveform: Sound, rate: int) -> float:
    """Pearson correlation at lag 0 of the mouth opening read from pixels with the speech energy of each frame.

    frames (F, size, size, 3) at the world's 25 a second. 0 where the mouth or the sound does not change.
    """
    energy = speech_energy(at_16_khz(waveform, rate).astype(np.float64), len(frames))
    return pearson(read_mouth_opening(frames).astype(np.float64), energy)


@dataclass(frozen=True)
class Alignment:
    """How a sound lies against the lips: Pearson correlations, and the seconds by which the sound is late."""

    correlation: float
    offset: float
    best: float


def align(opening: Floats, sound: Sound, frame_rate: float) -> Alignment:
    """Move a sound (N,) at 16 kHz against a mouth opening (F,) by up to 0.4 s either way, in steps of 10 ms.

    At every shift the speech energy of the frames that the moved sound covers is correlated with their opening; the
    shift with the greatest correlation is the offset, positive where the sound comes after the lips.

    Raises:
        InputError: there are fewer than 13 frames, or the sound ends long before the pictures; or while there are both,
            the mouth stays as it is, the sound is silent or it is steady: what is constant is in step with anything.
    """
    covered = min(len(opening), int(len(sound) / SAMPLE_RATE * frame_rate))
    lost = int(np.ceil(MAX_SHIFT * frame_rate))
    if covered - lost < _LEAST_FRAMES:
        raise InputError(f"{covered} frames with sound are too few to compare; {_LEAST_FRAMES + lost} are needed")
    opening = opening[:covered]
    _refuse_still(opening, sound[: round(covered / frame_rate * SAMPLE_RATE)])
    shifts = np.arange(-round(MAX_SHIFT / STEP), round(MAX_SHIFT / STEP) + 1) * STEP
    found = [_moved(opening, sound.astype(np.float64), frame_rate, float(shift)) for shift in shifts]
    best = int(np.argmax(found))
    return Alignment(found[len(shifts) // 2], round(float(shifts[best]), 3), found[best])


def _refuse_still(opening: Floats, sound: Sound) -> None:
    """Raise InputError if the mouth or the sound (N,) of the frames that have both does not change."""
    seconds = len(sound) / SAMPLE_RATE
    moved = float(np.ptp(opening)) * MAX_OPENING
    if moved < _LEAST_MOVED:
        raise InputError(
            f"the mouth does not move in the {seconds:.2f} s that have sound: by {moved:.3f} of the height, "
            f"{_LEAST_MOVED} is seen; give a clip that speaks"
        )
    if rms(sound) < QUIETEST:
        raise InputError(
            f"the {seconds:.2f} s of sound under the pictures are below a level of {QUIETEST}; check where it begins"
        )
    # In frames of one length, whatever the clip's: shorter ones cut a hum less evenly.
    energy = speech_energy(sound.astype(np.float64), len(sound) * FRAME_RATE // SAMPLE_RATE)
    swell = float(np.ptp(energy) / energy.max())
    if swell < _LEAST_SWELL:
        raise InputError(
            f"the sound is steady: its energy moves by {swell:.3f} of the greatest, {_LEAST_SWELL} can be compared "
            "with lips; give a clip that speaks"
        )


def _moved(opening: Floats, sound: Floats, frame_rate: float, shift: float) -> float:
    """Correlation when the sound is heard `shift` seconds earlier, over the frames that it still covers."""
    samples = round(abs(shift) * SAMPLE_RATE)
    lost = int(np.ceil(abs(shift) * frame_rate - 1e-9))
    if shift >= 0:
        energy = speech_energy(sound[samples:], len(opening), frame_rate)
        return pearson(opening[: len(opening) - lost], energy[: len(opening) - lost])
    energy = speech_energy(np.pad(sound, (samples, 0)), len(opening), frame_rate)
    return pearson(opening[lost:], energy[lost:])


class LipJudge:
    """The mouth's opening, read from pixels of the miniature's world, against the energy of the sound.

    Limits: it reads the mouths of the procedural world alone, which lie at a known place and are purple inside, and
    refuses what shows none, a mouth that stays still and a steady sound; rain, traffic and struck objects are energy
    too and lower the correlation.
    """

    @property
    def record(self) -> JudgeRecord:
        """Who this is."""
        return JudgeRecord("lips of the world", "1", "mouths of the procedural world alone; noise counts as speech")

    def score(
        self,
        clip: Footage,
        reference: Reference,  # noqa: ARG002 - lips are judged by the clip's own sound
        prompt: Prompt | None,  # noqa: ARG002 - likewise
    ) -> Values:
        """`correlation` at no offset, `offset` in seconds (positive: the sound is late), `best` correlation at it."""
        found = align(opening_of(clip.pictures), clip.audible, clip.frame_rate)
        return {"correlation": found.correlation, "offset": found.offset, "best": found.best}


def opening_of(frames: Frames) -> Floats:
    """The mouth opening (F,) of a clip of the world.

    Raises:
        InputError: no face of the world is seen, or its mouth never opens.
    """
    refuse_no_face(face_cells(frames))
    moved = float(np.ptp(read_mouth_height(frames)))
    if moved < _LEAST_MOVED:
        raise InputError(
            f"the mouth does not open in it: it moves by {moved:.3f} of the height, {_LEAST_MOVED} is seen"
        )
    return read_mouth_opening(frames).astype(np.float64)
