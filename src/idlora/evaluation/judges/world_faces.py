# SPDX-License-Identifier: Apache-2.0
"""Whether a clip of the miniature's world shows the face that it should: the known parameters, read from pixels."""

from __future__ import annotations

import numpy as np

from idlora.data.prompt import Prompt
from idlora.data.world.face import Face
from idlora.errors import InputError
from idlora.evaluation.judges.base import Footage, Frames, JudgeRecord, Reference
from idlora.evaluation.judges.learnt import facts, learnt_array, learnt_map, weights_hash
from idlora.evaluation.judges.sounds import Floats
from idlora.evaluation.store import Values

GRID = 32  # cells a side that pixels are averaged over
NUM_FRAMES = 5
_LEAST_READ = 0.3  # parameters of which less variance is read are left out
PARAMETERS = (
    *(f"{part} {colour}" for part in ("skin", "hair", "clothes") for colour in ("red", "green", "blue")),
    *"glasses beard head_width head_height eye_spacing eye_size nose_width mouth_width".split(),
)


def parameters_of(face: Face) -> Floats:
    """The numbers (17,) of `PARAMETERS`."""
    shape = [float(getattr(face, name)) for name in PARAMETERS[9:]]
    return np.array([*face.skin, *face.hair_rgb, *face.clothes_rgb, *shape])


def face_cells(frames: Frames) -> Floats:
    """Mean colour (32, 32, 3) of the cells of evenly spaced frames (F, size, size, 3).

    Raises:
        InputError: the pictures are not square or too small.
    """
    if frames.shape[1] != frames.shape[2] or frames.shape[1] < GRID:
        raise InputError(f"pictures of {frames.shape[2]} x {frames.shape[1]} are not of the miniature's world")
    chosen = frames[np.linspace(0, len(frames) - 1, min(NUM_FRAMES, len(frames))).round().astype(int)]
    edges = np.linspace(0, frames.shape[1], GRID + 1).round().astype(int)[:-1]
    mean = chosen.astype(np.float64).mean(axis=0) / 255
    sums = np.add.reduceat(np.add.reduceat(mean, edges, axis=0), edges, axis=1)
    sizes = np.diff(np.append(edges, frames.shape[1]))
    return np.asarray(sums / (sizes[:, None, None] * sizes[None, :, None]))


def edge_features(cells: Floats) -> Floats:
    """Where a picture of cells (32, 32, 3) has edges, (1985,): colours change, but a head's outline stays."""
    down, right = (np.abs(np.diff(cells, axis=axis)).mean(axis=2).ravel() for axis in (0, 1))
    return np.concatenate([down, right, [cells.std()]])


def refuse_no_face(cells: Floats) -> None:
    """Raise InputError if cells (32, 32, 3) show no face of the world where it belongs."""
    seen = float(learnt_map("face seen")(edge_features(cells)[None])[0, 0])
    if seen < 0:
        raise InputError(f"no face of the miniature's world is seen ({seen:.2f}; a face is near 1, none near -1)")


class WorldFacesJudge:
    """Skin, hair, clothes, glasses, beard and proportions, read by a linear map from the world's pictures.

    A face is the vector of its parameters in standard deviations, each weighted by the share of its variance that the
    map reads in unseen faces; similarity is the cosine: 1 for one picture, about 0 on average for two persons. Limits:
    for the procedural world alone; pictures without a head's outline where it belongs are refused; the hair colour of a
    bald head is not to be seen.
    """

    @property
    def record(self) -> JudgeRecord:
        """With the share of variance that is read of each parameter."""
        read = facts()["faces_read"]
        shown = ", ".join(f"{name} {share:.2f}" for name, share in zip(PARAMETERS, read, strict=True))
        return JudgeRecord(
            "faces of the world", "1", f"share of variance read in unseen faces: {shown}", weights_hash()
        )

    def embed(self, frames: Frames) -> Floats:
        """Unit vector (17,) of the face in frames (F, size, size, 3).

        Raises:
            InputError: no face of the world is seen.
        """
        cells = face_cells(frames)
        refuse_no_face(cells)
        read = np.asarray(facts()["faces_read"])
        weights = np.where(read >= _LEAST_READ, read, 0.0)
        centre, spread = learnt_array("faces/centre"), learnt_array("faces/spread")
        vector = weights * (learnt_map("faces")(cells.reshape(1, -1))[0] - centre) / spread
        return np.asarray(vector / (np.linalg.norm(vector) + 1e-9))

    def score(
        self,
        clip: Footage,
        reference: Reference,
        prompt: Prompt | None,  # noqa: ARG002 - the face is the picture's
    ) -> Values:
        """`similarity` of five frames of the clip to the picture of the face."""
        return {"similarity": float(self.embed(clip.pictures) @ self.embed(reference.face))}
