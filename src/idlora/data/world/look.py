# SPDX-License-Identifier: Apache-2.0
"""The look of the world: one record of what is seen, and the renderer that turns it into frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from idlora.data.world.expression import Motion, blinks, draw_eyes, draw_mouth, jaw_shift, sway
from idlora.data.world.face import Face
from idlora.data.world.head import Sketch, body_layer, head_area, head_layer
from idlora.data.world.objects import OBJECTS, draw_object, strike_frames
from idlora.data.world.places import PLACES, background
from idlora.data.world.shapes import Array, Grid, lay, moved
from idlora.errors import InputError

__all__ = ["OBJECTS", "PLACES", "Face", "Look", "portrait", "render"]


@dataclass(frozen=True)
class Look:
    """Everything that is seen in a clip but for what the sound moves; `seed` drives sway, blinks, rain and cars."""

    face: Face
    place: str = "quiet room"
    object: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for value, known in ((self.place, PLACES), (self.object, OBJECTS)):
            if value not in known:
                raise InputError(f"{value!r} is not in the world; choose one of {', '.join(known)}")


def render(
    look: Look,
    mouth_opening: ArrayLike,
    mouth_width: ArrayLike,
    strike_times: Sequence[float] = (),
    frame_rate: float = 25.0,
    size: int = 96,
) -> NDArray[np.uint8]:
    """Frames (F, size, size, 3) of the look.

    `mouth_opening` (F,) is 0 (shut) to 1 (wide open), `mouth_width` (F,) is -1 (rounded) to 1 (spread); values
    outside are clipped. `strike_times` are seconds; they need an object. Raises InputError if the two lengths differ.
    """
    motion, seconds, rng = _motion(look, mouth_opening, mouth_width, frame_rate)
    canvas = background(look.place, size, seconds, rng)
    _draw_person(canvas, look.face, motion)
    if look.object != "none":
        draw_object(canvas, look.object, strike_frames(strike_times, frame_rate, len(canvas)))
    return _quantised(canvas)


def portrait(face: Face, place: str = "quiet room", size: int = 96) -> NDArray[np.uint8]:
    """The picture (size, size, 3) of a person with closed mouth, as a clip of seed 0 begins."""
    frame: NDArray[np.uint8] = render(Look(face, place), np.zeros(1), np.zeros(1), size=size)[0]
    return frame


def _quantised(canvas: Array) -> NDArray[np.uint8]:
    """The canvas (F, 3, H, W) in [0, 1] as pixels (F, H, W, 3), plane by plane: faster than to transpose."""
    num_frames, _, height, width = canvas.shape
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for channel in range(3):
        frames[..., channel] = np.clip(canvas[:, channel] * np.float32(255) + np.float32(0.5), 0, 255)
    return frames


def _motion(
    look: Look, opening: ArrayLike, width: ArrayLike, frame_rate: float
) -> tuple[Motion, Array, np.random.Generator]:
    """What moves, the time of every frame (F,) in seconds, and the generator for what moves behind the person."""
    opened, spread = np.asarray(opening, np.float32), np.asarray(width, np.float32)
    if opened.ndim != 1 or opened.shape != spread.shape or opened.size == 0:
        raise InputError(f"mouth opening {opened.shape} and width {spread.shape} must be two equal, non-empty rows")
    person, scenery = (np.random.default_rng(s) for s in np.random.SeedSequence(look.seed).spawn(2))
    seconds = (np.arange(opened.size) / frame_rate).astype(np.float32)
    right, down = sway(person, seconds)
    motion = Motion(right, down, blinks(person, seconds), np.clip(opened, 0, 1), np.clip(spread, -1, 1))
    return motion, seconds, scenery


def _draw_person(canvas: Array, face: Face, motion: Motion) -> None:
    """Body, swaying head, eyes and mouth over the background (F, 3, H, W), in place."""
    size = canvas.shape[-1]
    grid = Grid.square(size)
    sketch = Sketch(face, grid, size)
    rows, columns = head_area(size)
    lay(canvas, body_layer(sketch))
    head = head_layer(sketch)[:, rows, columns]
    downs = jaw_shift(grid, face, motion)[:, rows] * size
    for frame, right, down in zip(canvas[..., rows, columns], motion.right * size, downs, strict=True):
        lay(frame, moved(head, float(right), down))
    draw_eyes(canvas, grid, face, motion)
    draw_mouth(canvas, grid, face, motion)
