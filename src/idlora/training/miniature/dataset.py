# SPDX-License-Identifier: Apache-2.0
"""Pools of world clips on disk, rendered once and read by memory map; an interrupted render continues."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idlora.data.world.clip import render_picture, render_sound
from idlora.data.world.speakers import Split, clip
from idlora.files import replacing
from idlora.networks.mel import LogMel

logger = logging.getLogger(__name__)

CHUNK = 200
Rows = NDArray[Any]


def waveform(split: Split, index: int) -> NDArray[np.float32]:
    """Sound (N,) of a world clip."""
    return render_sound(clip(split, index)).samples.astype(np.float32)


def log_mel(samples: Tensor) -> Tensor:
    """Log-mel (B, 2, T, 64) of mono samples (B, N): both channels alike, as the pipeline feeds a mono voice."""
    return LogMel()(samples[:, None]).expand(-1, 2, -1, -1)


def frames(split: Split, index: int) -> NDArray[np.uint8]:
    """Picture (F, size, size, 3) of a world clip."""
    spec = clip(split, index)
    return render_picture(spec, render_sound(spec))


class Pool:
    """`count` rows made by `make(index)`, kept as chunks `<name>-<start>.npy` in a folder."""

    def __init__(self, folder: Path, name: str, count: int, make: Callable[[int], Rows]) -> None:
        self.folder, self.name, self.count, self.make = folder, name, count, make
        self._chunks: list[Rows] = []

    def path(self, start: int) -> Path:
        """File of the chunk that begins at row `start`."""
        return self.folder / f"{self.name}-{start:06d}.npy"

    def render(self) -> Pool:
        """Make the chunks that are missing and open all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, self.count, CHUNK):
            if not self.path(start).exists():
                rows = np.stack([self.make(index) for index in range(start, min(start + CHUNK, self.count))])
                with replacing(self.path(start)) as path:
                    np.save(path, rows)
                logger.info("%s: %d of %d", self.name, min(start + CHUNK, self.count), self.count)
        self._chunks = [np.load(self.path(start), mmap_mode="r") for start in range(0, self.count, CHUNK)]
        return self

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Rows:
        return self._chunks[index // CHUNK][index % CHUNK]

    def batch(self, indices: NDArray[np.int64]) -> Tensor:
        """Rows as one tensor (B, ...), float16 read as float32."""
        stacked = torch.from_numpy(np.stack([self[int(index)] for index in indices]))
        return stacked.float() if stacked.is_floating_point() else stacked


def mel_pool(folder: Path, split: Split, count: int) -> Pool:
    """Log-mels (T, 64) float16 of clips."""

    def make(index: int) -> Rows:
        mel = log_mel(torch.from_numpy(waveform(split, index))[None])[0, 0]
        return mel.numpy().astype(np.float16)

    return Pool(folder, f"mel-{split}", count, make).render()


def frame_pool(folder: Path, split: Split, count: int) -> Pool:
    """Frames (F, size, size, 3) uint8 of clips."""
    return Pool(folder, f"frames-{split}", count, lambda index: frames(split, index)).render()
