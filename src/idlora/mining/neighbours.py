# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours with FAISS: exact up to a size, by cells beyond it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from idlora.errors import SettingsError

Floats = NDArray[np.float64]

EXACT = 100_000
"""Vectors up to which every one is compared with every one; beyond, with those of the nearest cells."""

_SHARE_OF_CELLS = 1 / 64  # that are looked into
_SAMPLES_A_CELL = 64  # vectors that the cells are learnt from
_BATCH = 8192
_SEED = 1


def nearest(queries: Floats, keys: Floats, count: int) -> tuple[Floats, NDArray[np.int64]]:
    """Distances and places (Q, count) of the keys (N, D) that are nearest to each query (Q, D), nearest first.

    Where there are fewer keys the rest is inf and -1.

    Raises:
        SettingsError: FAISS is not installed.
    """
    index = index_of(keys)
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
