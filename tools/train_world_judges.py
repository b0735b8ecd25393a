# SPDX-License-Identifier: Apache-2.0
"""Trains the judges of the miniature's world and writes the small file that ships with their held-out accuracy.

Run from the checkout: `python tools/train_world_judges.py`. Sounds of training speakers teach the classifiers, half of
them through the shipped codec; sounds of test speakers examine them. Faces are drawn from seeds of their own.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

import idlora
from idlora.data.world.clip import ClipSpec
from idlora.data.world.face import Face
from idlora.data.world.look import OBJECTS, PLACES, Look, render
from idlora.data.world.places import background
from idlora.data.world.speakers import clip
from idlora.evaluation.classifier import Linear, Ridge, sound_features
from idlora.evaluation.clips import true_sound
from idlora.evaluation.codec_rows import ShippedCodec
from idlora.evaluation.judges.base import Frames
from idlora.evaluation.judges.learnt import write_learnt
from idlora.evaluation.judges.sounds import Floats, at_16_khz
from idlora.evaluation.judges.world_faces import PARAMETERS, edge_features, face_cells, parameters_of
from idlora.evaluation.judges.world_sounds import ASPECTS
from idlora.pipeline import IDLoraPipeline

NUM_CLIPS, NUM_ASKED = 1200, 300
NUM_FACES, NUM_UNSEEN = 2000, 400
TARGET = Path(idlora.__file__).parent / "evaluation" / "judges" / "assets" / "world.safetensors"


def features_of(specs: Sequence[ClipSpec], codec: ShippedCodec | None) -> Floats:
    rows = []
    for number, spec in enumerate(specs):
        sound = true_sound(spec)
        rows.append(sound_features(sound if codec is None else at_16_khz(*codec.sound(sound))))
        if number % 100 == 99:
            print(number + 1, file=sys.stderr)
    return np.stack(rows)


def train_sounds(codec: ShippedCodec) -> tuple[dict[str, Linear], dict[str, list[str]], dict[str, float]]:
    learnt = [clip("train", index) for index in range(NUM_CLIPS)]
    asked = [clip("test", index) for index in range(NUM_ASKED)]
    known = np.concatenate([features_of(learnt[::2], None), features_of(learnt[1::2], codec)])
    taught = [*learnt[::2], *learnt[1::2]]
    exams = {"true": features_of(asked, None), "coded": features_of(asked, codec)}
    maps, labels, accuracy = {}, {}, {}
    for aspect in ASPECTS:
        ridge = Ridge.fit(known, [getattr(spec, aspect) for spec in taught])
        maps[aspect], labels[aspect] = ridge.linear, list(ridge.labels)
        truth = [getattr(spec, aspect) for spec in asked]
        for kind, features in exams.items():
            right = np.mean([told == true for told, true in zip(ridge.predict(features), truth, strict=True)])
            accuracy[f"{aspect}, {kind} clips"] = round(float(right), 3)
    return maps, labels, accuracy


def drawn_face(rng: np.random.Generator) -> tuple[Frames, Face]:
    """A random face in a random place, more or less blurred, as a codec leaves it."""
    face = Face.draw(rng)
    look = Look(face, str(rng.choice(PLACES)), str(rng.choice(OBJECTS)), int(rng.integers(2**31)))
    frames = render(look, rng.uniform(0, 1, 3) * (rng.random() < 0.7), rng.uniform(-1, 1, 3))
    return gaussian_filter(frames, (0, *([rng.uniform(0, 1.5)] * 2), 0)), face


def no_face(rng: np.random.Generator, frames: Frames) -> Frames:  # noqa: PLR0911 - a kind each
    """What is no face: empty places, noise, one colour, blots; a face upside down, beside its place, or in pieces."""
    size = frames.shape[1]
    kind = int(rng.integers(7))
    if kind == 0:
        empty = background(str(rng.choice(PLACES)), size, np.zeros(1), rng)
        return (empty.transpose(0, 2, 3, 1) * 255).clip(0, 255).astype(np.uint8)
    if kind == 1:
        return rng.integers(0, 256, (1, size, size, 3)).astype(np.uint8)
    if kind == 2:
        return np.broadcast_to(rng.integers(0, 256, 3).astype(np.uint8), (1, size, size, 3)).copy()
    if kind == 3:
        return frames[:, ::-1]
    if kind == 4:
        return np.roll(frames, tuple(rng.integers(size // 5, 4 * size // 5, 2)), (1, 2))
    if kind == 5:
        blots = gaussian_filter(rng.standard_normal((1, size, size, 3)), (0, *([rng.uniform(2, 20)] * 2), 0))
        return (255 * (blots - blots.min()) / np.ptp(blots)).astype(np.uint8)
    pieces = frames[:1].reshape(8, size // 8, 8, size // 8, 3).swapaxes(1, 2).reshape(64, size // 8, size // 8, 3)
    mixed = pieces[rng.permutation(64)].reshape(8, 8, size // 8, size // 8, 3).swapaxes(1, 2)
    return mixed.reshape(1, size, size, 3)


def drawn(seed: int, count: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Colours and parameters of faces, edges of faces, edges of what is none."""
    rng = np.random.default_rng([900_007, seed])
    colours, parameters, edges, others = [], [], [], []
    for _ in range(count):
        frames, face = drawn_face(rng)
        cells = face_cells(frames)
        colours.append(cells.ravel())
        parameters.append(parameters_of(face))
        edges.append(edge_features(cells))
        others.append(edge_features(face_cells(no_face(rng, frames))))
    return np.stack(colours), np.stack(parameters), np.stack(edges), np.stack(others)


def train_faces() -> tuple[dict[str, Linear], dict[str, Floats], dict[str, object]]:
    known, taught, faces, others = drawn(0, NUM_FACES)
    unseen, truth, new_faces, new_others = drawn(1, NUM_UNSEEN)
    linear = Linear.fit(known, taught, penalty=0.01)
    error = np.mean((linear(unseen) - truth) ** 2, axis=0) / truth.var(axis=0)
    wanted = np.repeat([1.0, -1.0], NUM_FACES)[:, None]
    seen = Linear.fit(np.concatenate([faces, others]), wanted, penalty=0.3)
    right = [float(np.mean(seen(new_faces) > 0)), float(np.mean(seen(new_others) < 0))]
    read = [round(float(max(0.0, 1 - part)), 3) for part in error]
    print(dict(zip(PARAMETERS, read, strict=True)), right, file=sys.stderr)
    arrays = {"faces/centre": taught.mean(0), "faces/spread": taught.std(0)}
    return {"faces": linear, "face seen": seen}, arrays, {"faces_read": read, "faces_told_from_others": right}


def main() -> None:
    faces, arrays, seen = train_faces()
    pipe = IDLoraPipeline.from_pretrained("miniature")
    maps, labels, accuracy = train_sounds(ShippedCodec(pipe.codecs))
    print(accuracy)
    TARGET.parent.mkdir(exist_ok=True)
    write_learnt(TARGET, {**maps, **faces}, arrays, {"labels": labels, "accuracy": accuracy, **seen})
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
