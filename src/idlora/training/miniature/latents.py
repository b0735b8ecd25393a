# SPDX-License-Identifier: Apache-2.0
"""The world through the trained codecs: pools of tokens that the base is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idlora.core.positions import audio_positions
from idlora.data.world.captions import caption
from idlora.data.world.clip import FRAME_RATE, NUM_FRAMES, spoken
from idlora.data.world.speakers import Split, clip
from idlora.networks.codecs import AudioCodec, VideoCodec
from idlora.networks.text import PromptEncoder
from idlora.training.miniature.dataset import Pool, Rows, frames, rendered, waveform

NUM_CAPTIONS = 4
TOKENS_A_SECOND = 25
ENCODE_BATCH = 8


@dataclass(frozen=True)
class LatentPools:
    """What training reads; rows are clips."""

    text: Pool  # (NUM_CAPTIONS, S) int16 token ids, -1 = padding
    audio: Pool  # (T_audio, C) float16
    video: Pool  # (T_video, C) float16
    spoken: Pool  # (T_audio,) int8 ordinals of the words that tokens are part of, 0 = none


@dataclass(frozen=True)
class Encoder:
    """Turns world clips of a split into pools in a folder; what is there already is not made again.

    `workers` processes render; the codecs encode `ENCODE_BATCH` rows at a time on the device they are on.
    """

    folder: Path
    split: Split
    prompts: PromptEncoder
    audio: AudioCodec
    video: VideoCodec
    workers: int = 1

    def pools(self, clips: int) -> LatentPools:
        """Pools of `clips` clips."""
        return LatentPools(
            text=caption_pool(self.folder, self.split, self.prompts, clips),
            audio=self._pool(
                "audio", clips, lambda indices: self._tokens(partial(waveform, self.split), indices)[:, :-1]
            ),
            video=self._pool("video", clips, self._video_tokens),
            spoken=self._pool("spoken", clips, lambda indices: rendered(self._spoken, indices)),
        )

    def _pool(self, name: str, count: int, make: Callable[[Sequence[int]], Rows]) -> Pool:
        return Pool(self.folder, f"{name}-{self.split}", count, make).render()

    def _spoken(self, index: int) -> Rows:
        spans = spoken(clip(self.split, index))
        bounds = audio_positions(round(NUM_FRAMES / FRAME_RATE * TOKENS_A_SECOND))[0, 0]  # (T, 2)
        return spoken_ordinals(bounds.mean(1).numpy(), spans)

    def _tokens(self, make: Callable[[int], Rows], indices: Sequence[int]) -> Rows:
        samples = torch.from_numpy(rendered(make, indices, self.workers))[:, None]
        return _joined(self.audio.encode(part) for part in samples.split(ENCODE_BATCH))

    def _video_tokens(self, indices: Sequence[int]) -> Rows:
        pictures = torch.from_numpy(rendered(partial(frames, self.split), indices, self.workers))
        return _joined(self.video.encode(part) for part in pictures.split(ENCODE_BATCH))


def spoken_ordinals(times: NDArray[np.float32], spans: Sequence[tuple[float, float]]) -> Rows:
    """Ordinals int8 (T,) of the words, said at `spans`, that times in seconds (T,) fall into, from 1; 0 = none."""
    ordinals = np.zeros(len(times), np.int8)
    for ordinal, (start, end) in enumerate(spans, 1):
        ordinals[(times >= start) & (times < end)] = ordinal
    return ordinals


def caption_pool(folder: Path, split: Split, prompts: PromptEncoder, clips: int) -> Pool:
    """Token ids (NUM_CAPTIONS, S) int16 of each clip, -1 = padding: the plain caption, then varied ones."""

    def ids(index: int) -> Rows:
        rng, spec = np.random.default_rng([index, 11]), clip(split, index)
        ids, mask = prompts.tokens([caption(spec), *(caption(spec, rng) for _ in range(NUM_CAPTIONS - 1))])
        row: Rows = (ids * mask - (1 - mask)).numpy().astype(np.int16)
        return row

    return Pool(folder, f"text-{split}", clips, lambda indices: rendered(ids, indices)).render()


def coded_mel_pool(folder: Path, split: Split, waves: Pool, audio: AudioCodec) -> Pool:
    """Log-mels (2, T, bins) float16 of clips, there and back through the audio autoencoder."""

    def make(indices: Sequence[int]) -> Rows:
        samples = waves.batch(np.asarray(indices))[:, None]
        return _joined(audio.decode(audio.encode(part)) for part in samples.split(ENCODE_BATCH))

    return Pool(folder, f"coded-mel-{split}", len(waves), make).render()


def _joined(parts: Iterable[Tensor]) -> Rows:
    rows: Rows = torch.cat(list(parts)).cpu().numpy().astype(np.float16)
    return rows


def ids_and_mask(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids and mask (B, S) of stored rows, in which -1 is padding."""
    mask = (rows >= 0).long()
    return rows.long().clamp(min=0), mask
