# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours with FAISS: exact up to a size, by cells beyond it; and which of them are mutual."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idlora.errors import SettingsError

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]
Truths = NDArray[np.bool_]

EXACT = 100_000
"""Vectors up to which every one is compared with every one; beyond, with those of the nearest cells."""

_SHARE_OF_CELLS = 1 / 64  # that are looked into
_SAMPLES_A_CELL = 64  # vectors that the cells are learnt from
_BATCH = 8192
_SEED = 1


def nearest(queries: Floats, keys: Floats, count: int) -> tuple[Floats, Classes]:
    """Distances and places (Q, count) of the keys (N, D) that are nearest to each query (Q, D), nearest first.

    Where there are fewer keys the rest is inf and -1.

    Raises:
        SettingsError: FAISS is not installed.
    """
    return searched(index_of(keys), queries, count)


def searched(index: Any, queries: Floats, count: int) -> tuple[Floats, Classes]:
    """Distances and places (Q, count) of what is nearest to each query (Q, D) in an index, as `nearest` has them."""
    found = [index.search(_single(queries[start : start + _BATCH]), count) for start in range(0, len(queries), _BATCH)]
    squares = np.concatenate([part for part, _ in found]) if found else np.zeros((0, count))
    places = np.concatenate([part for _, part in found]) if found else np.zeros((0, count), np.int64)
    distances = np.sqrt(np.maximum(np.asarray(squares, np.float64), 0))
    return np.where(places < 0, np.inf, distances), np.asarray(places, np.int64)


def index_of(keys: Floats, exact: int = EXACT) -> Any:
    """An index of FAISS over keys (N, D): flat, or inverted lists of about 4 sqrt(N) cells.

    Raises:
        SettingsError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise SettingsError("finding neighbours needs FAISS: pip install 'idlora[mining]'") from error
    if len(keys) <= exact:
        flat: Any = faiss.IndexFlatL2(keys.shape[1])
        flat.add(_single(keys))
        return flat
    cells = int(4 * np.sqrt(len(keys)))
    index: Any = faiss.index_factory(keys.shape[1], f"IVF{cells},Flat", faiss.METRIC_L2)
    index.cp.seed, index.cp.max_points_per_centroid = _SEED, _SAMPLES_A_CELL
    sample = np.random.default_rng(_SEED).choice(len(keys), min(len(keys), cells * _SAMPLES_A_CELL), replace=False)
    index.train(_single(keys[np.sort(sample)]))
    for start in range(0, len(keys), _BATCH * 8):
        index.add(_single(keys[start : start + _BATCH * 8]))
    index.nprobe = max(8, int(cells * _SHARE_OF_CELLS))
    return index


def _single(vectors: Floats) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors, np.float32)


def of_others(distances: Floats, places: Classes, asked: Classes, apart: Classes) -> tuple[Floats, Classes]:
    """Neighbours (Q, K) of the voices `asked` (Q,) without themselves and others of their classes, nearest first.

    Args:
        distances: as `searched` has them.
        places: likewise.
        asked: numbers of the voices whose neighbours they are.
        apart: class (V,) of every voice, as its recording.
    """
    own = (places < 0) | (apart[np.maximum(places, 0)] == apart[asked][:, None])
    distances, places = np.where(own, np.inf, distances), np.where(own, -1, places)
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(places, order, axis=1)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Neighbours of every voice.

    Attributes:
        distances: (V, K), nearest first.
        places: numbers (V, K) of the neighbours; -1 where there are no more.
    """

    distances: Floats
    places: Classes

    @cached_property
    def _names(self) -> Classes:
        """A number (V, K) for each pair, the same for both; -1 where there is none."""
        voices = np.arange(len(self.places))[:, None]
        lower, higher = np.minimum(voices, self.places), np.maximum(voices, self.places)
        return np.asarray(np.where(self.places < 0, -1, lower * len(self.places) + higher), np.int64)

    @cached_property
    def _first(self) -> tuple[Classes, Classes]:
        """The number of each pair once, ascending, and where in the lists it stands first."""
        found, firsts = np.unique(self._names.ravel(), return_index=True)
        told = found >= 0
        return found[told], np.asarray(firsts[told], np.int64)

    @cached_property
    def pairs(self) -> Classes:
        """Each pair (L, 2) of neighbours once, the smaller number first."""
        names, _ = self._first
        return np.stack([names // max(1, len(self.places)), names % max(1, len(self.places))], axis=1)

    @cached_property
    def lengths(self) -> Floats:
        """The distance (L,) of each pair."""
        return np.asarray(self.distances.ravel()[self._first[1]])

    def nearest(self, count: int) -> Truths:
        """Which pairs (L,) are among the `count` nearest of one of both."""
        return np.isin(self._first[0], self._names[:, :count])

    def mutual(self, groups: Classes, count: int) -> Truths:
        """Which pairs (L,) are each among the `count` nearest of the other that are not of its own group (V,)."""
        other = (self.places >= 0) & (groups[np.maximum(self.places, 0)] != groups[:, None])
        nearest_ones = other & (np.cumsum(other, axis=1) <= count)
        voices, ranks = np.nonzero(nearest_ones)
        found, size = self.places[voices, ranks], len(self.places)
        both = np.intersect1d(voices * size + found, found * size + voices)
        return np.isin(self._first[0], both)
