# SPDX-License-Identifier: Apache-2.0
"""SyncNet on random weights: the published tensors, distances by hand, crops, and cepstra of the library it used."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from idlora.errors import InputError, WeightsError
from idlora.evaluation.clips import target, true_sound
from idlora.evaluation.judges import Footage, Reference
from idlora.evaluation.judges.mfcc import mfcc
from idlora.evaluation.judges.syncnet import (
    SyncNet,
    SyncNetJudge,
    at_rate,
    distances,
    embedded,
    face_crops,
    lse,
    refuse_still,
)
from idlora.evaluation.judges.weights import fill, tensors_of


def sound() -> NDArray[np.float32]:
    return true_sound(target("test", 0, 0))


# SyncNet


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Tensors of syncnet_v2.model, after the description of its authors: convolutions, norms and heads."""
    found: dict[str, tuple[int, ...]] = {}
    audio = [(64, 1, 3, 3), (192, 64, 3, 3), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3), (512, 256, 5, 4)]
    lip = [
        (96, 3, 5, 7, 7),
        (256, 96, 1, 5, 5),
        (256, 256, 1, 3, 3),
        (256, 256, 1, 3, 3),
        (256, 256, 1, 3, 3),
        (512, 256, 1, 6, 6),
    ]
    # Three modules a layer, and a pooling after those that have one.
    towers: dict[str, list[tuple[int, ...]]] = {"netcnnaud": [*audio], "netcnnlip": [*lip]}
    for tower, shapes in towers.items():
        for shape, number in zip(shapes, (0, 4, 8, 11, 14, 18), strict=True):
            found |= {f"{tower}.{number}.weight": shape, f"{tower}.{number}.bias": shape[:1]}
            found |= _norm(f"{tower}.{number + 1}", shape[0])
    for head in ("netfcaud", "netfclip"):
        found |= {f"{head}.0.weight": (512, 512), f"{head}.0.bias": (512,), **_norm(f"{head}.1", 512)}
        found |= {f"{head}.3.weight": (1024, 512), f"{head}.3.bias": (1024,)}
    return found


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (size,) for part in ("weight", "bias", "running_mean", "running_var")}


