# SPDX-License-Identifier: Apache-2.0
"""Face similarity by ArcFace (Deng et al. 2019) with SCRFD's detector, the pair `buffalo_l` of insightface, as ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from idlora.data.prompt import Prompt
from idlora.errors import InputError, WeightsError
from idlora.evaluation.judges.base import Footage, Frames, JudgeRecord, Reference
from idlora.evaluation.judges.sounds import Floats
from idlora.evaluation.judges.weights import Lazy, digest_of, existing
from idlora.evaluation.store import Values

DETECTOR, RECOGNISER = "det_10g.onnx", "w600k_r50.onnx"
NUM_FRAMES = 5
_SIDE, _STRIDES, _ANCHORS, _LEAST_SCORE = 320, (8, 16, 32), 2, 0.3
_FACE = 112
# Where eyes, nose and corners of the mouth lie in the pictures that ArcFace was trained on.
LANDMARKS = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)

Pixels = NDArray[np.uint8]
Network = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]


@dataclass(frozen=True, eq=False)
class Found:
    """A face: left, top, right, bottom in pixels, landmarks (5, 2), and how sure the detector is."""

    box: Floats
    landmarks: Floats
    score: float

    @property
    def area(self) -> float:
        """Pixels of its box."""
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))


def largest_face(detector: Network, picture: Pixels) -> Found | None:
    """The largest face (H, W, 3), or None."""
    height, width = picture.shape[:2]
    scale = _SIDE / max(height, width)
    sides = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(picture).resize(sides, Image.Resampling.BILINEAR)
    canvas = np.zeros((_SIDE, _SIDE, 3), np.float32)
    canvas[: small.height, : small.width] = np.asarray(small)
    outputs = detector(np.asarray((canvas - 127.5) / 128, np.float32).transpose(2, 0, 1)[None])
    faces = [face for face in decode(outputs) if face.score >= _LEAST_SCORE]
    if not faces:
        return None
    best = max(faces, key=lambda face: face.area)
    # Of the boxes on one face the surest is taken.
    best = max((face for face in faces if _overlap(face.box, best.box) > 0.4), key=lambda face: face.score)
    return Found(best.box / scale, best.landmarks / scale, best.score)


def decode(outputs: Sequence[NDArray[np.float32]]) -> list[Found]:
    """Faces of SCRFD's nine outputs: scores (N, 1), box distances (N, 4) and landmarks (N, 10) at three strides."""
    faces: list[Found] = []
    for level, stride in enumerate(_STRIDES):
        cells = np.arange(_SIDE // stride) * stride
        # Two anchors lie on every cell, cells row by row.
        centres = (
            np.stack(np.meshgrid(cells, cells), axis=-1).reshape(-1, 2).repeat(_ANCHORS, axis=0).astype(np.float64)
        )
        scores, boxes, points = (outputs[level + kind * len(_STRIDES)].reshape(len(centres), -1) for kind in range(3))
        for place in np.flatnonzero(scores[:, 0] >= _LEAST_SCORE):
            centre, reach = centres[place], boxes[place] * stride
            box = np.concatenate([centre - reach[:2], centre + reach[2:]])
            faces.append(Found(box, centre + points[place].reshape(5, 2) * stride, float(scores[place, 0])))
    return faces


def _overlap(first: Floats, second: Floats) -> float:
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    both = sum(float(np.prod(box[2:] - box[:2])) for box in (first, second))
    return shared / max(both - shared, 1e-9)


def similarity_transform(source: Floats, target: Floats) -> Floats:
    """The turn, scale and shift (2, 3) that bring points (N, 2) nearest to others by least squares (Umeyama 1991).

    Raises:
        InputError: the points to be moved coincide.
    """
    a, b = source - source.mean(0), target - target.mean(0)
    spread = float((a**2).sum() / len(a))
    if spread < 1e-6:
        raise InputError("the landmarks of a face lie on one point; it cannot be aligned")
    left, values, right = np.linalg.svd(b.T @ a / len(a))
    signs = np.array([1.0, np.sign(np.linalg.det(left @ right))])
    turn = left @ np.diag(signs) @ right
    scale = float(values @ signs) / spread
    return np.column_stack([scale * turn, target.mean(0) - scale * turn @ source.mean(0)])


def aligned(picture: Pixels, landmarks: Floats) -> Pixels:
    """The face (112, 112, 3) with its landmarks where ArcFace wants them."""
    matrix = np.vstack([similarity_transform(landmarks, LANDMARKS), [0, 0, 1]])
    inverse = tuple(np.linalg.inv(matrix)[:2].ravel())
    turned = Image.fromarray(picture).transform(
        (_FACE, _FACE), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    return np.asarray(turned)


class ArcFaceJudge(Lazy):
    """Five evenly spaced frames, the largest face of each, mean embedding, unit length, cosine: as the paper does.

    The folder holds det_10g.onnx and w600k_r50.onnx. Limits: not yet run on the published files; decoding, alignment
    and averaging are tested on planted numbers. Frames without a face are left out; five without one are no verdict.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source)
        for name in (DETECTOR, RECOGNISER):
            existing(str(Path(source, name)), "ArcFace")

    @cached_property
    def record(self) -> JudgeRecord:
        """With the digest of both files."""
        limits = "frontal faces of photographs; drawn faces are foreign to it"
        return JudgeRecord("ArcFace", "buffalo_l", limits, digest_of(Path(self.source)))

    @cached_property
    def networks(self) -> tuple[Network, Network]:
        """Detector and recogniser."""
        return _session(Path(self.source, DETECTOR)), _session(Path(self.source, RECOGNISER))

    def embed(self, frames: Frames) -> Floats:
        """Unit vector (512,) of the face in frames (F, H, W, 3).

        Raises:
            InputError: no face is found.
        """
        detector, recogniser = self.networks
        vectors = []
        for place in np.linspace(0, len(frames) - 1, min(NUM_FRAMES, len(frames))).round().astype(int):
            face = largest_face(detector, frames[place])
            if face is not None:
                pixels = (aligned(frames[place], face.landmarks).astype(np.float32) - 127.5) / 127.5
                vectors.append(recogniser(pixels.transpose(2, 0, 1)[None])[0][0])
        if not vectors:
            raise InputError("no face is found in any of its frames")
        mean = np.mean(vectors, axis=0, dtype=np.float64)
        return np.asarray(mean / (np.linalg.norm(mean) + 1e-9))

    def score(
        self,
        clip: Footage,
        reference: Reference,
        prompt: Prompt | None,  # noqa: ARG002 - the face is the picture's
    ) -> Values:
        """`similarity` to the picture of the face."""
        return {"similarity": float(self.embed(clip.pictures) @ self.embed(reference.face))}


def _session(path: Path) -> Network:
    import onnxruntime

    try:
        session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise WeightsError(f"{path} is no network that onnxruntime reads ({type(error).__name__})") from error
    name = session.get_inputs()[0].name
    return lambda given: session.run(None, {name: given.astype(np.float32)})
