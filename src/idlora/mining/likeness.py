# SPDX-License-Identifier: Apache-2.0
"""How much likelier one speaker is than two, for two voices; what of a vector is no voice is learnt without labels.

Two facts need no label: clips of one track are of one speaker, and a degraded copy is of its clip's. How vectors move
within these is the noise; what is left of their spread is the voices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]

_MOST = 48  # directions that are kept
_TINY = 1e-12
_SHARES = (0.05, 0.3, 0.6, 0.9)  # of the noise that is taken for equal in all directions
_LEAST_CLASSES = 20
_MOST_CLASSES = 2000  # that are told apart, evenly spread: all with all
_LEAST_SHARE = 1e-3  # of the noise's variance that the voices' must reach in a direction


@dataclass(frozen=True, eq=False)
class Likeness:
    """Two-covariance model (Brummer and de Villiers 2010) in the directions in which voices differ most over noise.

    There the noise of an observation has variance 1 and voices have variance `between`, direction by direction.

    Attributes:
        centre: mean vector (D,).
        project: to those directions (D, K).
        between: variance of voices (K,).
    """

    centre: Floats
    project: Floats
    between: Floats

    @classmethod
    def learnt(cls, vectors: Floats, classes: Classes, groups: Classes) -> Likeness:
        """Learn from observations.

        Args:
            vectors: observations (N, D).
            classes: (N,) of each observation: within a class one speaker, whatever else differs.
            groups: (N,) observations of one group are averaged where voices are compared: a class or several.
        """
        return cls._learnt(vectors, classes, groups, _best_share(cls, vectors, classes))

    @classmethod
    def _learnt(cls, vectors: Floats, classes: Classes, groups: Classes, shrink: float) -> Likeness:
        size, noise = vectors.shape[1], _shrunk(within(vectors, classes), shrink)
        means = means_of(vectors, groups)
        centre = means.mean(axis=0)
        total = (means - centre).T @ (means - centre) / max(1, len(means) - 1)
        values, directions = eigh(total, noise)
        share = size / (size + len(means))  # few voices tell little of how voices differ: then alike in all directions
        values = (1 - share) * values + share * values.mean()
        order = np.argsort(-values)[:_MOST]
        between = np.maximum(values[order] - 1.0, _LEAST_SHARE)
        return cls(centre, directions[:, order], between)

    def seen(self, vectors: Floats) -> Floats:
        """Vectors (N, D) in the directions of voices (N, K)."""
        return np.asarray((vectors - self.centre) @ self.project)

    def keys(self, vectors: Floats) -> tuple[Floats, Floats]:
        """Vectors (N, D) as queries and as keys (N, K + 2) whose inner product is the log-likelihood ratio.

        log N([a, b]; one voice) - log N(a) N(b), a sum over directions of a bilinear form: what is of a alone and of b
        alone stands in the last two columns, so that a search for neighbours by inner product is exact.
        """
        return self.keys_seen(self.seen(vectors))

    def keys_seen(self, seen: Floats) -> tuple[Floats, Floats]:
        """As `keys`, of vectors (N, K) that are in the directions of voices already."""
        variance = self.between + 1.0
        determinant = variance**2 - self.between**2
        alone = -0.5 * seen**2 @ (variance / determinant - 1 / variance)
        constant = -0.5 * float(np.sum(np.log(determinant) - 2 * np.log(variance)))
        scaled = seen * np.sqrt(self.between / determinant)
        ones = np.ones((len(seen), 1))
        first = np.concatenate([scaled, alone[:, None] + constant, ones], axis=1)
        second = np.concatenate([scaled, ones, alone[:, None]], axis=1)
        return first, second

    def points(self, vectors: Floats) -> Floats:
        """Vectors (N, D) as points (N, K) whose distance is what the score loses by the difference of two voices.

        score(a, a) + score(b, b) - 2 score(a, b) is their squared distance.
        """
        variance = self.between + 1.0
        return np.asarray(self.seen(vectors) * np.sqrt(self.between / (variance**2 - self.between**2)))

    def scores(self, vectors: Floats) -> Floats:
        """The log-likelihood ratio (N, N) of every two vectors (N, D)."""
        first, second = self.keys(vectors)
        return np.asarray(first @ second.T)


def _shrunk(noise: Floats, share: float) -> Floats:
    """A covariance (D, D) nearer to that of equal directions."""
    size = len(noise)
    return np.asarray((1 - share) * noise + (share * np.trace(noise) / size + _TINY) * np.eye(size))


def _best_share(kind: type[Likeness], vectors: Floats, classes: Classes) -> float:
    """How far the noise is to be shrunk: what is learnt of half of the classes must tell the others apart best.

    Classes are told apart by the score of one observation with the mean of the rest of its class against those with the
    means of other classes; the share with the fewest confusions wins, of two the larger.
    """
    half = classes % 2 == 0
    if len(np.unique(classes[half])) < _LEAST_CLASSES or len(np.unique(classes[~half])) < _LEAST_CLASSES:
        return _SHARES[-1]
    found = []
    for share in _SHARES:
        model = kind._learnt(vectors[half], classes[half], classes[half], share)
        found.append((_confusions(model, vectors[~half], classes[~half]), -share))
    return -min(found)[1]


def _confusions(model: Likeness, vectors: Floats, classes: Classes) -> float:
    """Mean share of other classes that score as high with a class's first observation as the rest of the class does.

    Of very many classes a part, so that time and memory stay within bounds.
    """
    names, firsts, places = np.unique(classes, return_index=True, return_inverse=True)
    rest = np.ones(len(vectors), bool)
    rest[firsts] = False
    several = np.flatnonzero(np.isin(np.arange(len(names)), places[rest]))
    if len(several) > _MOST_CLASSES:
        several = several[np.linspace(0, len(several) - 1, _MOST_CLASSES).astype(int)]
    rest &= np.isin(places, several)
    first, second = model.keys(vectors[firsts[several]])[0], model.keys(means_of(vectors[rest], places[rest]))[1]
    scores = first @ second.T
    return float(np.mean(scores >= np.diag(scores)[:, None]))


def within(vectors: Floats, classes: Classes) -> Floats:
    """Covariance (D, D) of vectors (N, D) about the means of their classes."""
    count = len(np.unique(classes))
    apart = vectors - means_of(vectors, classes)[np.unique(classes, return_inverse=True)[1]]
    return np.asarray(apart.T @ apart / max(1, len(vectors) - count))


def means_of(vectors: Floats, groups: Classes) -> Floats:
    """Mean vector of every group (G, D), in the order of the groups' numbers."""
    names, places = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), vectors.shape[1]))
    np.add.at(sums, places, vectors)
    return np.asarray(sums / np.bincount(places)[:, None])