@pytest.fixture(scope="module")
def syncnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, of the published names and shapes, in a checkpoint of torch without counters, as it is."""
    torch.manual_seed(0)
    tensors = {name: 0.05 * torch.randn(shape) for name, shape in published_shapes().items()}
    tensors |= {name: torch.rand_like(value) + 0.5 for name, value in tensors.items() if name.endswith("running_var")}
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    torch.save(tensors, path)
    return path


def test_the_published_tensors_fill_the_network_and_no_other_does(syncnet: Path) -> None:
    network = SyncNet()
    tensors = tensors_of(syncnet)
    fill(network, tensors, "SyncNet")
    assert torch.equal(network.state_dict()["netfclip.3.weight"], tensors["netfclip.3.weight"])
    assert network.hear(torch.zeros(2, 1, 13, 20)).shape == (2, 1024)
    assert network.see(torch.zeros(1, 3, 5, 224, 224)).shape == (1, 1024)
    for change, words in (
        ({"netfcaud.0.bias": None}, "1 missing"),
        ({"netfcaud.9.bias": torch.zeros(1)}, "1 unknown"),
        ({"netfcaud.0.bias": torch.zeros(3)}, "1 of another shape"),
    ):
        wrong = {name: value for name, value in {**tensors, **change}.items() if value is not None}
        with pytest.raises(WeightsError, match=words):
            fill(SyncNet(), wrong, "SyncNet")


def test_distances_and_confidence_by_hand() -> None:
    heard = torch.eye(8)
    seen = torch.cat([torch.zeros(2, 8), heard[:6]])  # pictures repeat the sound of two frames before
    by_shift = distances(seen, heard, max_shift=3)
    assert by_shift.shape == (7,)
    # Moved back by two frames, six of eight pairs are equal, and two nothings meet the zeros beyond the ends.
    assert float(by_shift[1]) == pytest.approx(0, abs=1e-4)
    # Unmoved, two pictures of nothing are 1 from a unit, six pairs of units are sqrt 2 apart.
    assert float(by_shift[3]) == pytest.approx((2 + 6 * 2**0.5) / 8, abs=1e-4)
    distance, confidence, late = lse(by_shift)
    assert late == -2
    assert distance == pytest.approx(0, abs=1e-4)
    assert confidence == pytest.approx(float(by_shift.median()), abs=1e-4)


def test_a_late_sound_has_a_positive_offset() -> None:
    features = torch.nn.functional.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    late = torch.cat([torch.zeros(3, 16), features[:-3]])
    assert lse(distances(features, late))[2] == 3


def test_syncnet_judges_a_clip(syncnet: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3)).astype(np.uint8)
    judge = SyncNetJudge(str(syncnet))
    clip = Footage(frames, 25.0, sound()[: 8 * 640])
    values = judge.score(clip, Reference(), None)
    assert values == judge.score(clip, Reference(), None)
    faces = face_crops(frames, None)
    expected = lse(distances(*embedded(judge.network, faces, clip.audible)))
    assert values == {"distance": expected[0], "confidence": expected[1], "offset": expected[2] / 25}
    assert len(judge.record.weights) == 64
    assert "network" not in pickle.loads(pickle.dumps(judge)).__dict__  # noqa: S301 - made on this line
    with pytest.raises(InputError, match="too few"):
        judge.score(Footage(frames[:5], 25.0, sound()), Reference(), None)


def test_without_a_moving_mouth_there_is_no_verdict(syncnet: Path) -> None:
    rng = np.random.default_rng(0)
    judge, samples = SyncNetJudge(str(syncnet)), sound()[: 10 * 640]
    face = rng.integers(30, 220, (1, 64, 64, 3))
    black, still = np.zeros((10, 64, 64, 3), int), np.repeat(face, 10, axis=0)
    flicker = black + 10 * np.arange(10)[:, None, None, None]
    coded = still + rng.integers(-2, 3, still.shape)  # as a codec leaves a picture that stands still
    late = np.concatenate([still, rng.integers(0, 255, still.shape)])  # moves when the sound is over
    for frames, reason in (
        (black, "of one colour"),
        (flicker, "of one colour"),
        (still, "stands still"),
        (coded, "stands still"),
        (late, "stands still"),
    ):
        with pytest.raises(InputError, match=f"{reason}.*no moving mouth"):
            judge.score(Footage(frames.astype(np.uint8), 25.0, samples), Reference(), None)
    mouth = coded.copy()
    mouth[::2, 40:44, 28:36] = 0  # of 4 x 8 pixels
    refuse_still(face_crops(mouth.astype(np.uint8), None))


def test_faces_are_cropped_and_brought_to_25_frames() -> None:
    frames = np.zeros((50, 40, 60, 3), np.uint8)
    frames[:, 10:30, 20:40] = (10, 20, 30)
    assert at_rate(frames, 50.0).shape[0] == 25
    assert at_rate(frames[:24], 24.0).shape[0] == 25
    crop = face_crops(frames[:1], (20, 10, 20, 20))
    assert crop.shape == (1, 3, 224, 224)
    # Half a side is 10, so 28 pixels are shown and the middle of the face lies at 10 of 28 from the top.
    assert crop[0, :, 80, 112].tolist() == pytest.approx([30, 20, 10])
    with pytest.raises(InputError, match="does not lie in"):
        face_crops(frames, (50, 10, 20, 20))


def test_cepstra_are_those_of_python_speech_features() -> None:
    """Values of python_speech_features 0.6 for a tone of 440 Hz."""
    tone = np.round(8000 * np.sin(2 * np.pi * 440 * np.arange(1600) / 16000))
    first = [19.061229, 18.804772, 1.710802, -14.175966, -27.207871, -33.516403, -29.676851]
    last = [18.828552, 22.154972, 5.73024, -10.05671, -22.979953, -29.209126, -25.409895]
    found = mfcc(tone)
    assert found.shape == (9, 13)
    assert found[0, :7] == pytest.approx(first, abs=1e-4)
    assert found[8, :7] == pytest.approx(last, abs=1e-4)
    assert np.isfinite(mfcc(np.zeros(1600))).all()
