# SPDX-License-Identifier: Apache-2.0
"""The parts of a person that keep their shape: body, head, hair, beard, nose and brows, as still layers.

Positions are in units of the picture; `Anatomy` holds those that the moving parts (eyes, mouth) share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from idlora.data.world.face import Face
from idlora.data.world.shapes import (
    Array,
    Box,
    Grid,
    Point,
    box,
    capsule,
    cover,
    empty_layer,
    mix,
    oval,
    paint,
    ramp,
    slab,
    tint,
)

CENTRE_X = 0.5
HEAD_Y = 0.44
_HAIR_ENDS = {"long": 0.90, "bob": 0.72}  # y where hair that covers the ears ends
BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of one face lie."""

    half_width: float
    crown: float  # y of the top of the skull
    chin: float
    eye_y: float
    eye_x: float  # distance of an eye from the middle
    nose_y: float
    mouth_y: float

    @classmethod
    def of(cls, face: Face) -> Anatomy:
        """The places that follow from the factors of a face."""
        tall = face.head_height
        return cls(
            half_width=0.212 * face.head_width,
            crown=HEAD_Y - 0.275 * tall,
            chin=HEAD_Y + 0.305 * tall,
            eye_y=HEAD_Y - 0.015,
            eye_x=0.094 * face.eye_spacing,
            nose_y=HEAD_Y + 0.075 + 0.02 * (face.nose_length - 1),
            mouth_y=HEAD_Y + 0.168 * tall,
        )


@dataclass(frozen=True)
class Sketch:
    """One face on one grid: what every drawing function below needs."""

    face: Face
    grid: Grid
    size: int

    @property
    def anatomy(self) -> Anatomy:
        """Where the parts of this face lie."""
        return Anatomy.of(self.face)

    def edge(self, distance: Array) -> Array:
        """Coverage with an edge of one and a half pixels: smooth, and easy for a small codec."""
        return cover(distance, 1.5 * self.grid.pixel)


def skull(sketch: Sketch, grow: float = 0.0) -> Array:
    """Distance to the outline of the head: an ellipse above, a squarer oval below."""
    a, grid = sketch.anatomy, sketch.grid
    upper = oval(grid, (CENTRE_X, HEAD_Y), (a.half_width + grow, HEAD_Y - a.crown + grow), 2.2)
    lower = oval(grid, (CENTRE_X, HEAD_Y), (a.half_width + grow, a.chin - HEAD_Y + grow), sketch.face.jaw)
    return np.where(grid.y < HEAD_Y, upper, lower)


def head_area(size: int) -> Box:
    """Rows and columns that hold the widest head, its hair and its sway."""
    return box(size, (0.16, 0.0), (0.84, 0.88))


def body_layer(sketch: Sketch) -> Array:
    """Everything behind the head: the hair at the back, the neck and the shirt."""
    layer = _back_hair(sketch, empty_layer(sketch.size))
    skin, grid = sketch.face.skin, sketch.grid
    neck = slab(grid, (CENTRE_X, 0.78), (0.085, 0.13), 0.03)
    layer = paint(layer, mix(skin, (0.30, 0.10, 0.05), 0.28), sketch.edge(neck))
    return _shirt(sketch, layer)


def _back_hair(sketch: Sketch, layer: Array) -> Array:
    """Long hair and bobs: the dark inside, and strands before it that hang still while the jaw moves."""
    if sketch.face.hair_style not in _HAIR_ENDS:
        return layer
    wide, end, colour = sketch.anatomy.half_width, _HAIR_ENDS[sketch.face.hair_style], sketch.face.hair_rgb
    inside = slab(sketch.grid, (CENTRE_X, (0.18 + end) / 2), (wide + 0.05, (end - 0.18) / 2), 0.24)
    layer = paint(layer, mix(colour, BLACK, 0.25), sketch.edge(inside))
    for side in (-1, 1):
        strand = capsule(
            sketch.grid, (CENTRE_X + side * (wide + 0.01), 0.36), (CENTRE_X + side * (wide + 0.022), end - 0.09), 0.044
        )
        layer = paint(layer, colour, sketch.edge(strand))
    return layer


