# SPDX-License-Identifier: Apache-2.0
"""The one interface of all finders of faces, and which of them can work here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from idlora.errors import SettingsError, nearest

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Seen:
    """A face in one frame; places and sizes as shares of the picture's width and height.

    Attributes:
        left, top, width, height: the box from brow to chin.
        opening: how far the lips part, in face heights, up to a constant of the face: only its movement counts.
        turned: 0 looks into the camera, 1 is a profile; 0 where the finder cannot tell.
    """

    left: float
    top: float
    width: float
    height: float
    opening: float
    turned: float = 0.0

    def overlap(self, other: Seen) -> float:
        """Intersection of two boxes over their union."""
        wide = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        high = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        common = max(0.0, wide) * max(0.0, high)
        return common / max(1e-9, self.width * self.height + other.width * other.height - common)


class FaceFinder(Protocol):
    """Anything that finds faces."""

    @property
    def name(self) -> str:
        """With its version, for what depends on it."""
        ...

    @property
    def limits(self) -> str:
        """What its word is worth."""
        ...

    def find(self, frames: Frames) -> list[list[Seen]]:
        """The faces of each of some frames (F, H, W, 3) of one shot, in order."""
        ...


def mesh_is_there() -> bool:
    """Whether a mediapipe is installed that has the mesh and its model; later ones than 0.10.21 have neither."""
    spec = find_spec("mediapipe")
    folders = (spec.submodule_search_locations if spec is not None else None) or ()
    return any((Path(folder) / "python" / "solutions" / "face_mesh.py").is_file() for folder in folders)


def finder_named(name: str) -> FaceFinder:
    """A finder: `mesh`, `cascade` or `world`; `auto` is the mesh where it is installed, else the cascade.

    Raises:
        SettingsError: there is none of that name, or it is not installed.
    """
    if name == "auto":
        name = "mesh" if mesh_is_there() else "cascade"
    if name == "mesh":
        from idlora.mining.finders.mesh import MeshFinder

        return MeshFinder()
    if name == "cascade":
        from idlora.mining.finders.cascade import CascadeFinder

        return CascadeFinder()
    if name == "world":
        from idlora.mining.finders.world import WorldFinder

        return WorldFinder()
    raise SettingsError(f"there is no finder {name!r}{nearest(name, ('auto', 'mesh', 'cascade', 'world'))}")
