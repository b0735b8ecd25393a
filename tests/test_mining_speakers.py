# SPDX-License-Identifier: Apache-2.0
"""Voices to speakers to splits: the arithmetic against its definition, and laws that hold for any numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from idlora.errors import InputError, SettingsError
from idlora.mining import splits
from idlora.mining.grouping import Unlike, doubts_of, grouped, joined
from idlora.mining.likeness import Classes, Floats, Likeness, means_of
from idlora.mining.neighbours import index_of, nearest
from idlora.mining.settings import SpeakerRules, SplitRules, settings_of
from idlora.mining.splits import TEST, TRAIN, VALIDATION, Frozen
from idlora.mining.tables import Row
from idlora.mining.thresholds import Law, bars_of

Tables = tuple[list[Row], list[Row], list[Row]]


def voices(num_speakers: int, files: int, seed: int = 0, noise: float = 0.25) -> Tables:
    """Tables of clips: in each file two of its speaker's, in a direction of its own recording besides."""
    rng = np.random.default_rng(seed)
    tables: Tables = ([], [], [])
    for speaker in range(num_speakers):
        own = rng.standard_normal(24)
        for number in range(files):
            room, file = 0.3 * rng.standard_normal(24) * (np.arange(24) < 4), f"{speaker:03d}-{number}"
            tables[0].append({"file": file, "recording": file, "label": ""})
            for clip in range(2):
                name = f"{file}-{clip}"
                heard = (
                    own
                    + room
                    + noise * rng.standard_normal((3, 24))
                    + 3.0 * rng.standard_normal((3, 1)) * np.eye(24)[0]
                )
                heard /= np.linalg.norm(heard, axis=1, keepdims=True)
                tables[1].append({"clip": name, "file": file, "track": f"{file}-t"})
                tables[2].append({"clip": name, "vector": heard[0].tolist(), "copies": heard[1:].ravel().tolist()})
    return tables


def test_the_score_is_the_likelihood_of_one_speaker_over_that_of_two() -> None:
    between = np.array([3.0, 0.5])
    model = Likeness(np.zeros(2), np.eye(2), between)
    first, second = np.array([0.7, -1.2]), np.array([1.5, 0.3])
    wanted = 0.0
    for place in range(2):
        variance, shared = between[place] + 1, between[place]
        pair = (first[place], second[place])
        wanted += multivariate_normal.logpdf(pair, (0, 0), [[variance, shared], [shared, variance]])
        wanted -= sum(multivariate_normal.logpdf(value, 0, variance) for value in pair)
    scores = model.scores(np.stack([first, second]))
    assert scores[0, 1] == pytest.approx(wanted)
    assert np.allclose(scores, scores.T)
    queries, keys = model.keys(np.stack([first, second]))
    assert np.allclose(queries @ keys.T, scores)


def test_learning_finds_the_directions_of_voices_and_forgets_those_of_noise() -> None:
    rng = np.random.default_rng(1)
    classes = np.repeat(np.arange(200), 5)
    own = rng.standard_normal((200, 1)) * np.eye(6)[2]
    observed = own[classes] + rng.standard_normal((1000, 6)) * np.array([5, 0.2, 0.1, 0.1, 0.1, 0.1])
    model = Likeness.learnt(observed, classes, classes)
    direction = np.abs(model.project[:, 0])
    assert direction.argmax() == 2
    assert direction[2] > 20 * direction[0]
    assert model.between[0] > 20 * model.between[1:].max()
    assert np.allclose(means_of(observed, classes)[7], observed[classes == 7].mean(axis=0))


@pytest.mark.parametrize("exact", [10_000, 100])
def test_neighbours_are_those_of_a_full_comparison(exact: int) -> None:
    rng = np.random.default_rng(2)
    keys = rng.standard_normal((2000, 8))
    apart = np.linalg.norm(keys[:50, None] - keys, axis=-1)
    wanted = np.argsort(apart, axis=1)[:, :5]
    index = index_of(keys, exact)
    _, places = index.search(keys[:50].astype(np.float32), 5)
    assert np.mean(places == wanted) > (0.999 if exact > 2000 else 0.3)
    distances, places = nearest(keys[:50], keys, 5)
    assert np.allclose(distances, np.sort(apart, axis=1)[:, :5], atol=1e-3)
    distances, places = nearest(keys[:3], keys[:2], 4)
    assert places[:, 2:].tolist() == [[-1, -1]] * 3
    assert np.isinf(distances[:, 2:]).all()


