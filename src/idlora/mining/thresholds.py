# SPDX-License-Identifier: Apache-2.0
"""From when on two voices are one speaker, chosen from the distances of neighbours alone.

The nearest pairs are of two kinds. Those of one speaker lie apart by noise: their squared distance is of a Gamma law,
as of normal vectors. Strangers come in numbers that grow as a power of the distance, as of points in a ball. The
mixture is fitted by expectation and maximisation; its second part foretells the strangers nearer than any distance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Floats = NDArray[np.float64]

_LEAST = 30  # pairs; of fewer nothing can be read
_SEEN = 1.0  # strangers of a voice, in the mean, that a law of them is read from, at the least
_READ = 20_000  # distances, evenly spread over the ordered ones, that the mixture is fitted to at the most
_FEW = 0.15  # of further pairs that are of one speaker: then nearly all of those have been seen
_FIRST = 0.3  # of the pairs, the nearest, are of one speaker to begin with
_ROUNDS, _SETTLED = 500, 1e-6
_LEAST_POWER = 0.5  # of squared distances
_MISSED = 0.02  # of the copies that may look less alike than the lower bar
_MOST_DOUBT = 1.0  # strangers expected at the lower bar, at the most
_TINY = 1e-300


@dataclass(frozen=True)
class Law:
    """How many strangers a voice has within a distance: within x (distance / far) ^ power.

    Attributes:
        far: distance within which the pairs lie that the law is read from; 0 where there are too few to tell.
        within: strangers that a voice has there, in the mean.
        power: about in how many directions voices differ nearby.
        others: how many other voices there are.
        settled: whether strangers were seen, and all pairs of one speaker; else more neighbours would tell more.
    """

    far: float
    within: float
    power: float
    others: int
    settled: bool = False

    @classmethod
    def of(cls, distances: Floats, voices: int, least: float = 0.0) -> Law:
        """Of the distances (P,) of neighbours of two recordings, each pair once.

        The nearest are taken, as many as voices, and then twice as many until strangers are seen and further pairs
        show hardly any of one speaker. Not more: those further away tell little of how many there are nearby.

        Args:
            distances: of pairs.
            voices: how many.
            least: distance that has to be reached. Nearer, all pairs may be of one speaker who is often heard, and
                these too grow in number as a power: what would be taken for strangers.
        """
        ordered, count = np.sort(distances[np.isfinite(distances)]), max(_LEAST, voices)
        if len(ordered) < _LEAST:
            return cls(0.0, 0.0, 1.0, voices - 1)
        while count < len(ordered) and ordered[count - 1] < least:
            count *= 2
        law, alike = cls._read(ordered[:count], voices)
        while count < len(ordered):
            further, more = cls._read(ordered[: 2 * count], voices)
            if law.within >= _SEEN and more - alike <= _FEW * count:
                return replace(law, settled=True)
            law, alike, count = further, more, 2 * count
        return law

    @classmethod
    def _read(cls, ordered: Floats, voices: int) -> tuple[Law, float]:
        """Of some distances (P,), ascending; and how many of them are of one speaker."""
        far, count = float(max(ordered[-1], 1e-9)), len(ordered)
        some = ordered if count <= _READ else ordered[np.linspace(0, count - 1, _READ).astype(int)]
        share, power = _mixture(np.square(np.maximum(some, 1e-9) / far))
        return cls(far, 2 * (1 - share) * count / voices, 2 * power, voices - 1), share * count

    def strangers(self, distances: Floats) -> Floats:
        """How many strangers are expected nearer to a voice than distances (L,), at most all."""
        if not self.far:
            return np.full(distances.shape, float(self.others))
        logs = np.log(max(self.within, _TINY)) + self.power * np.log(np.maximum(distances, _TINY) / self.far)
        return np.asarray(np.exp(np.clip(logs, np.log(_TINY), np.log(max(self.others, 1)))))


def _mixture(squares: Floats) -> tuple[float, float]:
    """The share of one speaker's pairs among squared distances (P,) in (0, 1], ascending, and the strangers' power."""
    logs = np.log(squares)
    mine = np.where(np.arange(len(squares)) < _FIRST * len(squares), 0.99, 0.01)  # chance of being one speaker's
    share, power, before = 0.0, 1.0, -np.inf
    for _ in range(_ROUNDS):
        share = float(mine.mean())
        if share * len(squares) < 1:
            return 0.0, max(_LEAST_POWER, -len(squares) / min(float(logs.sum()), -1e-9))
        power = max(_LEAST_POWER, float((1 - mine).sum()) / max(-float((1 - mine) @ logs), 1e-9))
        mean = float(mine @ squares) / float(mine.sum())
        variance = float(mine @ np.square(squares - mean)) / float(mine.sum()) + 1e-18
        shape, scale = mean**2 / variance, variance / mean
        gamma = (shape - 1) * logs - squares / scale - gammaln(shape) - shape * np.log(scale) + np.log(share)
        ball = (power - 1) * logs + np.log(power) + np.log(max(1 - share, _TINY))
        both = np.logaddexp(gamma, ball)
        mine, likelihood = np.exp(gamma - both), float(both.sum())
        if likelihood - before < _SETTLED:
            break
        before = likelihood
    return share, power


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
