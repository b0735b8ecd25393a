# SPDX-License-Identifier: Apache-2.0
"""Systems compared on the same clips: paired bootstrap and permutation by speaker, several tests at once, and power.

A table has one row a speaker: `sums` and `weights` (S,), so that a mean (weights 1 a clip) and a rate (weights words)
are one statistic, sum over sum. Clips of one speaker are alike and always stay together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from idlora.errors import InputError
from idlora.evaluation.statistics import DRAWS, Draw, Estimate, Floats, bootstrap

LEVEL, POWER = 0.95, 0.8
_EXACT = 12  # speakers up to which all signs are tried
_PERMUTATIONS = 10_000
_ROUNDING = 1e-6  # of a value's size: judges compute in float32


@dataclass(frozen=True, eq=False)
class Table:
    """What speakers scored: sums and weights (S,), e.g. similarities and clips, or errors and words."""

    speakers: tuple[str, ...]
    sums: Floats
    weights: Floats

    @classmethod
    def of(cls, rows: Sequence[tuple[str, float, float]]) -> Table:
        """From rows (speaker, sum, weight), a clip each.

        Raises:
            InputError: there is no row.
        """
        if not rows:
            raise InputError("there is nothing to compare: no clip has a score")
        names = tuple(sorted({name for name, _, _ in rows}))
        place = np.array([names.index(name) for name, _, _ in rows])
        sums, weights = (np.bincount(place, [row[column] for row in rows]) for column in (1, 2))
        return cls(names, np.asarray(sums, np.float64), np.asarray(weights, np.float64))

    @property
    def value(self) -> float:
        """Sum over sum."""
        return float(self.sums.sum() / self.weights.sum())


def wide_level(num_speakers: int, level: float = LEVEL) -> float:
    """The level at which a percentile interval over few speakers covers `level` (Hesterberg 2015, section 5.3).

    The bootstrap's spread is too small by sqrt((n - 1) / n), and its tails are normal where Student's t is due:
    Phi(-sqrt(n / (n - 1)) t), t at (1 + level) / 2 with n - 1 degrees, is left out at each end instead.
    """
    if num_speakers < 2:
        return level
    reach = student.ppf((1 + level) / 2, num_speakers - 1) * math.sqrt(num_speakers / (num_speakers - 1))
    return float(1 - 2 * norm.cdf(-reach))


def interval(table: Table, *, draws: int = DRAWS) -> Estimate:
    """The value with its 95 % interval, speakers drawn again.

    There is none (nan) of one speaker, nor of speakers who are all alike: drawn again they give the same value each
    time, and an interval of no width would claim to know what so few cannot tell.
    """
    count, parts = len(table.speakers), _contributions(table)
    if count < 2 or _alike(parts, parts):
        return Estimate(table.value, math.nan, math.nan)

    def statistic(drawn: Draw) -> float:
        return float(table.sums[drawn].sum() / table.weights[drawn].sum())

    return bootstrap(statistic, count, draws=draws, level=wide_level(count))


@dataclass(frozen=True)
class Comparison:
    """System less baseline on the clips of both.

    Attributes:
        difference: with its interval; nan of one speaker, or where it is the same for all speakers.
        p: of a permutation of the two systems' labels, speaker by speaker, two-sided.
        n: clips of each.
        speakers: number of them.
        smallest: smallest true difference that so many speakers show with a power of 0.8; inf of one speaker, nan
            (unknown) where the difference is the same for all.
    """

    difference: Estimate
    p: float
    n: int
    speakers: int
    smallest: float


def compare(system: Table, baseline: Table, n: int, *, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Compare two tables of the same speakers and clips.

    Raises:
        InputError: their speakers differ.
    """
    if system.speakers != baseline.speakers:
        raise InputError("the two systems have other speakers; compare them on the clips that both have")
    count = len(system.speakers)

    def statistic(drawn: Draw) -> float:
        first, second = (table.sums[drawn].sum() / table.weights[drawn].sum() for table in (system, baseline))
        return float(first - second)

    value = statistic(np.arange(count))
    if count < 2:
        return Comparison(Estimate(value, math.nan, math.nan), 1.0, n, count, math.inf)
    pair = _contributions(system), _contributions(baseline)
    own, p = pair[0] - pair[1], exchange_p(system, baseline, seed=seed)
    if _alike(own, np.concatenate(pair)):
        return Comparison(Estimate(value, math.nan, math.nan), p, n, count, math.nan)
    difference = bootstrap(statistic, count, draws=draws, level=wide_level(count))
    return Comparison(difference, p, n, count, smallest_difference(own))


def _contributions(table: Table) -> Floats:
    """Each speaker's part (S,) of the value R, whose mean is R: (sum - R * weight) / mean weight + R, to first order.

    Equal weights leave a speaker's own mean. Parts are equal only where every speaker's sum over weight is R.
    """
    value = table.value
    return np.asarray((table.sums - value * table.weights) / table.weights.mean() + value)


def _alike(parts: Floats, of: Floats) -> bool:
    """Whether parts (S,) differ by no more than rounding of the values that they are made of."""
    return bool(np.ptp(parts) <= _ROUNDING * np.abs(of).max())


def exchange_p(system: Table, baseline: Table, *, seed: int = 0) -> float:
    """Two-sided p of the difference of two tables by exchanging the two labels, speaker by speaker.

    A speaker's sum and weight change sides together, so that rates over other numbers of words are compared rightly.
    Of equal weights it is `permutation_p` of the speakers' differences.
    """
    half_sums, half_weights = (system.sums - baseline.sums) / 2, (system.weights - baseline.weights) / 2
    all_sums, all_weights = (system.sums + baseline.sums).sum() / 2, (system.weights + baseline.weights).sum() / 2

    def difference(signs: Floats) -> Floats:
        sums, weights = signs @ half_sums, signs @ half_weights
        return np.asarray((all_sums + sums) / (all_weights + weights) - (all_sums - sums) / (all_weights - weights))

    return _p_of(difference, len(system.speakers), seed)


def permutation_p(differences: Floats, *, seed: int = 0) -> float:
    """Two-sided p of differences (S,), one a speaker, by flipping their signs: exact up to 12 speakers.

    Beyond, 10,000 random flips and the identity are counted, so that p is never 0 (Phipson and Smyth 2010).
    """
    return _p_of(lambda signs: np.asarray(signs @ differences), len(differences), seed)


def _p_of(statistic: Callable[[Floats], Floats], count: int, seed: int) -> float:
    """Share of the signs (N, S) whose statistic (N,) is as far from 0 as that of all ones."""
    exact = count <= _EXACT
    if exact:
        signs = np.array(list(product((1.0, -1.0), repeat=count)))
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), (_PERMUTATIONS, count))
    extreme = np.abs(statistic(signs)) >= abs(statistic(np.ones((1, count)))[0]) - 1e-12
    return float(extreme.mean() if exact else (extreme.sum() + 1) / (_PERMUTATIONS + 1))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false finding among them stays below the level (Holm 1979)."""
    order = sorted(range(len(ps)), key=lambda index: ps[index])
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted


def smallest_difference(differences: Floats, power: float = POWER, level: float = LEVEL) -> float:
    """Smallest true mean of paired differences (S,) that a two-sided test finds with a given power.

    (t at (1 + level) / 2 + t at power, n - 1 degrees) * standard deviation / sqrt(n): what n speakers can show.
    """
    count = len(differences)
    reach = student.ppf((1 + level) / 2, count - 1) + student.ppf(power, count - 1)
    return float(reach * np.std(differences, ddof=1) / math.sqrt(count))
