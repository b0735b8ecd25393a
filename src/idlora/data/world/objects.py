# SPDX-License-Identifier: Apache-2.0
"""The struck objects at the lower right: a bell, a drum, a glass, and the mallet that strikes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from idlora.data.world.shapes import (
    Array,
    Colour,
    Grid,
    blend,
    box,
    capsule,
    cover,
    empty_layer,
    lay,
    moved,
    oval,
    paint,
    slab,
)

OBJECTS = ("none", "bell", "drum", "glass")

_MIDDLE, _TOP = 0.83, 0.77  # where the objects stand, and where the mallet meets them
_ARM = 0.21  # length of the mallet
_RAISED = 1.05  # radians by which the waiting mallet stands above the struck position
_AFTER = 4  # frames of flashing and shaking


def strike_frames(strike_times: Sequence[float], frame_rate: float, num_frames: int) -> list[int]:
    """The frames in which the mallet touches; times in seconds, those outside the clip are dropped."""
    frames = [round(time * frame_rate) for time in strike_times]
    return [frame for frame in frames if 0 <= frame < num_frames]


def draw_object(canvas: Array, name: str, strikes: Sequence[int]) -> None:
    """Draw the object and its mallet into the canvas (F, 3, H, W); `strikes` are frames."""
    size = canvas.shape[-1]
    rows, columns = area = box(size, (0.64, 0.46), (1.0, 1.0))
    grid = Grid.square(size).crop(area)
    layer = _DRAWN[name](Grid.square(size))[:, rows, columns]
    ages = _ages(len(canvas), strikes)
    patch = canvas[..., rows, columns]
    for frame, age in enumerate(ages):
        lay(patch[frame], _struck(layer, int(age), size))
    _draw_mallet(patch, grid, _swing(len(canvas), strikes))


def _ages(num_frames: int, strikes: Sequence[int]) -> Array:
    """Frames since the latest strike (F,); large before the first."""
    ages = np.full(num_frames, 10_000, np.float32)
    for strike in sorted(strikes):
        ages[strike:] = np.arange(num_frames - strike)
    return ages


def _struck(layer: Array, age: int, size: int) -> Array:
    """The object `age` frames after a strike: bright and shaking, then at rest."""
    if age > _AFTER:
        return layer
    fade = 1 - age / (_AFTER + 1)
    shaken = moved(layer, (-1) ** age * 0.016 * fade * size, np.zeros(layer.shape[1]))
    shaken[:3] += np.float32(0.75 * fade) * (shaken[3] - shaken[:3])
    return shaken


def _swing(num_frames: int, strikes: Sequence[int]) -> Array:
    """How far the mallet is down (F,): 1 at a strike, 4 frames down, 6 frames back."""
    down = np.zeros(num_frames, np.float32)
    frames = np.arange(num_frames)
    for strike in strikes:
        before = np.clip(1 - (strike - frames) / 4, 0, 1) ** 1.5 * (frames <= strike)
        after = np.clip(1 - (frames - strike) / 6, 0, 1) * (frames > strike)
        down = np.maximum(down, before + after)
    return down.astype(np.float32)


def _draw_mallet(patch: Array, grid: Grid, down: Array) -> None:
    """The mallet turns about the hand, at the right border, so that its tip meets the object at down = 1."""
    angle = (_RAISED * (1 - down) + 0.12)[:, None, None]
    hand_x, hand_y = _MIDDLE + 0.17, _TOP
    tip_x, tip_y = hand_x - _ARM * np.cos(angle), hand_y - _ARM * np.sin(angle)
    edge = 1.5 * grid.pixel
    blend(patch, (0.50, 0.33, 0.18), cover(capsule(grid, (hand_x, hand_y), (tip_x, tip_y), 0.010), edge))
    blend(patch, (0.86, 0.30, 0.42), cover(capsule(grid, (tip_x, tip_y), (tip_x, tip_y), 0.030), edge))


def _layers(grid: Grid, parts: Sequence[tuple[Colour, float, Array]]) -> Array:
    """Parts (colour, opacity, distance) laid over one another."""
    layer = empty_layer(grid.y.size)
    for colour, opacity, distance in parts:
        layer = paint(layer, colour, opacity * cover(distance, 1.5 * grid.pixel))
    return layer


def _bell(grid: Grid) -> Array:
    dome = np.maximum(oval(grid, (_MIDDLE, 0.92), (0.085, 0.148), 2.4), grid.y - 0.92)
    return _layers(
        grid,
        [
            ((0.62, 0.42, 0.10), 1.0, oval(grid, (_MIDDLE, 0.955), (0.026, 0.026))),
            ((0.95, 0.74, 0.20), 1.0, dome),
            ((1.0, 0.93, 0.62), 0.8, oval(grid, (_MIDDLE - 0.035, 0.86), (0.014, 0.05))),
            ((0.80, 0.56, 0.12), 1.0, slab(grid, (_MIDDLE, 0.925), (0.105, 0.018), 0.018)),
        ],
    )


def _drum(grid: Grid) -> Array:
    return _layers(
        grid,
        [
            ((0.80, 0.18, 0.18), 1.0, slab(grid, (_MIDDLE, 0.90), (0.115, 0.085), 0.02)),
            ((0.95, 0.85, 0.50), 1.0, slab(grid, (_MIDDLE, 0.965), (0.120, 0.014), 0.01)),
            ((0.95, 0.85, 0.50), 1.0, oval(grid, (_MIDDLE, 0.815), (0.122, 0.046))),
            ((0.97, 0.95, 0.90), 1.0, oval(grid, (_MIDDLE, 0.810), (0.104, 0.034))),
        ],
    )


def _glass(grid: Grid) -> Array:
    bowl = np.maximum(oval(grid, (_MIDDLE, 0.79), (0.072, 0.105), 2.5), 0.785 - grid.y)
    wine = np.maximum(oval(grid, (_MIDDLE, 0.79), (0.058, 0.090), 2.5), 0.825 - grid.y)
    return _layers(
        grid,
        [
            ((0.88, 0.96, 1.0), 0.9, slab(grid, (_MIDDLE, 0.93), (0.010, 0.05))),
            ((0.88, 0.96, 1.0), 0.9, slab(grid, (_MIDDLE, 0.975), (0.062, 0.012), 0.01)),
            ((0.80, 0.92, 0.98), 0.75, bowl),
            ((0.30, 0.62, 0.85), 0.85, wine),
            ((1.0, 1.0, 1.0), 0.9, slab(grid, (_MIDDLE - 0.042, 0.835), (0.008, 0.03), 0.008)),
        ],
    )


_DRAWN: dict[str, Callable[[Grid], Array]] = {"bell": _bell, "drum": _drum, "glass": _glass}
