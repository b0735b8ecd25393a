# SPDX-License-Identifier: Apache-2.0
"""What scores amount to: intervals by bootstrap over speakers, margins, first ranks and equal error rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idlora.errors import InputError

Floats = NDArray[np.float64]
Draw = NDArray[np.int64]
DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[[Draw], float], num_speakers: int, *, draws: int = DRAWS, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Percentile interval of a statistic when speakers are drawn again with replacement (Efron 1979).

    Clips of one speaker are alike, so all clips of a drawn speaker come together.

    Args:
        statistic: a function of speaker indices (num_speakers,), some of them several times.
        num_speakers: at least 1.
        draws: number of resamples.
        level: share of the resamples inside the interval.
        seed: equal seeds give equal intervals.

    Raises:
        InputError: there is no speaker.
    """
    if num_speakers < 1:
        raise InputError("an interval over 0 speakers does not exist; score at least one speaker")
    rng = np.random.default_rng(seed)
    values = [statistic(drawn) for drawn in rng.integers(num_speakers, size=(draws, num_speakers))]
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return Estimate(float(statistic(np.arange(num_speakers))), float(low), float(high))


def mean_over(scores: Floats, *, draws: int = DRAWS) -> Estimate:
    """Mean of scores (speakers, clips) with its interval."""
    by_speaker = scores.mean(axis=1)
    return bootstrap(lambda drawn: float(by_speaker[drawn].mean()), len(scores), draws=draws)


def rate_over(counts: Floats, totals: Floats, *, draws: int = DRAWS) -> Estimate:
    """Sum of counts over sum of totals, (speakers, clips) each, with its interval: a word error rate, an accuracy."""

    def rate(drawn: Draw) -> float:
        return float(counts[drawn].sum() / totals[drawn].sum())

    return bootstrap(rate, len(counts), draws=draws)


def share_over(scores: Floats, floor: Floats, ceiling: Floats, *, draws: int = DRAWS) -> Estimate:
    """(mean score - floor) / (ceiling - floor) of (speakers, clips) each, the same speakers drawn for all three."""

    def share(drawn: Draw) -> float:
        low = floor[drawn].mean()
        return float((scores[drawn].mean() - low) / (ceiling[drawn].mean() - low))

    return bootstrap(share, len(scores), draws=draws)


def margins(cosines: Floats, speakers: Draw) -> Floats:
    """Each clip's cosine to its own speaker less the mean over the others.

    Args:
        cosines: (clips, enrolled speakers), at least two speakers.
        speakers: (clips,) index of each clip's own speaker.
    """
    own = own_cosines(cosines, speakers)
    return np.asarray(own - (cosines.sum(axis=1) - own) / (cosines.shape[1] - 1))


def own_cosines(cosines: Floats, speakers: Draw) -> Floats:
    """Each clip's cosine to its own speaker, (clips,), of cosines (clips, enrolled speakers)."""
    return np.asarray(cosines[np.arange(len(speakers)), speakers])


def first_ranks(cosines: Floats, speakers: Draw) -> Floats:
    """1 where a clip's own speaker is the nearest of all enrolled ones, else 0, (clips,)."""
    return np.asarray(cosines.argmax(axis=1) == speakers, np.float64)


def equal_error_rate(same: Floats, different: Floats, weights: Floats | None = None) -> float:
    """The error rate at the threshold where as many same pairs are rejected as different ones are accepted.

    Args:
        same: similarity of pairs of one speaker, (P,).
        different: similarity of pairs of two speakers, (Q,).
        weights: how often each pair counts, (P + Q,), same pairs first; None = once.
    """
    scores = np.concatenate([same, different])
    weight = np.ones(len(scores)) if weights is None else weights
    is_same = np.arange(len(scores)) < len(same)
    order = np.argsort(scores, kind="stable")
    rejected = np.concatenate([[0.0], np.cumsum((weight * is_same)[order])]) / (weight * is_same).sum()
    accepted = 1 - np.concatenate([[0.0], np.cumsum((weight * ~is_same)[order])]) / (weight * ~is_same).sum()
    crossing = int(np.argmin(np.abs(rejected - accepted)))
    return float((rejected[crossing] + accepted[crossing]) / 2)


def equal_error_rate_over(embeddings: Floats, *, draws: int = DRAWS) -> Estimate:
    """Equal error rate of all pairs of clips of unit embeddings (speakers, clips, D), at least two of each."""
    num_speakers, num_clips, size = embeddings.shape
    flat, owner = embeddings.reshape(-1, size), np.repeat(np.arange(num_speakers), num_clips)
    first, second = np.triu_indices(len(flat), 1)
    scores = np.einsum("pd,pd->p", flat[first], flat[second])
    alike = owner[first] == owner[second]
    order = np.argsort(~alike, kind="stable")  # same pairs first
    a, b = owner[first][order], owner[second][order]
    scores, alike = scores[order], alike[order]
    num_same = int(alike.sum())

    def rate(drawn: Draw) -> float:
        times = np.bincount(drawn, minlength=num_speakers).astype(np.float64)
        # A speaker drawn twice is still one speaker: no pair of its copies counts as different.
        weights = np.where(alike, times[a], times[a] * times[b])
        return equal_error_rate(scores[:num_same], scores[num_same:], weights)

    return bootstrap(rate, num_speakers, draws=draws)
