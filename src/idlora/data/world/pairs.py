# SPDX-License-Identifier: Apache-2.0
"""Training pairs of the world: a clip, another recording of who speaks in it, and a caption in varied words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from idlora.data.manifest import Pair
from idlora.data.media import write_mp4, write_wav
from idlora.data.processes import counted
from idlora.data.world.captions import caption
from idlora.data.world.clip import FRAME_RATE, ClipSpec, draw_reference, render_picture, render_sound
from idlora.data.world.speakers import NUM_SPEAKERS, clip, speaker
from idlora.data.world.voice import SAMPLE_RATE

REFERENCE_SECONDS = 5.0
_SEED = 700_003
PairSplit = Literal["train", "validation", "test"]
PAIR_SPLITS: tuple[PairSplit, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class WorldPair:
    """Pair number `index` of a split: of its clip the picture and sound, and five calm seconds of the same speaker."""

    split: PairSplit
    index: int

    def pair(self, folder: Path) -> Pair:
        """As a line of a manifest in a folder."""
        spec, (name, who) = clip(self.split, self.index), self._names()
        _, words = self._drawn()
        return Pair(
            id=name,
            video=folder / "clips" / f"{name}.mp4",
            reference=folder / "references" / f"{name}.wav",
            caption=caption(spec, words),
            speaker=who,
            split=self.split,
        )

    def render(self, folder: Path) -> None:
        """Write the files that are not there yet (OutputError if one cannot be)."""
        pair = self.pair(folder)
        if not pair.video.exists():
            write_clip(pair.video, clip(self.split, self.index))
        if not pair.reference.exists():
            spec, _ = self._drawn()
            sound = render_sound(spec, round(REFERENCE_SECONDS * SAMPLE_RATE))
            write_wav(pair.reference, sound.samples.astype(np.float32)[None], SAMPLE_RATE)

    def _names(self) -> tuple[str, str]:
        who = self.index % NUM_SPEAKERS[self.split]
        return f"{self.split}-{self.index:06d}", f"{self.split}-{who:04d}"

    def _drawn(self) -> tuple[ClipSpec, np.random.Generator]:
        """The reference, and what draws the caption's words after it."""
        rng = np.random.default_rng([_SEED, PAIR_SPLITS.index(self.split), self.index])
        voice = speaker(self.split, self.index % NUM_SPEAKERS[self.split])
        return draw_reference(rng, voice, REFERENCE_SECONDS), rng


def write_clip(path: Path, spec: ClipSpec) -> None:
    """Render a clip and write it as MP4 (OutputError if that fails)."""
    sound = render_sound(spec)
    samples = sound.samples.astype(np.float32)[None]
    write_mp4(path, render_picture(spec, sound), FRAME_RATE, samples, SAMPLE_RATE)


def render_pairs(pairs: list[WorldPair], folder: Path, workers: int = 1) -> Iterator[int]:
    """Write the files of pairs below a folder; yields how many are there after each.

    Args:
        pairs: which.
        folder: it must be there, with `clips` and `references` in it.
        workers: processes; 1 = this one.

    Raises:
        OutputError: a file cannot be written.
    """
    return counted(partial(WorldPair.render, folder=folder), pairs, workers)