def pairs_of(points: Floats) -> tuple[Floats, Classes, Classes]:
    """Distances of all pairs, and which they are."""
    rows, columns = np.triu_indices(len(points), 1)
    return np.linalg.norm(points[rows] - points[columns], axis=1), rows, columns


@pytest.mark.parametrize("directions", [3, 8])
def test_strangers_are_foretold_where_there_is_nobody_twice(directions: int) -> None:
    distances, *_ = pairs_of(np.random.default_rng(5).standard_normal((600, directions)))
    law = Law.of(distances, 600)
    assert 0.75 * directions < law.power < 1.2 * directions
    for share in (0.25, 0.5, 1.0):
        counted = 2 * np.sum(distances < share * law.far) / 600
        assert law.strangers(np.array([share * law.far]))[0] == pytest.approx(counted, rel=0.4, abs=0.05)


@pytest.mark.parametrize(("speakers", "files"), [(200, 3), (60, 12), (100, 6), (300, 2)])
def test_the_law_tells_strangers_from_speakers_who_come_back(speakers: int, files: int) -> None:
    """Voices with noise in eight directions: of the links below the bar about as many are wrong as is foretold."""
    rng = np.random.default_rng(speakers)
    who = np.repeat(np.arange(speakers), files)
    points = 4 * rng.standard_normal((speakers, 8))[who] + 0.5 * rng.standard_normal((len(who), 8))
    distances, rows, columns = pairs_of(points)
    law, same = Law.of(distances, len(who)), who[rows] == who[columns]
    strangers = law.strangers(distances)
    bars = bars_of(strangers, np.array([]), len(who), 0.01)
    linked = strangers <= bars.linked
    assert np.mean(linked[same]) > 0.9
    assert np.mean(~same[linked]) < 0.02


def test_of_few_pairs_nothing_is_told() -> None:
    assert Law.of(np.linspace(0.1, 1, 20), 4).strangers(np.array([0.1])).tolist() == [3.0]
    assert Law.of(np.full(20, np.inf), 4).strangers(np.array([0.1])).tolist() == [3.0]


def test_twins_are_no_trouble() -> None:
    """Recordings that are the same twice have no distance at all."""
    rng = np.random.default_rng(1)
    once = rng.standard_normal((100, 6))
    law = Law.of(pairs_of(np.concatenate([once, once[:40]]))[0], 140)
    assert law.strangers(np.array([0.0, 1e-6]))[1] < 1e-6
    assert np.isfinite(law.power)


def test_points_lie_apart_by_what_the_score_loses() -> None:
    rng = np.random.default_rng(3)
    model = Likeness(rng.standard_normal(4), rng.standard_normal((4, 3)), np.array([4.0, 1.0, 0.2]))
    vectors = rng.standard_normal((5, 4))
    scores, points = model.scores(vectors), model.points(vectors)
    squares = np.square(points[:, None] - points).sum(axis=-1)
    assert np.allclose(squares, np.diag(scores)[:, None] + np.diag(scores) - 2 * scores)


def test_the_bar_lets_through_the_share_that_was_asked_for() -> None:
    links = np.concatenate([np.full(200, 1e-9), np.geomspace(1e-4, 1, 50)])
    bars = bars_of(links, np.array([1e-3, 1e-2]), 400, 0.01)
    above = np.sum(links <= bars.linked)
    assert 400 * bars.linked / 2 / above <= 0.01 == pytest.approx(bars.foretold, rel=0.25)
    assert bars.doubtful == max(bars.linked, np.quantile([1e-3, 1e-2], 0.98))
    assert bars_of(np.array([1.0]), np.array([]), 100, 0.01).linked == 0.0


def test_speakers_are_found_again_and_the_order_of_rows_does_not_matter() -> None:
    tables = voices(30, 3)
    rules = SpeakerRules(neighbours=4)
    found = grouped(*tables, rules)
    names = {row["clip"]: row["speaker"] for row in found.clips}
    truth = {name: name.split("-")[0] for name in names}
    members: dict[str, set[str]] = {}
    for clip, speaker in names.items():
        members.setdefault(speaker, set()).add(truth[clip])
    assert max(map(len, members.values())) == 1  # nobody is two
    linked = sum(len({names[f"{who:03d}-{file}-0"] for file in range(3)}) == 1 for who in range(30))
    assert linked >= 24
    files, clips, vectors = (table[::-1] for table in tables)
    turned = grouped(files, clips, vectors, rules)
    assert {row["clip"]: row["speaker"] for row in turned.clips} == names
    assert all(row["speaker"] == f"s-{min(c for c, s in names.items() if s == row['speaker'])}" for row in found.clips)
    direct = [row for row in found.links if row["mutual"] and row["strangers"] <= row["linked"]]
    assert direct
    assert all(row["first"][:3] == row["second"][:3] for row in direct)


