# SPDX-License-Identifier: Apache-2.0
"""The clips of the protocol: what is asked for, what voices are compared with, and the references.

All come from a split's seed, so that they are the same in every run and on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from idlora.data.world.clip import (
    ClipSpec,
    draw_reference,
    render_picture,
    render_sound,
)
from idlora.data.world.speakers import NUM_SPEAKERS, Split, clip, speaker
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import SettingsError

MAX_PROMPTS = 50
_ENROLMENT_START = MAX_PROMPTS  # clips of a speaker from here on are never asked for


@dataclass(frozen=True)
class Plan:
    """Size of an evaluation.

    Attributes:
        speakers: unseen speakers, 2 to 40.
        prompts: clips asked for each, 1 to 50.
        enrolments: other quiet true clips of each, whose mean is the speaker.
        reference_seconds: length of the reference.
        world_clips: clips of the world that small classifiers learn from; a third as many test them.
        batch: clips generated at once.

    Raises:
        SettingsError: a number is out of its range.
    """

    speakers: int = 40
    prompts: int = 2
    enrolments: int = 3
    reference_seconds: float = 3.0
    world_clips: int = 600
    batch: int = 4

    def __post_init__(self) -> None:
        limits = {
            "speakers": (2, NUM_SPEAKERS["test"]),
            "prompts": (1, MAX_PROMPTS),
            "enrolments": (1, MAX_PROMPTS),
            "reference_seconds": (1, 5),
            "world_clips": (60, 100_000),
            "batch": (1, 4096),
        }
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be {least} to {most}")


def quiet(spec: ClipSpec) -> ClipSpec:
    """The same person and words, calm in the quiet room, nothing struck."""
    return replace(spec, style="calm", place="quiet room", object="none")


def target(split: Split, index: int, prompt: int) -> ClipSpec:
    """What is asked of speaker `index`: an unseen face and an unseen order of words."""
    return quiet(clip(split, index + NUM_SPEAKERS[split] * prompt))


def enrolment(split: Split, index: int, take: int) -> ClipSpec:
    """Another quiet clip of the same voice, with another face and other words."""
    return target(split, index, _ENROLMENT_START + take)


def reference_sound(split: Split, index: int, asked: ClipSpec, seconds: float) -> NDArray[np.float32]:
    """The reference (N,) at 16 kHz of speaker `index` for a clip asked for: the seed is that of the clip."""
    rng = np.random.default_rng([asked.seed, 11])
    spec = draw_reference(rng, speaker(split, index), seconds, asked.words)
    return render_sound(spec, round(seconds * SAMPLE_RATE)).samples.astype(np.float32)


def true_sound(spec: ClipSpec) -> NDArray[np.float32]:
    """Sound (N,) at 16 kHz of a clip."""
    return render_sound(spec).samples.astype(np.float32)


def first_frame(spec: ClipSpec) -> NDArray[np.uint8]:
    """The picture (size, size, 3) that a clip begins with."""
    frame: NDArray[np.uint8] = render_picture(spec, render_sound(spec), num_frames=1)[0]
    return frame