def _shirt(sketch: Sketch, layer: Array) -> Array:
    grid, colour = sketch.grid, sketch.face.clothes_rgb
    shoulders = oval(grid, (CENTRE_X, 1.13), (0.43, 0.285), 2.6)
    collar = oval(grid, (CENTRE_X, 0.835), (0.12, 0.075))
    mask = sketch.edge(np.maximum(shoulders, -collar))
    shade = mix(colour, BLACK, 0.22)
    layer = paint(layer, colour, mask)
    layer = paint(layer, shade, mask * ramp(np.abs(grid.x - CENTRE_X), 0.24, 0.46) * 0.8)
    return paint(layer, shade, mask * sketch.edge(np.abs(collar) - 0.012))


def head_layer(sketch: Sketch) -> Array:
    """Everything that sways with the head and keeps its shape; the eyes and the mouth are left out."""
    layer = empty_layer(sketch.size)
    if sketch.face.hair_style not in _HAIR_ENDS:
        layer = _ears(sketch, layer)
    layer = _skin(sketch, layer)
    layer = _nose(sketch, layer)
    if sketch.face.beard:
        layer = _beard(sketch, layer)
    layer = _brows(sketch, layer)
    return _hair(sketch, layer)


def _ears(sketch: Sketch, layer: Array) -> Array:
    a, skin = sketch.anatomy, sketch.face.skin
    for side in (-1, 1):
        centre = (CENTRE_X + side * a.half_width, HEAD_Y + 0.015)
        layer = paint(layer, mix(skin, BLACK, 0.08), sketch.edge(oval(sketch.grid, centre, (0.034, 0.055))))
        layer = paint(layer, mix(skin, (0.4, 0.1, 0.1), 0.3), sketch.edge(oval(sketch.grid, centre, (0.016, 0.032))))
    return layer


def _skin(sketch: Sketch, layer: Array) -> Array:
    grid, skin, a = sketch.grid, sketch.face.skin, sketch.anatomy
    layer = paint(layer, skin, sketch.edge(skull(sketch)))
    shadow = ramp((grid.x - CENTRE_X) / a.half_width + 0.5 * (grid.y - HEAD_Y), 0.35, 1.15)
    layer = tint(layer, mix(skin, (0.35, 0.12, 0.08), 0.45), 0.55 * shadow)
    for side in (-1, 1):
        cheek = oval(grid, (CENTRE_X + side * 0.125, HEAD_Y + 0.095), (0.06, 0.045))
        layer = tint(layer, mix(skin, (0.90, 0.30, 0.22), 0.5), 0.45 * cover(cheek, 0.07))
    return layer


def _nose(sketch: Sketch, layer: Array) -> Array:
    grid, face, a = sketch.grid, sketch.face, sketch.anatomy
    half = 0.030 * face.nose_width
    bridge = capsule(grid, (CENTRE_X + 0.004, a.eye_y + 0.03), (CENTRE_X + 0.008, a.nose_y), half * 0.7)
    layer = tint(layer, mix(face.skin, (0.40, 0.14, 0.08), 0.35), 0.45 * cover(bridge, 0.03))
    tip = oval(grid, (CENTRE_X, a.nose_y), (half * 1.25, half * 0.85))
    layer = tint(layer, mix(face.skin, (0.40, 0.14, 0.08), 0.42), sketch.edge(tip))
    shine = oval(grid, (CENTRE_X - 0.004, a.nose_y - 0.008), (half, half * 0.75))
    return tint(layer, mix(face.skin, WHITE, 0.08), sketch.edge(shine))


