# SPDX-License-Identifier: Apache-2.0
"""The parts of a person that change from frame to frame: eyes, glasses and mouth, and the head's own motion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from idlora.data.world.face import Face
from idlora.data.world.head import BLACK, CENTRE_X, HEAD_Y, WHITE, Anatomy
from idlora.data.world.shapes import Array, Box, Colour, Grid, band, blend, box, cover, mix, oval, ramp, slab

MAX_OPENING = 0.146  # height of the fully open mouth: 14 of 96 pixels
UPPER_SHARE = 0.28  # how much of the opening goes upwards
JAW_DROP = 0.055  # how far the chin follows a fully open mouth
# Blue above green and little of both: no skin, hair or lip in `face.py` has it, so the reader can tell the mouth.
INNER_MOUTH: Colour = (0.40, 0.05, 0.17)
TONGUE: Colour = (0.82, 0.32, 0.43)
TEETH: Colour = (0.97, 0.96, 0.94)


@dataclass(frozen=True)
class Motion:
    """What moves, per frame, each (F,): sway in units of the picture, openness of eyes and mouth, mouth width."""

    right: Array
    down: Array
    eyes: Array  # 1 open, 0 shut
    opening: Array  # 0 shut, 1 wide open
    spread: Array  # -1 rounded, 1 spread


def sway(rng: np.random.Generator, seconds: Array) -> tuple[Array, Array]:
    """Slow drift of the head (right, down), each (F,), within 1.5/96 and 0.9/96 of the picture."""
    rates, phases = rng.uniform(0.12, 0.4, 4), rng.uniform(0, 2 * np.pi, 4)
    waves = np.sin(2 * np.pi * rates[:, None] * seconds + phases[:, None])
    right, down = (0.65 * waves[0] + 0.35 * waves[1]) * 1.5 / 96, (0.65 * waves[2] + 0.35 * waves[3]) * 0.9 / 96
    return right.astype(np.float32), down.astype(np.float32)


def blinks(rng: np.random.Generator, seconds: Array) -> Array:
    """Openness of the eyes (F,): a blink of about a sixth of a second every one to three seconds."""
    times = np.cumsum(rng.uniform(1.0, 3.0, 1 + int(seconds[-1]))) - 0.5
    nearest = np.abs(seconds[:, None] - times).min(axis=1)
    return ramp(nearest, 0.03, 0.10)


def jaw_shift(grid: Grid, face: Face, motion: Motion) -> Array:
    """How far each row of the head (F, H) moves down as the jaw opens: none above the mouth, all at the chin."""
    a = Anatomy.of(face)
    share = ramp(grid.y[:, 0], a.mouth_y, a.chin)
    return np.asarray(JAW_DROP * motion.opening[:, None] * share + motion.down[:, None], np.float32)


def draw_eyes(canvas: Array, grid: Grid, face: Face, motion: Motion) -> None:
    """Draw both eyes, and the glasses, into the canvas (F, 3, H, W)."""
    a, size = Anatomy.of(face), canvas.shape[-1]
    for side in (-1, 1):
        middle = CENTRE_X + side * a.eye_x
        area = box(size, (middle - 0.105, a.eye_y - 0.10), (middle + 0.105, a.eye_y + 0.10))
        # Seen from the eye: its middle is the origin.
        local = grid.crop(area).follow(motion.right + np.float32(middle), motion.down + np.float32(a.eye_y))
        patch = canvas[..., area[0], area[1]]
        _draw_eye(patch, local, face, motion.eyes[:, None, None])
        if face.glasses:
            _draw_lens(patch, local, -side)


def _draw_eye(patch: Array, local: Grid, face: Face, openness: Array) -> None:
    wide, tall = 0.050 * face.eye_size, 0.036 * face.eye_size
    lid = np.sqrt(np.maximum(1 - (local.x / wide) ** 2, 0)).astype(np.float32)
    top, bottom = -tall * lid * (2 * openness - 1), tall * lid
    iris = oval(local, (0.0, 0.0), (0.027 * face.eye_size,) * 2)
    gap = band(local, top, bottom)
    edge = 1.5 * local.pixel
    blend(patch, mix(face.skin, (0.30, 0.12, 0.08), 0.6), band(local, top - 0.011 * lid**0.5, bottom))
    blend(patch, (0.97, 0.97, 0.96), gap)
    blend(patch, face.eye_rgb, gap * cover(iris, edge))
    blend(patch, (0.05, 0.05, 0.06), gap * cover(iris + 0.013, edge))
    blend(patch, WHITE, gap * 0.9 * cover(oval(local, (-0.009, -0.010), (0.008, 0.008)), edge))


def _draw_lens(patch: Array, local: Grid, inwards: int) -> None:
    """One rim with its half of the bridge; `inwards` is the direction of the nose."""
    rim = np.abs(slab(local, (0.0, 0.004), (0.074, 0.060), 0.04)) - 0.0075
    bridge = slab(local, (inwards * 0.094, -0.005), (0.020, 0.0065))
    blend(patch, (0.13, 0.12, 0.14), cover(np.minimum(rim, bridge), 1.3 * local.pixel))


def mouth_area(size: int) -> Box:
    """Rows and columns of the region in which any mouth moves."""
    return box(size, (CENTRE_X - 0.17, HEAD_Y + 0.095), (CENTRE_X + 0.17, HEAD_Y + 0.345))


@dataclass(frozen=True)
class _Lips:
    """The two inner curves of a mouth (F, 1, W) and its profile (F, 1, W): 1 in the middle, 0 at the corners."""

    upper: Array
    lower: Array
    profile: Array
    across: Array  # -1 to 1 between the corners


def draw_mouth(canvas: Array, grid: Grid, face: Face, motion: Motion) -> None:
    """Draw the mouth into the canvas (F, 3, H, W)."""
    rows, columns = area = mouth_area(canvas.shape[-1])
    down = motion.down + np.float32(Anatomy.of(face).mouth_y)
    local = grid.crop(area).follow(motion.right + np.float32(CENTRE_X), down)
    lips = _lip_curves(local, face, motion)
    patch = canvas[..., rows, columns]
    _draw_lips(patch, local, face, lips)
    _draw_inside(patch, local, lips)


def _lip_curves(local: Grid, face: Face, motion: Motion) -> _Lips:
    opening = (MAX_OPENING * motion.opening)[:, None, None]
    half = (0.088 * face.mouth_width * (1 + 0.30 * motion.spread))[:, None, None] * (1 - 0.6 * opening)
    across = local.x / half
    profile = np.maximum(1 - np.abs(across) ** 2.4, 0) ** 0.6
    corners = -0.012 * np.minimum(across**2, 1.5) + 0.006  # a slight smile
    upper = corners - UPPER_SHARE * opening * profile
    return _Lips(upper, corners + (1 - UPPER_SHARE) * opening * profile, profile, across)


def _draw_lips(patch: Array, local: Grid, face: Face, lips: _Lips) -> None:
    colour = mix(face.skin, (0.66, 0.22, 0.20), 0.52)
    full = 0.021 * face.lip_fullness * lips.profile**0.7
    seam = 0.006 * lips.profile**0.5
    # The dip in the middle of the upper lip.
    bow = 1 - 0.25 * np.exp(-((lips.across / 0.16) ** 2))
    blend(patch, colour, band(local, lips.upper - full * 0.85 * bow, lips.lower + full * 1.15))
    blend(patch, mix(colour, BLACK, 0.45), band(local, lips.upper - seam, lips.lower + seam))


def _draw_inside(patch: Array, local: Grid, lips: _Lips) -> None:
    inside = band(local, lips.upper, lips.lower)
    gap = lips.lower - lips.upper
    blend(patch, INNER_MOUTH, inside)
    tongue = lips.lower - 0.34 * gap * np.maximum(1 - (lips.across / 0.75) ** 2, 0)
    blend(patch, TONGUE, band(local, tongue, lips.lower))
    teeth = lips.upper + np.minimum(0.24 * gap, 0.026)
    blend(patch, TEETH, band(local, lips.upper, teeth) * ramp(-np.abs(lips.across), -0.95, -0.7))
