# SPDX-License-Identifier: Apache-2.0
"""Faces by mediapipe's mesh of 478 points, where it is installed (extra `mesh`)."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idlora.errors import SettingsError
from idlora.mining.finders.base import Frames, Seen

_MOST = 4  # faces
_UPPER_LIP, _LOWER_LIP, _BROW, _CHIN = 13, 14, 10, 152
_NOSE, _LEFT_CHEEK, _RIGHT_CHEEK = 1, 234, 454


class MeshFinder:
    """Lips by the gap between their inner edges, turning by where the nose lies between the cheeks.

    Limits: faces up to a few metres away; a new state for every shot, so that faces are not carried over a cut.
    """

    @cached_property
    def _module(self) -> Any:
        try:
            from mediapipe.python.solutions import face_mesh
        except ImportError as error:
            raise SettingsError(
                "the mesh needs mediapipe 0.10.21, later ones lack it: pip install 'idlora[mesh]', or --finder cascade"
            ) from error
        return face_mesh

    @property
    def name(self) -> str:
        """With mediapipe's version."""
        return f"mesh of mediapipe {version('mediapipe')}"

    @property
    def limits(self) -> str:
        """See the class."""
        return "faces near the camera"

    def find(self, frames: Frames) -> list[list[Seen]]:
        """See `FaceFinder.find`."""
        with self._module.FaceMesh(max_num_faces=_MOST, refine_landmarks=True) as mesh:
            told = [mesh.process(np.ascontiguousarray(frame)).multi_face_landmarks or () for frame in frames]
        return [[_seen(face) for face in faces] for faces in told]


def _seen(face: Any) -> Seen:
    points: NDArray[np.float64] = np.array([(point.x, point.y) for point in face.landmark])
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    gap = float(np.linalg.norm(points[_LOWER_LIP] - points[_UPPER_LIP]))
    high = float(np.linalg.norm(points[_CHIN] - points[_BROW])) + 1e-9
    near, far = sorted(abs(points[_NOSE, 0] - points[cheek, 0]) for cheek in (_LEFT_CHEEK, _RIGHT_CHEEK))
    return Seen(left, top, right - left, bottom - top, gap / high, turned=float(1 - near / max(far, 1e-9)))
