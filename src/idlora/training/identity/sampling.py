# SPDX-License-Identifier: Apache-2.0
"""Which samples a step sees: a function of the seed and the step alone, so that a resumed run needs no position."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from idlora.training.latents.store import LatentStore, Row

Bucket = tuple[tuple[int, int, int], float]


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

    samples: tuple[tuple[LatentStore, Row], ...]
    size: int
    seed: int

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
            found.setdefault((row.grid, row.frame_rate), []).append(index)
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


def keyed_seed(*parts: object) -> int:
    """A seed below 2^63 from any parts, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
