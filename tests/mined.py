# SPDX-License-Identifier: Apache-2.0
"""A small corpus of raw recordings, odd files among them, and how the tests mine it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from idlora.data.media import write_mp4
from idlora.data.world.recordings import TALK, Recording, Shot, write_recording
from idlora.data.world.voice import VOCABULARY
from idlora.mining.run import Mined, mine
from idlora.mining.settings import MiningSettings, settings_of
from idlora.mining.sources import find_sources
from idlora.mining.workshop import Workshop, silent
from signals import Frames, gradient_frames

ODD = ("cut.mp4", "damaged.mp4", "empty.mp4", "mute.mp4", "twin.mp4")
"""Names of the files that cannot be used; `turned.mp4` and `phone.mp4` are odd and can."""


WORDS = (
    ("river", "garden", "coffee"),
    ("music", "happy", "yellow"),
    ("window", "doctor", "sunday"),
    ("morning", "purple", "dragon"),
)


def recordings() -> list[Recording]:
    """Two speakers with two files each, in a quiet room and in a hall; no word is in both files of a speaker."""
    found = []
    for speaker in (0, 3):
        for number, place in enumerate(("quiet room", "hall")):
            seed = 10 * speaker + number
            shot = Shot(TALK, speaker, WORDS[2 * number : 2 * number + 2], "calm", seed, place)
            found.append(Recording(f"{speaker:04d}-{number}", place, (shot,), seed))
    return found


def settings(**groups: dict[str, object]) -> MiningSettings:
    given: dict[str, dict[str, object]] = {
        "faces": {"finder": "world"},
        "clips": {"num_frames": 57},
        "speakers": {"encoder": "speaker-world"},
        "words": {"vocabulary": VOCABULARY},
        "splits": {"validation": 0.0, "test": 0.0},
    }
    return settings_of({**given, **{name: {**given.get(name, {}), **values} for name, values in groups.items()}})


def write_good(folder: Path) -> list[Path]:
    """The good recordings, a folder for each speaker."""
    for name in ("0000", "0003"):
        (folder / name).mkdir(parents=True)
    return [write_recording(recording, folder / recording.name[:4]) for recording in recordings()]


def write_corpus(folder: Path) -> Path:
    """Good recordings, and every odd file that people have; a folder for each speaker."""
    paths = write_good(folder)
    content = paths[0].read_bytes()
    folder = folder / "0000"
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    (folder / "damaged.mp4").write_bytes(content[:2000] + b"\xff" * (len(content) - 2000))
    (folder / "twin.mp4").write_bytes(content)
    write_mp4(folder / "mute.mp4", gradient_frames(75, 96, 96), 25.0)
    rewrite(paths[1], folder / "turned.mp4", rotation=90)
    rewrite(paths[2], folder.parent / "0003" / "phone.mp4", drop=lambda number: number % 7 == 3)
    return folder.parent


def rewrite(source: Path, path: Path, *, rotation: int = 0, drop: Callable[[int], bool] = lambda _: False) -> None:
    """A copy whose picture is stored on its side, or which lacks frames, as phones leave them."""
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "12"})
        audio = container.add_stream_from_template(given.streams.audio[0])
        video.time_base = video.codec_context.time_base = Fraction(1, 12800)
        first = True
        for number, frame in enumerate(given.decode(video=0)):
            if drop(number):
                continue
            pixels: Frames = np.rot90(frame.to_ndarray(format="rgb24"), k=-rotation // 90)
            if first:
                video.height, video.width, video.pix_fmt = pixels.shape[0], pixels.shape[1], "yuv420p"
                if rotation:
                    video.set_display_rotation(rotation)
                first = False
            made = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            made.pts, made.time_base = number * 512, Fraction(1, 12800)
            container.mux(video.encode(made))
        container.mux(video.encode(None))
        given.seek(0)
        for packet in given.demux(audio=0):
            if packet.dts is not None:
                packet.stream = audio
                container.mux(packet)


def mined(
    videos: Path, out: Path, given: MiningSettings | None = None, notice: Callable[[str, int, int], None] = silent
) -> Mined:
    return mine(find_sources(videos, "speakers"), Workshop(out, notice=notice), given or settings())
