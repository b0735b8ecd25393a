# SPDX-License-Identifier: Apache-2.0
"""Frontal faces by OpenCV's cascade (Viola and Jones 2001), which ships with it; lips by what is dark between them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idlora.errors import SettingsError
from idlora.mining.finders.base import Frames, Seen

_STRIDE = 5  # frames between those in which faces are looked for; lips are read in all
_SIDE = 320  # pixels of the longest side in which they are looked for
_LEAST = 0.12  # of the shorter side
_SCALE, _NEIGHBOURS = 1.1, 5
_SAME = 0.3  # overlap of two boxes of one face
# The mouth in a box of the cascade, as shares of it.
_ROWS, _COLUMNS = (0.66, 0.96), (0.28, 0.72)
_DARK = 0.75  # of the mouth region's usual brightness, below which it is the inside of a mouth


class CascadeFinder:
    """The cascade of frontal faces on every fifth frame; boxes of one face are joined and steadied between.

    Limits: frontal faces in fair light; it tells no turned face. The opening of the lips is the dark share of the
    mouth's region: beards, shadows and teeth disturb it, so lips are followed worse than by a mesh.
    """

    @cached_property
    def _cascade(self) -> Any:
        try:
            import cv2
            from cv2 import data
        except ImportError as error:
            raise SettingsError("finding faces needs OpenCV: pip install 'idlora[mining]'") from error
        return cv2.CascadeClassifier(f"{data.haarcascades}haarcascade_frontalface_default.xml")

    @property
    def name(self) -> str:
        """With OpenCV's version."""
        import cv2

        return f"cascade of OpenCV {cv2.__version__}"

    @property
    def limits(self) -> str:
        """See the class."""
        return "frontal faces in fair light; lips by darkness"

    def find(self, frames: Frames) -> list[list[Seen]]:
        """See `FaceFinder.find`."""
        asked = list(range(0, len(frames), _STRIDE))
        chains = _chained([self._boxes(frames[place]) for place in asked])
        found: list[list[Seen]] = [[] for _ in frames]
        for places, boxes in chains:
            first, last = asked[places[0]], min(len(frames), asked[places[-1]] + _STRIDE)
            numbers = np.arange(first, last)
            steady = np.stack([np.interp(numbers, [asked[p] for p in places], part) for part in boxes.T], axis=1)
            for number, box in zip(numbers, steady, strict=True):
                found[number].append(_seen(frames[number], box))
        return found

    def _boxes(self, frame: Frames) -> NDArray[np.float64]:
        """Left, top, width and height (N, 4) of faces, as shares of the picture."""
        cascade = self._cascade
        import cv2

        height, width = frame.shape[:2]
        scale = _SIDE / max(height, width)  # small pictures are enlarged: the cascade wants 24 pixels of a face
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        grey = cv2.equalizeHist(cv2.cvtColor(cv2.resize(frame, size), cv2.COLOR_RGB2GRAY))
        least = max(24, round(_LEAST * min(size)))
        boxes = cascade.detectMultiScale(grey, _SCALE, _NEIGHBOURS, minSize=(least, least))
        shares: NDArray[np.float64] = np.asarray(boxes, np.float64).reshape(-1, 4) / np.array([size[0], size[1]] * 2)
        return shares


def _chained(boxes: list[NDArray[np.float64]]) -> list[tuple[list[int], NDArray[np.float64]]]:
    """Boxes of one face through the frames that were asked, one missed frame forgiven: places, and boxes (N, 4)."""
    open_: list[tuple[list[int], list[NDArray[np.float64]]]] = []
    done: list[tuple[list[int], list[NDArray[np.float64]]]] = []
    for place, found in enumerate(boxes):
        done += [chain for chain in open_ if chain[0][-1] < place - 2]
        open_ = [chain for chain in open_ if chain[0][-1] >= place - 2]
        for box in found:
            near = [chain for chain in open_ if chain[0][-1] < place and _overlap(chain[1][-1], box) > _SAME]
            if near:
                chain = max(near, key=lambda each: _overlap(each[1][-1], box))
                chain[0].append(place)
                chain[1].append(box)
            else:
                open_.append(([place], [box]))
    return [(places, np.stack(parts)) for places, parts in [*done, *open_] if len(places) > 1 or len(boxes) <= 2]


def _overlap(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return _boxed(first, 0.0).overlap(_boxed(second, 0.0))


def _seen(frame: Frames, box: NDArray[np.float64]) -> Seen:
    """The face of a box, its lips by how much of the mouth's region is far darker than is usual in it."""
    height, width = frame.shape[:2]
    left, top, wide, high = box * (width, height, width, height)
    rows = slice(int(top + _ROWS[0] * high), int(top + _ROWS[1] * high) + 1)
    columns = slice(int(left + _COLUMNS[0] * wide), int(left + _COLUMNS[1] * wide) + 1)
    region = frame[rows, columns].astype(np.float64).mean(axis=2)
    usual = float(np.percentile(region, 75)) if region.size else 0.0
    dark = np.clip((_DARK * usual - region) / max(1.0, _DARK * usual), 0, 1) if region.size else np.zeros(1)
    return _boxed(box, float(dark.mean()) * (_ROWS[1] - _ROWS[0]))


def _boxed(box: NDArray[np.float64], opening: float) -> Seen:
    left, top, width, height = (float(part) for part in box)
    return Seen(left, top, width, height, opening)
