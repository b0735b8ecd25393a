# SPDX-License-Identifier: Apache-2.0
"""Comparisons of systems: intervals that cover, tests that keep their level, and what a number of speakers can show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, ttest_1samp

from idlora.errors import InputError
from idlora.evaluation.comparisons import (
    Table,
    compare,
    exchange_p,
    holm,
    interval,
    permutation_p,
    smallest_difference,
    wide_level,
)
from idlora.evaluation.statistics import Floats

PS = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def table(scores: Floats) -> Table:
    """Of scores (speakers, clips)."""
    return Table.of([(f"{index:03d}", float(score), 1.0) for index, row in enumerate(scores) for score in row])


@pytest.mark.parametrize("speakers", [6, 8, 20, 40])
def test_intervals_cover_the_truth_as_often_as_they_say(speakers: int) -> None:
    """300 worlds: clips of a speaker nearly alike, speakers normal. A binomial of 0.95 stays within 0.92 to 0.98."""
    rng, hits = np.random.default_rng(speakers), 0
    for _ in range(300):
        found = interval(
            table(rng.standard_normal((speakers, 1)) + 0.1 * rng.standard_normal((speakers, 3))), draws=400
        )
        hits += found.low <= 0 <= found.high
    assert 0.915 <= hits / 300 <= 0.985


def test_intervals_of_rates_cover_where_there_are_any() -> None:
    """Coverage: how often an interval holds the true rate, among the experiments that give an interval.

    Each speaker is right or wrong (1 or 0) with a chance p; how many are right is all that the interval hangs on, so
    that the sum over the binomial is exact. A share of n speakers moves in steps, so coverage swings about 0.95: over
    all n from 11 to 40 and p from 0.5 to 0.95 it is 0.85 to 1, mean 0.95. With intervals of no width, where all are
    right or wrong, it would be 0.65 for 11 speakers and p = 0.9.
    """
    found = []
    for speakers in (11, 16, 24, 40):
        counts = np.arange(speakers + 1)
        intervals = [interval(table((np.arange(speakers) < count)[:, None].astype(float))) for count in counts]
        ends = np.array([(each.low, each.high) for each in intervals])
        there = ~np.isnan(ends[:, 0])
        assert list(there) == [0 < count < speakers for count in counts]
        for rate in np.linspace(0.5, 0.95, 10):
            chance = binom.pmf(counts, speakers, rate) * there
            inside = (ends[:, 0] <= rate + 1e-9) & (rate - 1e-9 <= ends[:, 1])
            found.append((chance * inside).sum() / chance.sum())
    assert min(found) >= 0.85
    assert 0.93 <= np.mean(found) <= 0.97


def test_speakers_who_are_all_alike_give_a_value_and_no_interval() -> None:
    for scores in (np.ones((8, 3)), np.zeros((40, 1)), np.full((3, 7), 0.1), np.full((2, 2), 1 + 1e-7) - [[0], [1e-7]]):
        found = interval(table(scores))
        assert found.value == pytest.approx(scores.mean())
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    # A rate is the same where errors are in proportion to words.
    words = np.arange(1.0, 9.0)
    assert math.isnan(interval(Table(tuple("abcdefgh"), 0.3 * words, words)).low)
    errors = 0.3 * words + np.eye(8)[0] * 0.01
    assert interval(Table(tuple("abcdefgh"), errors, words)).low < 0.3
    # Speakers who differ, by equal differences.
    first = np.linspace(0.2, 0.9, 8)[:, None]
    alike = compare(table(first - 0.1), table(first), 8)
    assert alike.difference.value == pytest.approx(-0.1)
    assert math.isnan(alike.difference.low)
    assert math.isnan(alike.smallest)
    assert alike.p == 2 / 256


def test_intervals_of_differences_cover_and_pairing_narrows_them() -> None:
    rng, hits, widths = np.random.default_rng(0), 0, []
    for _ in range(200):
        speaker = rng.standard_normal((12, 1))  # what makes a speaker easy makes it easy for both systems
        first, second = (table(speaker + shift + 0.2 * rng.standard_normal((12, 2))) for shift in (0.3, 0.0))
        found = compare(first, second, 24, draws=300).difference
        hits += found.low <= 0.3 <= found.high
        alone = interval(first, draws=300)
        widths.append((found.high - found.low) / (alone.high - alone.low))
    assert 0.91 <= hits / 200 <= 0.99
    assert np.mean(widths) < 0.4


def test_permutations_keep_their_level_and_find_what_is_there() -> None:
    rng = np.random.default_rng(1)
    nothing = [permutation_p(rng.standard_normal(8)) for _ in range(500)]
    assert np.mean(np.array(nothing) <= 0.05) <= 0.075
    something = [permutation_p(rng.standard_normal(8) + 1.5) for _ in range(100)]
    assert np.mean(np.array(something) <= 0.05) > 0.85


def test_labels_are_exchanged_with_the_words_that_they_counted() -> None:
    """A rate lower by 0.1 for each of 8 speakers, of which the systems counted other numbers of words."""
    names, rng = tuple("abcdefgh"), np.random.default_rng(5)
    words, others = (rng.integers(1, 40, 8).astype(float) for _ in range(2))
    found = compare(Table(names, 0.2 * words, words), Table(names, 0.3 * others, others), 8)
    assert found.difference.value == pytest.approx(-0.1)
    assert math.isnan(found.difference.low)
    assert found.p == 2 / 256
    # Of equal weights it is a flip of the signs of differences.
    for count in (8, 20):
        first, second = rng.standard_normal((2, count))
        weights = rng.integers(1, 9, count).astype(float)
        names = tuple(f"{index:02d}" for index in range(count))
        exchanged = exchange_p(Table(names, first, weights), Table(names, second, weights))
        assert exchanged == permutation_p(first - second)


def test_exchanged_labels_keep_their_level() -> None:
    rng, found = np.random.default_rng(6), []
    names = tuple("abcdefgh")
    for _ in range(400):
        rates = rng.uniform(0.1, 0.6, 8)  # a speaker is as hard for both
        words = rng.integers(4, 40, (2, 8))
        first, second = (Table(names, rng.binomial(each, rates).astype(float), each.astype(float)) for each in words)
        found.append(exchange_p(first, second) <= 0.05)
    assert np.mean(found) <= 0.075


def test_exact_and_sampled_permutations_agree_with_students_t() -> None:
    rng = np.random.default_rng(2)
    for count in (10, 30):
        differences = rng.standard_normal(count) + 0.4
        assert permutation_p(differences) == pytest.approx(ttest_1samp(differences, 0).pvalue, abs=0.03)
    assert permutation_p(np.ones(3)) == 0.25  # 2 of 8 signs
    assert 0 < permutation_p(np.full(40, 9.0)) < 0.001


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@given(PS)
def test_holm_never_helps_and_keeps_the_order(ps: list[float]) -> None:
    adjusted = holm(ps)
    assert all(a >= p - 1e-12 for a, p in zip(adjusted, ps, strict=True))
    assert all(a <= 1 for a in adjusted)
    order = sorted(range(len(ps)), key=lambda index: ps[index])
    assert [adjusted[index] for index in order] == sorted(adjusted)
    assert all(a <= min(1.0, len(ps) * p) + 1e-12 for a, p in zip(adjusted, ps, strict=True))


def test_the_smallest_difference_is_found_four_times_in_five() -> None:
    rng, found = np.random.default_rng(3), 0
    size = smallest_difference(np.array([-1.0, 1.0] * 6) * math.sqrt(11 / 12))  # standard deviation 1
    for _ in range(400):
        found += ttest_1samp(rng.standard_normal(12) + size, 0).pvalue < 0.05
    assert 0.74 <= found / 400 <= 0.88


def test_rates_weigh_words_and_speakers_stay_together() -> None:
    found = Table.of([("a", 1, 3), ("b", 3, 3), ("a", 0, 3), ("b", 2, 1)])
    assert (found.speakers, list(found.sums), list(found.weights)) == (("a", "b"), [1, 5], [6, 4])
    assert found.value == pytest.approx(0.6)
    assert interval(found, draws=50).value == pytest.approx(0.6)


def test_equal_systems_do_not_differ_and_one_speaker_decides_nothing() -> None:
    scores = np.random.default_rng(4).standard_normal((9, 2))
    same = compare(table(scores), table(scores), 18)
    assert (same.difference.value, same.p) == (0, 1)
    assert math.isnan(same.difference.low)  # that nine speakers show none does not say that there is none
    alone = compare(table(scores[:1] + 1), table(scores[:1]), 2)
    assert alone.difference.value == pytest.approx(1)
    assert (alone.p, alone.smallest, alone.speakers) == (1, math.inf, 1)
    assert math.isnan(interval(table(scores[:1])).low)
    assert wide_level(1) == 0.95 < wide_level(40) < wide_level(6) < 1


def test_nothing_or_others_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        Table.of([])
    with pytest.raises(InputError, match="other speakers"):
        compare(Table.of([("a", 1, 1)]), Table.of([("b", 1, 1)]), 1)
