# SPDX-License-Identifier: Apache-2.0
"""Clips of the miniature's world that several tests judge."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from idlora.data.world.clip import render_picture, render_sound
from idlora.evaluation.clips import target, true_sound
from idlora.evaluation.judges import Footage

Sound = NDArray[np.float32]


@cache
def sound_of(index: int, take: int = 0) -> Sound:
    """Sound of a calm clip of an unseen speaker."""
    return true_sound(target("test", index, take))


@cache
def footage(index: int) -> Footage:
    """Such a clip, with pictures."""
    spec = target("test", index, 0)
    sound = render_sound(spec)
    return Footage(render_picture(spec, sound), 25.0, sound.samples.astype(np.float32))


def heard(samples: Sound) -> Footage:
    """A sound without pictures."""
    return Footage(samples=samples)
