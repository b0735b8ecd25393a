# SPDX-License-Identifier: Apache-2.0
"""How the places look: four plainly distinct backgrounds; in two of them something moves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from idlora.data.world.shapes import Array, Colour, Grid, blend, cover, oval, ramp, slab

PLACES = ("quiet room", "hall", "rain", "street")


def background(place: str, size: int, seconds: Array, rng: np.random.Generator) -> Array:
    """The place behind the person: (F, 3, size, size) in [0, 1] at the given times (F,) in seconds."""
    grid = Grid.square(size)
    canvas = np.repeat(_STILL[place](grid)[None], len(seconds), axis=0)
    if place in _MOVING:
        _MOVING[place](canvas, grid, seconds, rng)
    return canvas


def _gradient(grid: Grid, top: Colour, bottom: Colour) -> Array:
    """A picture (3, H, W) that goes smoothly from one colour above to another below."""
    share = np.broadcast_to(grid.y, (grid.y.size, grid.x.size))
    return np.stack([np.float32(a) + share * np.float32(b - a) for a, b in zip(top, bottom, strict=True)])


def _fill(canvas: Array, grid: Grid, colour: Colour, distance: Array) -> None:
    blend(canvas, colour, cover(distance, 1.5 * grid.pixel))


def _quiet_room(grid: Grid) -> Array:
    """A warm wall with a framed picture and the glow of a lamp."""
    canvas = _gradient(grid, (0.96, 0.87, 0.71), (0.90, 0.76, 0.57))
    blend(canvas, (1.0, 0.97, 0.85), 0.8 * cover(oval(grid, (0.88, 0.20), (0.10, 0.10)), 0.30))
    _fill(canvas, grid, (0.60, 0.40, 0.25), slab(grid, (0.13, 0.26), (0.095, 0.115), 0.01))
    _fill(canvas, grid, (0.66, 0.80, 0.72), slab(grid, (0.13, 0.26), (0.070, 0.090)))
    _fill(canvas, grid, (0.88, 0.55, 0.22), slab(grid, (0.88, 0.21), (0.055, 0.045), 0.02))
    _fill(canvas, grid, (0.45, 0.32, 0.22), slab(grid, (0.88, 0.42), (0.008, 0.17)))
    return canvas


def _hall(grid: Grid) -> Array:
    """A tall pale hall: columns, arched windows and a polished floor."""
    canvas = _gradient(grid, (0.50, 0.55, 0.68), (0.70, 0.73, 0.80))
    for x in (0.13, 0.37, 0.63, 0.87):
        arch = np.minimum(slab(grid, (x, 0.42), (0.075, 0.22)), oval(grid, (x, 0.20), (0.075, 0.085)))
        _fill(canvas, grid, (0.93, 0.95, 0.99), arch)
    for x in (0.0, 0.25, 0.75, 1.0):
        _fill(canvas, grid, (0.40, 0.43, 0.56), slab(grid, (x, 0.36), (0.024, 0.40)))
    _fill(canvas, grid, (0.34, 0.36, 0.48), slab(grid, (0.5, 0.88), (0.6, 0.14)))
    return canvas


def _rainy_sky(grid: Grid) -> Array:
    """A dark wet sky over a paler ground."""
    canvas = _gradient(grid, (0.20, 0.27, 0.36), (0.36, 0.44, 0.52))
    blend(canvas, (0.30, 0.37, 0.46), cover(oval(grid, (0.15, 0.02), (0.30, 0.12)), 0.10))
    blend(canvas, (0.28, 0.35, 0.44), cover(oval(grid, (0.85, 0.06), (0.30, 0.10)), 0.10))
    _fill(canvas, grid, (0.24, 0.33, 0.34), slab(grid, (0.5, 0.95), (0.6, 0.13)))
    return canvas


def _falling(canvas: Array, grid: Grid, seconds: Array, rng: np.random.Generator) -> None:
    """Streaks that fall about one and a half pictures a second, two to a lane."""
    lanes = np.repeat(np.linspace(0.02, 0.98, 17), 2)
    columns = [cover(np.abs(grid.x[0] - x) - 0.009, 0.02) for x in lanes]
    starts = rng.uniform(0, 0.5, lanes.size) + np.tile([0.0, 0.62], 17)
    speeds = np.repeat(rng.uniform(1.3, 1.7, 17), 2)
    heads = (starts[:, None] + speeds[:, None] * seconds) % 1.25  # (lanes, F)
    above = heads[:, :, None] - grid.y[:, 0]  # (lanes, F, H)
    streaks = ramp(above, 0.22, 0.0) * cover(-above, 0.02)
    mask = np.tensordot(streaks, np.stack(columns), axes=(0, 0))
    blend(canvas, (0.82, 0.90, 0.97), 0.8 * np.minimum(mask, 1))


def _street(grid: Grid) -> Array:
    """Houses with lit windows at dusk, and a road."""
    canvas = _gradient(grid, (0.42, 0.30, 0.50), (0.95, 0.62, 0.45))
    houses = (((0.08, 0.55), (0.15, 0.42)), ((0.93, 0.55), (0.16, 0.36)), ((0.5, 0.6), (0.3, 0.3)))
    for centre, half in houses:
        _fill(canvas, grid, (0.25, 0.20, 0.32), slab(grid, centre, half))
    for x in (0.045, 0.155, 0.845, 0.955):
        for y in (0.26, 0.40, 0.54):
            _fill(canvas, grid, (1.0, 0.85, 0.45), slab(grid, (x, y), (0.026, 0.034)))
    _fill(canvas, grid, (0.22, 0.22, 0.26), slab(grid, (0.5, 0.90), (0.6, 0.19)))
    return canvas


def _passing(canvas: Array, grid: Grid, seconds: Array, rng: np.random.Generator) -> None:
    """Car lights on the road: white ones to the right, red ones to the left."""
    lanes = ((0.755, 0.9, (1.0, 0.97, 0.80)), (0.83, -0.7, (1.0, 0.25, 0.20)))
    for y, speed, colour in lanes:
        rows = slice(round((y - 0.08) * grid.y.size), round((y + 0.08) * grid.y.size))
        height = 1.3 * np.exp(-(((grid.y[rows, 0] - y) / 0.025) ** 2))
        for offset in (0.0, 0.8):
            x = (rng.uniform(0, 0.4) + offset + speed * seconds) % 1.6 - 0.3
            lamps = np.exp(-(((grid.x[0] - x[:, None]) / 0.045) ** 2)).astype(np.float32)  # (F, W)
            blend(canvas[..., rows, :], colour, np.minimum(height[:, None] * lamps[:, None, :], 1))


_STILL: dict[str, Callable[[Grid], Array]] = {
    "quiet room": _quiet_room,
    "hall": _hall,
    "rain": _rainy_sky,
    "street": _street,
}
_MOVING: dict[str, Callable[[Array, Grid, Array, np.random.Generator], None]] = {"rain": _falling, "street": _passing}