def _beard(sketch: Sketch, layer: Array) -> Array:
    grid, a, colour = sketch.grid, sketch.anatomy, mix(sketch.face.hair_rgb, BLACK, 0.1)
    side = np.abs(grid.x - CENTRE_X) / a.half_width
    # The border rises towards the ears and dips under the nose, as a full beard with moustache does.
    border = a.mouth_y - 0.052 + 0.035 * ramp(side, 0.15, 0.55) - 0.15 * ramp(side, 0.62, 1.0)
    whiskers = np.maximum(skull(sketch, grow=0.012), border - grid.y)
    return paint(layer, colour, cover(whiskers, 2.0 * grid.pixel))


def _brows(sketch: Sketch, layer: Array) -> Array:
    face, a = sketch.face, sketch.anatomy
    colour = mix(face.hair_rgb, (0.22, 0.14, 0.09), 0.5)
    for side in (-1, 1):
        middle, lift = CENTRE_X + side * a.eye_x, 0.045 * np.sin(face.brow_tilt)
        inner = (middle - side * 0.04, a.eye_y - 0.078 - lift)
        outer = (middle + side * 0.045, a.eye_y - 0.074 + lift)
        layer = tint(layer, colour, sketch.edge(capsule(sketch.grid, inner, outer, 0.0105 * face.brow_weight)))
    return layer


def _hair(sketch: Sketch, layer: Array) -> Array:
    style = sketch.face.hair_style
    if style == "bald":
        shine = oval(sketch.grid, (CENTRE_X - 0.05, HEAD_Y - 0.20), (0.07, 0.035))
        return tint(layer, mix(sketch.face.skin, WHITE, 0.5), 0.6 * cover(shine, 0.05))
    mask = sketch.edge(_HAIR[style](sketch))
    layer = paint(layer, sketch.face.hair_rgb, mask)
    gloss = cover(oval(sketch.grid, (CENTRE_X - 0.07, HEAD_Y - 0.25), (0.10, 0.04)), 0.08)
    return paint(layer, mix(sketch.face.hair_rgb, WHITE, 0.3), 0.55 * mask * gloss)


def _fringe(sketch: Sketch, top: float, side_rise: float, parting: float = 0.0) -> Array:
    """Signed height above the hairline, negative above it: `top` at the middle, lower at the temples."""
    across = (sketch.grid.x - CENTRE_X) / sketch.anatomy.half_width
    line = top + side_rise * ramp(np.abs(across - parting), 0.30, 1.0)
    return np.asarray(sketch.grid.y - line, np.float32)


def _short(sketch: Sketch) -> Array:
    return np.maximum(skull(sketch, grow=0.022), _fringe(sketch, HEAD_Y - 0.175, 0.14, parting=-0.35))


def _long(sketch: Sketch) -> Array:
    return np.maximum(skull(sketch, grow=0.03), _fringe(sketch, HEAD_Y - 0.20, 0.30))


def _bob(sketch: Sketch) -> Array:
    return np.maximum(skull(sketch, grow=0.035), _fringe(sketch, HEAD_Y - 0.125, 0.05))


def _bun(sketch: Sketch) -> Array:
    cap = np.maximum(skull(sketch, grow=0.02), _fringe(sketch, HEAD_Y - 0.19, 0.17))
    return np.minimum(cap, oval(sketch.grid, (CENTRE_X, sketch.anatomy.crown - 0.055), (0.085, 0.07)))


def _curly(sketch: Sketch) -> Array:
    """A crown of round locks along the skull."""
    a = sketch.anatomy
    cap = np.maximum(skull(sketch, grow=0.03), _fringe(sketch, HEAD_Y - 0.16, 0.13))
    for angle in np.linspace(-0.12, np.pi + 0.12, 9):
        centre: Point = (CENTRE_X + (a.half_width + 0.012) * np.cos(angle), HEAD_Y - 0.06 - 0.22 * np.sin(angle))
        cap = np.minimum(cap, oval(sketch.grid, centre, (0.066, 0.066)))
    return cap


_HAIR = {"short": _short, "long": _long, "bob": _bob, "bun": _bun, "curly": _curly}