def test_strangers_alone_make_no_groups() -> None:
    found = grouped(*voices(60, 1, seed=3), SpeakerRules(neighbours=4))
    speakers = {row["speaker"] for row in found.clips}
    assert len(speakers) >= 58


def test_labels_part_and_lower_the_bar() -> None:
    files, clips, vectors = voices(12, 3, seed=4, noise=0.45)
    plain = grouped(files, clips, vectors, SpeakerRules(neighbours=4))
    labelled = [{**row, "label": row["file"].split("-")[0]} for row in files]
    told = grouped(labelled, clips, vectors, SpeakerRules(neighbours=4))
    assert len({row["speaker"] for row in told.clips}) <= len({row["speaker"] for row in plain.clips})
    assert all(row["first"][:3] == row["second"][:3] for row in told.links)
    alone = [{**row, "label": row["file"]} for row in files]
    assert not any(row["same"] for row in grouped(alone, clips, vectors, SpeakerRules()).links)


def test_nothing_gives_nothing() -> None:
    assert grouped([], [], [], SpeakerRules()) == grouped([], [], [], SpeakerRules())
    assert grouped([], [], [], SpeakerRules()).clips == []


@given(st.integers(2, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30), st.randoms())
def test_groups_are_the_connected_parts_whatever_the_order(
    count: int, edges: list[tuple[int, int]], chance: object
) -> None:
    pairs = np.array([(a % count, b % count) for a, b in edges if a % count != b % count], np.int64).reshape(-1, 2)
    order = list(range(len(pairs)))
    chance.shuffle(order)  # type: ignore[attr-defined]
    alike = Unlike(lambda *_: 0.0, np.full(len(pairs), 1.0))
    alone = np.arange(count)
    groups = [joined(alone, pairs[o], np.ones(len(pairs)), alike) for o in (slice(None), order)]
    assert groups[0].tolist() == groups[1].tolist()
    reach = np.eye(count, dtype=bool)
    for a, b in pairs:
        reach[a, b] = reach[b, a] = True
    for _ in range(count):
        reach = reach @ reach
    assert groups[0].tolist() == [int(np.flatnonzero(row)[0]) for row in reach]
    kept = joined(alone, pairs, np.ones(len(pairs)), Unlike(lambda *_: 2.0, alike.most))
    assert kept.tolist() == list(range(count))  # what is unlike on the whole is not joined


NAMES = [f"s{number:02d}" for number in range(40)]


@given(
    st.sets(st.sampled_from(NAMES), min_size=1),
    st.sets(st.sampled_from(NAMES)),
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=40),
    st.integers(0, 5),
)
def test_splits_share_no_speaker_nor_one_in_doubt_and_never_move(
    first: set[str], more: set[str], edges: list[tuple[str, str]], seed: int
) -> None:
    rules = SplitRules(validation=0.2, test=0.3, seed=seed)
    doubts: dict[str, set[str]] = {}
    for a, b in edges:
        if a != b:
            doubts.setdefault(a, set()).add(b)
            doubts.setdefault(b, set()).add(a)
    before = splits.shared_out(first, first, doubts, Frozen({}, {}), rules)
    out = splits.in_doubt(before, doubts, Frozen({}, {}))
    held = [name for name, split in before.items() if split != TRAIN]
    kept = {name: split for name, split in before.items() if name not in out}
    assert before.keys() == first
    assert not {name for name in held if doubts.get(name, set()) & set(held)}
    assert all(kept[name] == kept.get(other, kept[name]) for name in kept for other in doubts.get(name, set()))
    assert sum(split == TEST for split in before.values()) <= round(0.3 * len(first))
    frozen = Frozen(kept, {f"{name}-clip": name for name in kept})
    after = splits.shared_out(kept.keys() | more, set(kept) | more, doubts, frozen, rules)
    assert all(after[name] == split for name, split in kept.items())
    left = splits.in_doubt(after, doubts, frozen)
    assert not left & kept.keys()
    new = {name: split for name, split in after.items() if name not in left}
    assert all(new[name] == new.get(other, new[name]) for name in new for other in doubts.get(name, set()))


