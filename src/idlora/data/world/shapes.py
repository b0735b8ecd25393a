# SPDX-License-Identifier: Apache-2.0
"""Smooth shapes on a pixel grid: signed distances, coverage, layers and their sub-pixel motion.

Lengths are in units of the picture's side, colours are RGB in [0, 1]. Layers are premultiplied RGBA (4, H, W): planes
first, since numpy is several times faster so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating[Any]]  # float32 in all that is large
Colour = tuple[float, float, float]
Point = tuple[float, float]
Box = tuple[slice, slice]  # rows, columns


@dataclass(frozen=True)
class Grid:
    """Pixel centres: x (..., 1, W), y (..., H, 1), and the side of a pixel."""

    x: Array
    y: Array
    pixel: float

    @classmethod
    def square(cls, size: int) -> Grid:
        """The whole picture of size x size pixels, spanning [0, 1] both ways."""
        centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
        return cls(centres[None, :], centres[:, None], 1.0 / size)

    def crop(self, box: Box) -> Grid:
        """The part of a still grid that lies in `box`."""
        rows, columns = box
        return Grid(self.x[:, columns], self.y[rows], self.pixel)

    def follow(self, right: Array, down: Array) -> Grid:
        """The coordinates seen by something that moves by right (F,), down (F,): a grid with F leading."""
        return Grid(self.x - right[:, None, None], self.y - down[:, None, None], self.pixel)


def box(size: int, left_top: Point, right_bottom: Point) -> Box:
    """Slices of the pixels between two corners given in units of the picture."""
    (left, top), (right, bottom) = left_top, right_bottom
    rows = slice(max(round(top * size), 0), min(round(bottom * size), size))
    return rows, slice(max(round(left * size), 0), min(round(right * size), size))


def oval(grid: Grid, centre: Point, radii: Point, power: float = 2.0) -> Array:
    """Radial distance to the superellipse |x/a|^n + |y/b|^n = 1 (n = 2: an ellipse), negative inside."""
    x, y = np.abs(grid.x - centre[0]), np.abs(grid.y - centre[1])
    level = ((x / radii[0]) ** power + (y / radii[1]) ** power) ** (1 / power)
    return np.asarray(np.hypot(x, y) * (1 - 1 / np.maximum(level, 1e-3)), np.float32)


def slab(grid: Grid, centre: Point, half: Point, radius: float = 0.0) -> Array:
    """Distance to an upright rectangle of half sizes `half` with rounded corners, negative inside."""
    x = np.abs(grid.x - centre[0]) - half[0] + radius
    y = np.abs(grid.y - centre[1]) - half[1] + radius
    outside = np.hypot(np.maximum(x, 0), np.maximum(y, 0))
    return np.asarray(outside + np.minimum(np.maximum(x, y), 0) - radius, np.float32)


def capsule(grid: Grid, start: tuple[ArrayLike, ArrayLike], end: tuple[ArrayLike, ArrayLike], radius: float) -> Array:
    """Distance to a thick line; its ends may be arrays that broadcast over frames, (F, 1, 1)."""
    ends = [np.asarray(v, np.float32) for v in (*start, *end)]
    along_x, along_y = ends[2] - ends[0], ends[3] - ends[1]
    x, y = grid.x - ends[0], grid.y - ends[1]
    t = np.clip((x * along_x + y * along_y) / (along_x**2 + along_y**2 + 1e-9), 0, 1)
    return np.asarray(np.hypot(x - t * along_x, y - t * along_y) - radius, np.float32)


def cover(distance: Array, softness: float) -> Array:
    """Coverage in [0, 1] of a shape whose edge is `softness` wide (one pixel: plain anti-aliasing)."""
    return np.asarray(np.clip(0.5 - distance / softness, 0, 1), np.float32)


def band(grid: Grid, top: Array, bottom: Array) -> Array:
    """Coverage of what lies between two curves (..., 1, W): exact along columns, so thin gaps keep their area."""
    half = grid.pixel / 2
    inside = np.minimum(grid.y + half, bottom) - np.maximum(grid.y - half, top)
    return np.asarray(np.clip(inside, 0, grid.pixel) / grid.pixel, np.float32)


def ramp(values: Array, start: float, end: float) -> Array:
    """Smooth step from 0 at `start` to 1 at `end`."""
    t = np.clip((values - start) / (end - start), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def mix(first: Sequence[float], second: Sequence[float], share: float) -> Colour:
    """The colour `share` of the way from the first to the second."""
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def empty_layer(size: int) -> Array:
    """A transparent layer (4, size, size)."""
    return np.zeros((4, size, size), np.float32)


def paint(layer: Array, colour: Colour, mask: Array) -> Array:
    """The layer with `colour` laid over it where `mask` (H, W) covers."""
    opaque = np.array([*colour, 1.0], np.float32)[:, None, None]
    return np.asarray(layer + mask * (opaque - layer), np.float32)


def tint(layer: Array, colour: Colour, mask: Array) -> Array:
    """Like `paint`, but only where the layer already is: its outline stays."""
    target = np.array([*colour, 1.0], np.float32)[:, None, None] * layer[3:]
    return np.asarray(layer + mask * (target - layer), np.float32)


def blend(canvas: Array, colour: Colour, mask: Array) -> None:
    """Lay `colour` over the opaque canvas (..., 3, H, W), in place, where `mask` (..., H, W) covers."""
    for channel, level in enumerate(colour):
        plane = canvas[..., channel, :, :]
        plane += mask * (np.float32(level) - plane)


def lay(canvas: Array, layer: Array) -> None:
    """Lay a premultiplied layer (4, H, W) over the opaque canvas (..., 3, H, W), in place."""
    canvas *= 1 - layer[3]
    canvas += layer[:3]


def moved(layer: Array, right: float, down: Array) -> Array:
    """The layer (C, H, W) moved by `right` pixels, and each of its rows by `down` (H,) pixels, bilinear."""
    height = layer.shape[1]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    upper = np.minimum(rows.astype(int), height - 2)
    share = (rows - upper).astype(np.float32)[:, None]
    vertical = layer[:, upper]
    vertical += share * (layer[:, upper + 1] - vertical)
    return _slid(vertical, right)


def _slid(layer: Array, right: float) -> Array:
    """The layer moved right, bilinear; what enters repeats the border."""
    whole = int(np.floor(right))
    columns = np.arange(-1 - whole, layer.shape[2] - whole)
    padded = np.take(layer, columns, axis=2, mode="clip")
    return np.asarray(padded[..., 1:] + np.float32(right - whole) * (padded[..., :-1] - padded[..., 1:]), np.float32)
