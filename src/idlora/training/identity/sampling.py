# SPDX-License-Identifier: Apache-2.0
"""Which samples a step sees: a function of the seed and the step alone, so that a resumed run needs no position."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from idlora.training.latents.store import LatentStore, Row

Bucket = tuple[tuple[int, int, int], float]
Sample = tuple[LatentStore, Row]


def bucket_of(row: Row) -> Bucket:
    """What samples of one batch have in common: grid and frame rate."""
    return row.grid, row.frame_rate


class Visit(NamedTuple):
    """One sample in one step, and how often it was seen before."""

    store: LatentStore
    row: Row
    number: int


@dataclass(frozen=True)
class Sampler:
    """Batches of samples whose videos have one size.

    Each size is a bucket whose samples come in a new random order, round after round, without a gap at the end of a
    round; the bucket of a step is drawn in proportion to its samples.

    Args:
        samples: all of them.
        size: samples a step, over all devices and accumulated batches.
        seed: of the order.
    """

    samples: tuple[Sample, ...]
    size: int
    seed: int

    @cached_property
    def data(self) -> Mapping[Path, tuple[int, str]]:
        """Of each folder how many samples it has, and a digest of their ids, in order, and of what they were made from.

        Order and draws follow from all of them, so that a run cannot go on with others.
        """
        found: dict[Path, list[Row]] = {}
        for store, row in self.samples:
            found.setdefault(store.folder, []).append(row)
        return {folder: (len(rows), _digest(rows)) for folder, rows in found.items()}

    def changed(self, before: Sequence[tuple[int, str]]) -> list[str]:
        """The folders whose samples are others than before, in words; `before` is of `data`, and empty if unknown."""
        now = self.data.items()
        if before and len(before) != len(now):
            return [f"{folder} ({count} samples)" for folder, (count, _) in now]
        return [
            f"{folder} ({was} samples, now {count})" if was != count else f"{folder} ({count} samples, not the same)"
            for (folder, (count, digest)), (was, known) in zip(now, before, strict=False)
            if digest != known
        ]

    def visits(self, step: int) -> list[Visit]:
        """The samples of a step."""
        buckets = self._buckets()
        chosen = self._choices(step + 1, len(buckets))
        mine = int(chosen[step])
        start = int((chosen[:step] == mine).sum()) * self.size
        return [self._visit(buckets[mine], mine, place) for place in range(start, start + self.size)]

    def _visit(self, members: Sequence[int], bucket: int, place: int) -> Visit:
        number, index = divmod(place, len(members))
        order = _order(self.seed, bucket, number, len(members))
        store, row = self.samples[members[order[index]]]
        return Visit(store, row, number)

    def _buckets(self) -> list[list[int]]:
        found: dict[Bucket, list[int]] = {}
        for index, (_, row) in enumerate(self.samples):
            found.setdefault(bucket_of(row), []).append(index)
        return [found[key] for key in sorted(found)]

    def _choices(self, steps: int, buckets: int) -> NDArray[np.int64]:
        """Bucket of every step so far; of a longer run, these are the first."""
        if buckets == 1:
            return np.zeros(steps, np.int64)
        shares = np.array([len(members) for members in self._buckets()]) / len(self.samples)
        draws = np.random.default_rng([self.seed, 1]).random(steps)
        found: NDArray[np.int64] = np.searchsorted(np.cumsum(shares)[:-1], draws, side="right")
        return found


@lru_cache(maxsize=64)
def _order(seed: int, bucket: int, number: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 2, bucket, number]).permutation(count)


def _digest(rows: Sequence[Row]) -> str:
    return hashlib.sha256("".join(f"{row.id} {row.key}\n" for row in rows).encode()).hexdigest()


def keyed_seed(*parts: object) -> int:
    """A seed below 2^63 from any parts, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
