# SPDX-License-Identifier: Apache-2.0
"""From when on two voices are one speaker, chosen from the distances alone.

Nearly all pairs of voices are strangers. How many of them lie within a distance grows as a power of it, as the number
of points in a ball does; continued downwards this tells how many strangers are expected nearer than any distance. It
errs on the safe side: nearby, voices differ in more directions than from afar, and there are fewer strangers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COHORT = 1000
"""Voices whose distances to one another the law is learnt from, at the most."""

_NEAR, _FAR = 0.05, 0.2  # shares of the pairs between whose distances the power is read
_LEAST = 30  # pairs; of fewer nothing can be read
_MISSED = 0.02  # of the copies that may look less alike than the lower bar
_MOST_DOUBT = 1.0  # strangers expected at the lower bar, at the most
_TINY = 1e-300


@dataclass(frozen=True)
class Law:
    """How many strangers a voice has within a distance: others x share x (distance / near) ^ power.

    Attributes:
        near: distance within which `share` of the pairs of strangers lie; 0 where there are too few to tell.
        share: of them.
        power: about in how many directions voices differ.
        others: how many other voices there are.
    """

    near: float
    share: float
    power: float
    others: int

    @classmethod
    def of(cls, distances: Floats, others: int) -> Law:
        """Of the distances (P,) of pairs of two recordings."""
        if len(distances) < _LEAST:
            return cls(0.0, 1.0, 1.0, others)
        near, far = np.maximum(np.quantile(distances, (_NEAR, _FAR)), 1e-9)
        return cls(float(near), _NEAR, float(np.log(_FAR / _NEAR) / max(np.log(far / near), 1e-9)), others)

    def strangers(self, distances: Floats) -> Floats:
        """How many strangers are expected nearer to a voice than distances (L,), at most all."""
        if not self.near:
            return np.full(distances.shape, float(self.others))
        told = self.share * (np.maximum(distances, 0) / self.near) ** self.power
        return np.asarray(np.clip(self.others * told, _TINY, max(self.others, 1)))


@dataclass(frozen=True)
class Bars:
    """Numbers of expected strangers up to which two voices are linked, and up to which they may be one speaker.

    Attributes:
        linked: the share of wrong links that it lets one expect is small enough.
        doubtful: nearly all copies of a voice in other rooms stay below it against the voice itself.
        foretold: share of wrong links among those that are linked.
    """

    linked: float
    doubtful: float
    foretold: float


def bars_of(links: Floats, copies: Floats, voices: int, share: float) -> Bars:
    """Bars for the expected strangers (L,) of mutual links and (V,) of voices against their own copies.

    With a bar of e strangers a voice, V voices have V e / 2 wrong links, a share of the L(e) that are found. The
    highest bar is taken at which it is small enough.
    """
    order = np.sort(links)
    shares = voices * order / 2 / np.arange(1, len(order) + 1)
    good = np.flatnonzero(shares <= share)
    linked, foretold = (float(order[good[-1]]), float(shares[good[-1]])) if len(good) else (0.0, 0.0)
    told = float(np.quantile(copies, 1 - _MISSED)) if len(copies) else _MOST_DOUBT
    return Bars(linked, max(linked, min(told, _MOST_DOUBT)), foretold)
