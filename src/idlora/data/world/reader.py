# SPDX-License-Identifier: Apache-2.0
"""Reads the mouth opening back from pixels alone, of true, decoded and generated clips alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from idlora.data.world.expression import INNER_MOUTH, MAX_OPENING, mouth_area
from idlora.data.world.head import CENTRE_X
from idlora.data.world.shapes import Array

_HALF_BAND = 0.033  # half width of the columns that are read: inside the narrowest mouth


def mouth_box(size: int) -> tuple[slice, slice]:
    """Rows and columns of the region in which the mouth moves, in a picture of size x size."""
    return mouth_area(size)


def read_mouth_opening(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The opening (F,) of the mouth in frames (F, size, size, 3) uint8: 0 at its least in the clip, about 1 wide open.

    It grows in proportion to `read_mouth_height`.
    """
    height = read_mouth_height(frames)
    return np.asarray((height - height.min()) / MAX_OPENING, np.float32)


def read_mouth_height(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Height (F,) of what is purple in the middle of the mouth box, as a share of the picture's.

    The inside of every mouth is purple, (red + blue) / 2 - green far above zero; skin and hair are not. Summed down
    the middle columns of the mouth box this is the height of the opening, and more or less than 0 by the skin's colour.
    """
    size = frames.shape[1]
    rows, _ = mouth_box(size)
    columns = slice(round((CENTRE_X - _HALF_BAND) * size), round((CENTRE_X + _HALF_BAND) * size))
    pixels = frames[:, rows, columns].astype(np.float32) / 255
    level = _purple(pixels) / _purple(np.asarray(INNER_MOUTH))  # (F, rows, columns): 1 inside the mouth
    return np.asarray(level.mean(axis=2).sum(axis=1) / size, np.float32)


def _purple(rgb: Array) -> Array:
    return np.asarray((rgb[..., 0] + rgb[..., 2]) / 2 - rgb[..., 1])
