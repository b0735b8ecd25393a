# SPDX-License-Identifier: Apache-2.0
"""From when on two voices are one speaker, chosen from the scores alone.

Nearly all other voices are strangers, so a voice's scores with them say how strangers score: their middle and their
upper half, taken for a normal law, tell how many strangers are expected above any score, for each voice in its own
surroundings: many where voices are alike, few where one stands alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Floats = NDArray[np.float64]

COHORT = 1000
"""Other voices with which each one is scored, at the most."""

_UPPER, _UPPER_DEVIATIONS = 0.95, 1.6449  # a quantile, and where the normal law has it
_MISSED = 0.02  # of the copies that may look less alike than the lower bar
_MOST_DOUBT = 2.0  # strangers expected at the lower bar, at the most
_TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Tails:
    """How strangers score with each voice.

    Attributes:
        middle: their median (V,).
        spread: standard deviation (V,) of the normal law that fits their upper half.
        others: how many other voices there are.
    """

    middle: Floats
    spread: Floats
    others: int

    @classmethod
    def of(cls, scores: Iterable[Floats], others: int) -> Tails:
        """Of scores (some voices, C) with a cohort, nan where it is the voice itself or of its recording."""
        laws = []
        for part in scores:
            part[np.isnan(part).all(axis=1)] = 0.0  # nobody else is there
            middle, upper = np.nanquantile(part, (0.5, _UPPER), axis=1)
            laws.append((middle, np.maximum((upper - middle) / _UPPER_DEVIATIONS, 1e-9)))
        middles, spreads = (np.concatenate(values) for values in zip(*laws, strict=True))
        return cls(middles, spreads, others)

    def strangers(self, voices: NDArray[np.int64], scores: Floats) -> Floats:
        """How many strangers are expected above scores (L,) of voices (L,).

        The larger of the law's answer and of (others) exp(-score), which no true likelihood ratio exceeds.
        """
        told = self.others * ndtr(-(scores - self.middle[voices]) / self.spread[voices])
        bound = self.others * np.exp(-np.clip(scores, -500, 500))
        return np.asarray(np.maximum(np.maximum(told, bound), _TINY))


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
