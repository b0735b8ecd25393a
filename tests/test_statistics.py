# SPDX-License-Identifier: Apache-2.0
"""Statistics of the protocol: intervals that cover, and rates, margins, ranks and error rates by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from idlora.data.world.voice import VOCABULARY
from idlora.errors import InputError
from idlora.evaluation.clips import Plan
from idlora.evaluation.statistics import (
    Estimate,
    bootstrap,
    equal_error_rate,
    equal_error_rate_over,
    first_ranks,
    margins,
    mean_over,
    rate_over,
    share_over,
)

Sound = NDArray[np.float32]
Frames = NDArray[np.uint8]
WORDS = st.lists(st.sampled_from(VOCABULARY[:4]), max_size=6)
PLAN = Plan(speakers=3, prompts=1, enrolments=1, batch=2, world_clips=60)


def coverage(trials: int, *, by_speaker: bool) -> float:
    """How often the interval holds the true mean 0, with clips of a speaker nearly alike."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(trials):
        scores = rng.standard_normal((40, 1)) + 0.1 * rng.standard_normal((40, 2))
        estimate = mean_over(scores if by_speaker else scores.reshape(80, 1), draws=400)
        hits += estimate.low <= 0 <= estimate.high
    return hits / trials


def test_intervals_over_speakers_cover_and_intervals_over_clips_do_not() -> None:
    assert 0.90 <= coverage(400, by_speaker=True) <= 0.98
    assert coverage(400, by_speaker=False) < 0.88


def test_intervals_depend_on_the_seed_alone() -> None:
    scores = np.random.default_rng(1).standard_normal((10, 2))

    def mean(drawn: NDArray[np.int64]) -> float:
        return float(scores[drawn].mean())

    assert bootstrap(mean, 10, seed=3) == bootstrap(mean, 10, seed=3) != bootstrap(mean, 10, seed=4)
    with pytest.raises(InputError, match="0 speakers"):
        bootstrap(mean, 0)


def test_rates_weigh_words_and_shares_are_of_means() -> None:
    errors, words = np.array([[1.0, 0.0], [3.0, 2.0]]), np.array([[3.0, 3.0], [3.0, 1.0]])
    assert rate_over(errors, words, draws=9).value == pytest.approx(0.6)
    scores, floor, ceiling = np.full((2, 1), 0.16), np.zeros((2, 1)), np.array([[0.2], [0.3]])
    assert share_over(scores, floor, ceiling, draws=9).value == pytest.approx(0.64)


def test_margins_and_first_ranks_by_hand() -> None:
    cosines, speakers = np.array([[0.9, 0.5, 0.3], [0.8, 0.6, 0.4]]), np.array([0, 1])
    assert margins(cosines, speakers) == pytest.approx([0.5, 0.0])
    assert list(first_ranks(cosines, speakers)) == [1, 0]


def test_equal_error_rate_by_hand() -> None:
    same, different = np.array([0.9, 0.8, 0.4]), np.array([0.7, 0.3, 0.1])
    assert equal_error_rate(same, different) == pytest.approx(1 / 3)
    assert equal_error_rate(same + 1, different) == 0
    assert equal_error_rate(same - 1, different) == 1
    twice = equal_error_rate(np.repeat(same, 2), different)
    assert equal_error_rate(same, different, np.array([2.0, 2, 2, 1, 1, 1])) == pytest.approx(twice)


def test_equal_error_rate_of_gaussians() -> None:
    rng = np.random.default_rng(2)
    same, different = rng.normal(2, 1, 20_000), rng.normal(0, 1, 20_000)
    assert equal_error_rate(same, different) == pytest.approx(0.1587, abs=0.01)  # Phi(-1)


def test_distinct_speakers_never_err() -> None:
    embeddings = np.repeat(np.eye(6)[:, None], 3, axis=1)
    assert equal_error_rate_over(embeddings, draws=50) == Estimate(0, 0, 0)


# Clips
