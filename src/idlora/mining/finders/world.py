# SPDX-License-Identifier: Apache-2.0
"""Faces of the miniature's world: a linear map tells them, and their mouths are purple inside."""

from __future__ import annotations

import numpy as np

from idlora.data.world.reader import read_mouth_height
from idlora.evaluation.judges.learnt import learnt_map
from idlora.evaluation.judges.world_faces import GRID, edge_features, face_cells
from idlora.mining.finders.base import Frames, Seen

# Where the head of a person of the world is drawn, in squares as high as the picture.
_LEFT, _TOP, _WIDTH, _HEIGHT = 0.24, 0.16, 0.52, 0.56
_STRIDE = 5  # frames between those in which a face is looked for; lips are read in all
_SQUARE = 0.02  # of the side by which a picture may miss a square


class WorldFinder:
    """Squares as high as the picture, side by side, are asked whether a head of the world is drawn in them.

    Limits: for pictures of the procedural world alone, uncropped; its people look straight ahead.
    """

    @property
    def name(self) -> str:
        """Of the maps that ship with the judges."""
        return "faces of the world 1"

    @property
    def limits(self) -> str:
        """For one world alone."""
        return "the procedural world alone"

    def find(self, frames: Frames) -> list[list[Seen]]:
        """See `FaceFinder.find`."""
        height, width = frames.shape[1:3]
        if height < GRID or width < height * (1 - _SQUARE):
            return [[] for _ in frames]
        found: list[list[Seen]] = [[] for _ in frames]
        count = max(1, round(width / height))
        for left in np.linspace(0, max(0, width - height), count).astype(int):
            square = frames[:, :, left : left + height]
            if square.shape[2] == height:
                self._find_in(square, left / width, height / width, found)
        return found

    def _find_in(self, square: Frames, left: float, share: float, found: list[list[Seen]]) -> None:
        """Add the face of each square (F, size, size, 3) that shows one."""
        asked = square[::_STRIDE]
        features = np.stack([edge_features(face_cells(frame[None])) for frame in asked])
        shown = np.repeat(learnt_map("face seen")(features)[:, 0] > 0, _STRIDE)[: len(square)]
        opening = read_mouth_height(square) / _HEIGHT
        for place in np.flatnonzero(shown):
            box = (left + _LEFT * share, _TOP, _WIDTH * share, _HEIGHT)
            found[place].append(Seen(*box, opening=float(opening[place])))
