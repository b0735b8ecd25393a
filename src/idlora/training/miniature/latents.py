# SPDX-License-Identifier: Apache-2.0
"""The world through the trained codecs: pools of tokens that the base and the adapter are trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idlora.data.world.captions import caption
from idlora.data.world.clip import FRAME_RATE, NUM_FRAMES, ClipSpec, draw_words, render_picture, render_sound
from idlora.data.world.face import Face
from idlora.data.world.look import PLACES
from idlora.data.world.speakers import NUM_SPEAKERS, Split, clip, speaker
from idlora.data.world.voice import SAMPLE_RATE, Voice
from idlora.networks.codecs import AudioCodec, VideoCodec
from idlora.networks.text import PromptEncoder
from idlora.training.miniature.dataset import Pool

NUM_CAPTIONS = 4
REFERENCE_SECONDS = 5.0
REFERENCES_A_SPEAKER = 6


@dataclass(frozen=True)
class LatentPools:
    """What training reads; rows are clips but for the reference. Parts that a stage does not read may be absent."""

    text: Pool  # (NUM_CAPTIONS, S) int16 token ids, -1 = padding
    audio: Pool  # (T_audio, C) float16
    video: Pool | None = None  # (T_video, C) float16
    reference: Pool | None = None  # (T_reference, C) float16; row = speaker * REFERENCES_A_SPEAKER + take


@dataclass(frozen=True)
class Encoder:
    """Turns world clips of a split into pools in a folder; what is there already is not made again."""

    folder: Path
    split: Split
    prompts: PromptEncoder
    audio: AudioCodec
    video: VideoCodec | None = None

    def pools(self, clips: int, with_reference: bool) -> LatentPools:
        """Pools of `clips` clips; the video's if there is a video codec."""
        return LatentPools(
            text=self._pool("text", clips, lambda index: _captions(self.prompts, clip(self.split, index), index)),
            audio=self._pool("audio", clips, lambda index: _audio(self.audio, clip(self.split, index))),
            video=None if self.video is None else self._video_pool(clips, self.video),
            reference=self._reference_pool() if with_reference else None,
        )

    def _pool(self, name: str, count: int, make: Callable[[int], NDArray[Any]]) -> Pool:
        return Pool(self.folder, f"{name}-{self.split}", count, make).render()

    def _video_pool(self, clips: int, codec: VideoCodec) -> Pool:
        return self._pool("video", clips, lambda index: _video(codec, clip(self.split, index)))

    def _reference_pool(self) -> Pool:
        takes = NUM_SPEAKERS[self.split] * REFERENCES_A_SPEAKER
        return self._pool("reference", takes, lambda index: _reference(self.audio, self.split, index))


def reference_spec(voice: Voice, num_words: int, seed: int, avoid: tuple[str, ...] = ()) -> ClipSpec:
    """A recording of `voice` with other words, calm, in a random place: what a user would hand in as the voice."""
    rng = np.random.default_rng([seed, 5])
    words: tuple[str, ...] = ()
    while len(words) < num_words:
        words += draw_words(rng, avoid=avoid)
    place = str(rng.choice(PLACES))
    return ClipSpec(Face.draw(rng), voice, words[:num_words], "calm", place, "none", 0.0, int(rng.integers(2**31)))


def reference_sound(voice: Voice, seconds: float, seed: int, avoid: tuple[str, ...] = ()) -> NDArray[np.float32]:
    """Samples (N,) at 16 kHz of a reference of the given length; a word takes 0.68 s."""
    spec = reference_spec(voice, max(1, int((seconds - 0.1) / 0.68)), seed, avoid)
    return render_sound(spec, round(seconds * SAMPLE_RATE)).samples.astype(np.float32)


def _captions(prompts: PromptEncoder, spec: ClipSpec, seed: int) -> NDArray[Any]:
    rng = np.random.default_rng([seed, 11])
    texts = [caption(spec), *(caption(spec, rng) for _ in range(NUM_CAPTIONS - 1))]
    ids, mask = prompts.tokens(texts)
    return (ids * mask - (1 - mask)).numpy().astype(np.int16)  # -1 = padding


def _audio(codec: AudioCodec, spec: ClipSpec) -> NDArray[Any]:
    samples = torch.from_numpy(render_sound(spec).samples.astype(np.float32))
    tokens = codec.encode(samples[None, None])[0, : codec.num_tokens(NUM_FRAMES / FRAME_RATE)]
    return tokens.numpy().astype(np.float16)


def _video(codec: VideoCodec, spec: ClipSpec) -> NDArray[Any]:
    frames = torch.from_numpy(render_picture(spec, render_sound(spec)))
    return codec.encode(frames[None])[0].numpy().astype(np.float16)


def _reference(codec: AudioCodec, split: Split, index: int) -> NDArray[Any]:
    voice = speaker(split, index // REFERENCES_A_SPEAKER)
    samples = torch.from_numpy(reference_sound(voice, REFERENCE_SECONDS, seed=900_001 + index))
    return codec.encode(samples[None, None])[0].numpy().astype(np.float16)


def ids_and_mask(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids and mask (B, S) of stored rows, in which -1 is padding."""
    mask = (rows >= 0).long()
    return rows.long().clamp(min=0), mask
