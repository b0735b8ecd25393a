# SPDX-License-Identifier: Apache-2.0
"""From which score on two voices are one speaker, chosen from the scores alone.

How often two strangers reach a score is told by decoys: voices mirrored in half of their directions, which are as
likely as any voice and nobody's. Decoys' scores against true voices are scores of strangers, in any number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idlora.mining.likeness import Likeness

Floats = NDArray[np.float64]

_MIRRORS = 24  # sets of decoys
_SAMPLE = 1200  # voices that are scored against all decoys
_MISSED = 0.02  # of the copies' scores that may lie below the lower threshold
_GRID = 400


@dataclass(frozen=True)
class Thresholds:
    """Scores from which on two voices are linked, and from which on they may be one speaker.

    Attributes:
        linked: the share of strangers among pairs above is small enough.
        doubtful: nearly all copies of a voice score above it against the voice itself.
        foretold: share of wrong links among pairs above `linked`, as the decoys tell it.
    """

    linked: float
    doubtful: float
    foretold: float


def chosen(likeness: Likeness, voices: Floats, copies: Floats, apart: NDArray[np.int64], share: float) -> Thresholds:
    """Thresholds for voices (N, D), given degraded copies of them (N, D) and the files (N,) that they are from.

    Args:
        likeness: what was learnt.
        voices: vectors.
        copies: as many, of the same voices.
        apart: voices of one file are not counted against each other.
        share: of strangers among linked pairs that is tolerated.
    """
    rng = np.random.default_rng(1)
    sample = np.sort(rng.choice(len(voices), min(len(voices), _SAMPLE), replace=False))
    true = _true_scores(likeness, voices, sample, apart)
    strangers = _decoy_scores(likeness, voices[sample], rng)
    linked, foretold = _from_shares(true, strangers, share)
    first, second = likeness.keys(voices)[0], likeness.keys(copies)[1]
    own = np.einsum("nd,nd->n", first, second)
    doubtful = float(np.quantile(own, _MISSED)) if len(own) else linked
    return Thresholds(linked, min(linked, doubtful), foretold)


def _true_scores(likeness: Likeness, voices: Floats, sample: NDArray[np.int64], apart: NDArray[np.int64]) -> Floats:
    """Scores of every two voices of a sample that are from different files."""
    first, second = likeness.keys(voices[sample])
    rows, columns = np.triu_indices(len(sample), 1)
    other = apart[sample][rows] != apart[sample][columns]
    return np.sort((first @ second.T)[rows[other], columns[other]])


def _decoy_scores(likeness: Likeness, voices: Floats, rng: np.random.Generator) -> Floats:
    """Scores of voices against mirrored ones, `_MIRRORS` times as many as there are true pairs."""
    seen = likeness.seen(voices)
    found = []
    for _ in range(_MIRRORS):
        signs = np.where(rng.permutation(seen.shape[1]) % 2 == 0, 1.0, -1.0)
        first = likeness.keys_seen(seen)[0]
        second = likeness.keys_seen(seen * signs)[1]
        rows, columns = np.triu_indices(len(seen), 1)
        found.append((first @ second.T)[rows, columns])
    return np.sort(np.concatenate(found))


def _from_shares(true: Floats, strangers: Floats, share: float) -> tuple[float, float]:
    """The lowest score above which strangers are few enough, and their share there; the highest where none is."""
    if not len(true) or not len(strangers):
        return np.inf, 0.0
    scores = np.linspace(max(np.median(true), 0.0), true[-1], _GRID)
    above = len(true) - np.searchsorted(true, scores)
    expected = (len(strangers) - np.searchsorted(strangers, scores)) * len(true) / len(strangers)
    shares = expected / np.maximum(above, 1)
    good = shares <= share
    if not good.any():
        return float(scores[-1]), float(shares[-1])
    # The lowest from which on all are good: a chance low in the middle of the strangers is none.
    place = int(np.flatnonzero(~good)[-1] + 1) if (~good).any() else 0
    place = min(place, len(scores) - 1)
    return float(scores[place]), float(shares[place])