def test_frozen_speakers_keep_their_clips_and_nobody_bridges_two_splits() -> None:
    frozen = Frozen({"a": TRAIN, "b": TEST}, {"a1": "a", "a2": "a", "b1": "b"})
    found, bridging = splits.settled({"a1": "x", "a2": "y", "new": "x", "other": "z"}, frozen)
    assert (found, bridging) == ({"a1": "a", "a2": "a", "new": "a", "other": "z"}, set())
    found, bridging = splits.settled({"a1": "x", "b1": "x", "new": "x"}, frozen)
    assert (found, bridging) == ({"a1": "a", "b1": "b"}, {"new"})
    rows, gone = splits.rows_of([("a1", "f"), ("new", "f")], found, frozen.speakers, set(), bridging)
    assert [row["split"] for row in rows] == [TRAIN]
    assert [row["reason"] for row in gone] == [splits.BRIDGE]


def test_frozen_splits_are_read_back_and_a_change_by_hand_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    assert splits.read_frozen(path) == Frozen({}, {})
    frozen = Frozen({"a": TRAIN, "b": TEST, "c": VALIDATION}, {"a1": "a", "b1": "b", "c1": "c"})
    splits.write_frozen(path, frozen)
    assert splits.read_frozen(path) == frozen
    told = json.loads(path.read_text())
    told[TRAIN]["speakers"]["b"] = told[TEST]["speakers"].pop("b")
    path.write_text(json.dumps(told))
    with pytest.raises(InputError, match="digest"):
        splits.read_frozen(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="holds no splits"):
        splits.read_frozen(path)


def test_no_voice_joins_two_labels_and_the_better_link_wins() -> None:
    pairs, alike = np.array([[0, 1], [1, 2], [2, 3]]), Unlike(lambda *_: 0.0, np.ones(3))
    for ranks, wanted in (([1.0, 2, 3], [0, 0, 2, 2]), ([2.0, 1, 3], [0, 1, 1, 1]), ([3.0, 2, 1], [0, 1, 1, 1])):
        found = joined(np.arange(4), pairs, np.array(ranks), alike, ["anna", "", "ben", ""])
        assert found.tolist() == wanted
    assert joined(np.array([0, 1, 1, 3]), pairs, np.ones(3), alike).tolist() == [0, 0, 0, 0]
    assert joined(np.array([0, 1, 1, 3]), pairs, np.ones(3), alike, ["a", "b", "b", "b"]).tolist() == [0, 1, 1, 1]


def test_doubts_are_links_of_two_speakers_above_the_lower_threshold() -> None:
    links = [
        {"first": a, "second": b, "doubt": doubt}
        for a, b, doubt in (("1", "2", True), ("1", "3", False), ("2", "4", True))
    ]
    assert doubts_of(links, {"1": {"a"}, "2": {"b"}, "3": {"c"}, "4": {"b"}}) == {"a": {"b"}, "b": {"a"}}
    assert doubts_of(links, {"1": {"a", "d"}, "2": {"b"}}) == {"a": {"b"}, "d": {"b"}, "b": {"a", "d"}}
    assert doubts_of(links, {"1": {"a"}}) == {}


def test_settings_are_checked_by_name_kind_and_range(tmp_path: Path) -> None:
    path = tmp_path / "more.json"
    path.write_text(json.dumps({"speakers": {"neighbours": 3}, "words": {"vocabulary": ["one", "two"]}}))
    made = settings_of({"speakers": {"neighbours": 9}}, path)
    assert (made.speakers.neighbours, made.words.vocabulary) == (3, ("one", "two"))
    wrongs: tuple[dict[str, dict[str, Any]], ...] = (
        {"speaker": {}},
        {"speakers": {"neighbors": 3}},
        {"speakers": {"neighbours": "3"}},
        {"clips": {"num_frames": 56}},
        {"speakers": {"false_links": 1.5}},
        {"splits": {"test": 1.0}},
        {"faces": {"finder": "eyes"}},
    )
    for wrong in wrongs:
        with pytest.raises(SettingsError):
            settings_of(wrong)
    path.write_text("[]")
    with pytest.raises(InputError):
        settings_of({}, path)
