# SPDX-License-Identifier: Apache-2.0
"""Pools of world clips on disk, rendered once and read by memory map; an interrupted render continues."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
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


def frames(split: Split, index: int) -> NDArray[np.uint8]:
    """Picture (F, size, size, 3) of a world clip."""
    spec = clip(split, index)
    return render_picture(spec, render_sound(spec))


@cache
def _processes(workers: int) -> Executor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def rendered(make: Callable[[int], Rows], indices: Sequence[int], workers: int = 1) -> Rows:
    """Stack `make(index)` of every index, over several processes if asked; `make` must then be picklable."""
    if workers <= 1:
        return np.stack([make(index) for index in indices])
    return np.stack(list(_processes(workers).map(make, indices, chunksize=4)))


class Pool:
    """`count` rows, made a chunk at a time by `make(indices)` and kept as `<name>-<start>.npy` in a folder."""

    def __init__(self, folder: Path, name: str, count: int, make: Callable[[Sequence[int]], Rows]) -> None:
        self.folder, self.name, self.count, self.make = folder, name, count, make
        self._chunks: list[Rows] = []

    def path(self, start: int) -> Path:
        """File of the chunk that begins at row `start`."""
        return self.folder / f"{self.name}-{start:06d}.npy"

    def render(self) -> Pool:
        """Make the chunks that are missing and open all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        starts = range(0, self.count, CHUNK)
        for start in starts:
            if not self.path(start).exists():
                self._make_chunk(start)
        self._chunks = [np.load(self.path(start), mmap_mode="r") for start in starts]
        return self

    def _make_chunk(self, start: int) -> None:
        end = min(start + CHUNK, self.count)
        with replacing(self.path(start)) as path:
            np.save(path, self.make(range(start, end)))
        logger.info("%s: %d of %d", self.name, end, self.count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Rows:
        row: Rows = self._chunks[index // CHUNK][index % CHUNK]
        return row

    def batch(self, indices: NDArray[np.int64]) -> Tensor:
        """Rows as one tensor (B, ...), float16 read as float32."""
        stacked = torch.from_numpy(np.stack([self[int(index)] for index in indices]))
        return stacked.float() if stacked.is_floating_point() else stacked


def mel_pool(folder: Path, split: Split, count: int, workers: int = 1) -> Pool:
    """Log-mels (T, 64) float16 of clips."""

    def make(indices: Sequence[int]) -> Rows:
        samples = torch.from_numpy(rendered(partial(waveform, split), indices, workers))
        rows: Rows = LogMel()(samples[:, None])[:, 0].numpy().astype(np.float16)
        return rows

    return Pool(folder, f"mel-{split}", count, make).render()


def wave_pool(folder: Path, split: Split, count: int, workers: int = 1) -> Pool:
    """Samples (N,) float16 of clips at 16 kHz."""
    make = partial(waveform, split)
    return Pool(
        folder, f"waves-{split}", count, lambda indices: rendered(make, indices, workers).astype(np.float16)
    ).render()


def frame_pool(folder: Path, split: Split, count: int, workers: int = 1) -> Pool:
    """Frames (F, size, size, 3) uint8 of clips."""
    make = partial(frames, split)
    return Pool(folder, f"frames-{split}", count, lambda indices: rendered(make, indices, workers)).render()
