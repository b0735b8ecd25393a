# SPDX-License-Identifier: Apache-2.0
"""Speakers of many recordings, known or not: found whole, in one split, within bounds of memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from idlora.mining import likeness, pairing, quality, splits
from idlora.mining.chain import Chain
from idlora.mining.grouping import GROUPS, grouped, labelled
from idlora.mining.likeness import Likeness
from idlora.mining.run import shared
from idlora.mining.settings import MiningSettings, SpeakerRules, settings_of
from idlora.mining.splits import BRIDGE, TEST, TRAIN, Frozen, people_of, shared_by_people
from idlora.mining.tables import Row, Table
from idlora.mining.thresholds import Law
from idlora.mining.workshop import Workshop

Tables = tuple[list[Row], list[Row], list[Row]]
SPLITS = settings_of({"splits": {"validation": 0.2, "test": 0.3}})


def voices(num_speakers: int, recordings: int, files: int = 1, *, known: bool = False, noise: float = 0.25) -> Tables:
    """Tables of clips, two in each file of each recording of each speaker."""
    rng, size = np.random.default_rng(num_speakers), 24
    tables: Tables = ([], [], [])
    for speaker in range(num_speakers):
        own = rng.standard_normal(size)
        for number in range(recordings):
            room, recording = 0.3 * rng.standard_normal(size) * (np.arange(size) < 4), f"{speaker:03d}-{number:02d}"
            for part in range(files):
                file, label = f"{recording}-{part}", f"id{speaker}" * known
                tables[0].append({"file": file, "recording": recording, "label": label})
                for clip in range(2):
                    heard = own + room + noise * rng.standard_normal((3, size))
                    heard = heard + 3.0 * rng.standard_normal((3, 1)) * np.eye(size)[0]
                    heard /= np.linalg.norm(heard, axis=1, keepdims=True)
                    name = f"{file}-{clip}"
                    tables[1].append({"clip": name, "file": file, "track": f"{file}-t"})
                    tables[2].append({"clip": name, "vector": heard[0].tolist(), "copies": heard[1:].ravel().tolist()})
    return tables


def split_of(files: list[Row], clips: list[Row], found: list[Row], links: list[Row]) -> list[Row]:
    tables = {
        "words": Table("words", "", [{"clip": row["clip"]} for row in clips]),
        "speakers": Table("speakers", "", found),
        "files": Table("files", "", files),
        "links": Table("links", "", links),
    }
    return shared(tables, Frozen({}, {}), SPLITS)[0]


@pytest.mark.parametrize(("num_speakers", "recordings"), [(40, 12), (30, 20), (20, 30)])
def test_speakers_of_many_recordings_are_found_whole(num_speakers: int, recordings: int) -> None:
    found = grouped(*voices(num_speakers, recordings), SpeakerRules())
    whole: dict[str, set[str]] = {}
    mixed: dict[str, set[str]] = {}
    for row in found.clips:
        whole.setdefault(row["clip"][:3], set()).add(row["speaker"])
        mixed.setdefault(row["speaker"], set()).add(row["clip"][:3])
    assert max(map(len, mixed.values())) == 1
    assert np.mean([len(each) == 1 for each in whole.values()]) >= 0.9


def test_the_near_tail_of_one_speaker_is_not_taken_for_strangers() -> None:
    """The nearest pairs of forty recordings each are all of one speaker, and grow in number as a power too."""
    rng = np.random.default_rng(1)
    points = np.repeat(6 * rng.standard_normal((12, 16)), 40, axis=0) + rng.standard_normal((480, 16))
    rows, columns = np.triu_indices(480, 1)
    distances = np.linalg.norm(points[rows] - points[columns], axis=1)
    own = float(np.median(distances[rows // 40 == columns // 40]))
    assert Law.of(distances, 480).strangers(np.array([own]))[0] > 1  # misread
    law = Law.of(distances, 480, 0.9 * own)
    assert law.settled
    assert law.strangers(np.array([own]))[0] < 0.01


def test_known_speakers_are_whole_and_in_one_split() -> None:
    files, clips, vectors = voices(16, 6, 5, known=True, noise=0.7)
    found = grouped(files, clips, vectors, SpeakerRules())
    assert len({(row["clip"][:3], row["speaker"]) for row in found.clips}) == 16
    nameless = grouped([{**row, "label": ""} for row in files], clips, vectors, SpeakerRules())
    assert len({row["speaker"] for row in nameless.clips}) > 20  # the labels it is that join them
    where: dict[str, set[str]] = {}
    for row in split_of(files, clips, found.clips, found.links):
        where.setdefault(row["clip"][:3], set()).add(row["split"])
    assert len(where) == 16
    assert max(map(len, where.values())) == 1


def test_a_guest_in_the_files_of_a_label_is_a_speaker_apart_in_the_labels_split() -> None:
    """Ten voices of a label of which three are somebody else's: two speakers, one split."""
    model = Likeness(np.zeros(4), np.eye(4), np.full(4, 9.0))
    rng = np.random.default_rng(2)
    means = np.repeat([[6.0, 0, 0, 0], [0, -6.0, 0, 0]], [7, 3], axis=0) + 0.5 * rng.standard_normal((10, 4))
    groups = labelled(["anna"] * 10, np.arange(10), model, means)
    assert groups.tolist() == [0] * 7 + [7] * 3
    assert labelled(["anna"] * 7 + [""] * 3, np.arange(10), model, means).tolist() == [0] * 7 + [7, 8, 9]
    assert len(set(labelled(["anna"] * 2, np.zeros(2, np.int64), model, means[:2]).tolist())) == 2  # of one file
    files: list[Row] = []
    clips: list[Row] = []
    for label in range(20):
        for number in range(4):  # of every label two speakers, each in two recordings
            file = f"{label:02d}-{number}"
            files.append({"file": file, "recording": file, "label": f"id{label}"})
            clips.append({"clip": file, "file": file, "voice": file, "speaker": f"s-{label:02d}-{number // 2}"})
    rows = split_of(files, clips, clips, [])
    assert len({row["speaker"] for row in rows}) == 40
    assert len({(row["clip"][:2], row["split"]) for row in rows}) == 20


def test_speakers_of_one_label_are_one_person_and_torn_ones_get_nobody_new() -> None:
    labels = {"1": "x", "2": "x", "3": "", "4": "y", "5": "x"}
    speakers = {"1": "a", "2": "b", "3": "c", "4": "d", "5": "d"}
    people = people_of(labels, speakers)
    assert people == {"a": "a", "b": "a", "c": "c", "d": "a"}
    frozen = Frozen({"a": TRAIN, "b": TEST}, {"1": "a", "2": "b"})
    found, torn = shared_by_people(people, set("abcd"), {}, frozen, SPLITS.splits)
    assert (found["a"], found["b"], torn) == (TRAIN, TEST, {"d"})
    found, torn = shared_by_people(people, set("abcd"), {}, Frozen({"a": TEST}, {"1": "a"}), SPLITS.splits)
    assert ({found[name] for name in "abd"}, torn) == ({TEST}, set())
    tables = {
        "words": [{"clip": clip} for clip in speakers],
        "speakers": [{"clip": c, "file": c, "voice": c, "speaker": who} for c, who in speakers.items()],
        "files": [{"file": c, "recording": c, "label": label} for c, label in labels.items()],
        "links": [],
    }
    rows, gone = shared({name: Table(name, "", own) for name, own in tables.items()}, frozen, SPLITS)
    assert {row["item"]: row["reason"] for row in gone} == {"4": BRIDGE, "5": BRIDGE}
    assert {row["clip"] for row in rows} == {"1", "2", "3"}


def test_two_labels_are_never_one_speaker_through_a_voice_without_one() -> None:
    files, clips, vectors = voices(30, 3)
    for row in files:
        who, number, _ = row["file"].split("-")
        row["label"] = {"00": f"anna-{who}", "01": "", "02": f"ben-{who}"}[number]
    named = {row["file"]: row["label"] for row in files}
    held: dict[str, set[str]] = {}
    found = grouped(files, clips, vectors, SpeakerRules()).clips
    for row in found:
        held.setdefault(row["speaker"], set()).update({named[row["file"]]} - {""})
    assert max(map(len, held.values())) == 1
    assert (
        sum(len({row["speaker"] for row in found if row["file"].startswith(f"{who:03d}")}) == 2 for who in range(30))
        > 20
    )


def test_a_doubt_holds_though_the_clip_that_names_its_voice_has_no_words() -> None:
    files: list[Row] = []
    found: list[Row] = []
    for who in range(10):
        for number in range(2):
            file = f"{who:02d}-{number}"
            files.append({"file": file, "recording": file, "label": ""})
            own = {"file": file, "voice": f"{file}-0", "speaker": f"s-{who:02d}"}
            found += [{"clip": f"{file}-{clip}", **own} for clip in range(2)]
    links = [
        {"first": f"03-{a}-0", "second": f"{who:02d}-{b}-0", "doubt": True}
        for who in range(10)
        for a in range(2)
        for b in range(2)
        if who != 3
    ]
    heard = [row for row in found if row["clip"] not in ("03-0-0", "03-1-0")]
    rows = split_of(files, heard, found, links)
    assert len({row["split"] for row in rows}) > 1
    assert "s-03" not in {row["speaker"] for row in rows}  # it may be anybody, so it is left out


def test_clips_of_who_is_heard_once_are_told(tmp_path: Path) -> None:
    chain = Chain(Workshop(tmp_path), MiningSettings())
    chain.shop.prepare()
    rows = [
        {"clip": c, "file": f, "voice": c, "speaker": s}
        for c, f, s in (("1", "f", "a"), ("2", "g", "a"), ("3", "g", "b"))
    ]
    files = Table("files", "1", [{"file": name, "recording": name} for name in "fg"])
    kept = chain.pairable(files, Table("speakers", "2", rows))
    assert [row["clip"] for row in kept.rows] == ["1", "2"]
    assert [(row["item"], row["reason"]) for row in kept.dropped] == [("3", pairing.ALONE)]
    assert kept.rows[0].keys() == GROUPS.keys()
    same = Chain(chain.shop, settings_of({"pairs": {"same_recording": True}}))
    assert len(same.pairable(files, Table("speakers", "2", rows)).rows) == 3
    assert splits.COLUMNS.keys() >= {"clip", "speaker"}


def test_noise_is_low_or_high_by_the_pauses_alone() -> None:
    rng = np.random.default_rng(4)
    rumble = np.cumsum(rng.standard_normal(32_000))
    rumble -= np.convolve(rumble, np.ones(800) / 800, "same")
    hiss = np.diff(rng.standard_normal(32_001))
    for sound, place in ((rumble, 0), (hiss, 1)):
        clip = (0.01 * sound / sound.std()).astype(np.float32)
        clip[8000:24_000] += np.sin(np.arange(16_000) * 0.3).astype(np.float32)  # of speech nothing is counted
        told = quality.background(clip, [(0.49, 1.51)])
        assert told is not None
        assert told[place] > 0.5 > told[1 - place]
        assert quality.background(clip, [(0.0, 1.9)]) is None


def test_the_noise_is_learnt_within_bounds_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory of telling classes apart is that of a part of them, and few classes are all looked at."""
    rng = np.random.default_rng(3)
    classes = np.repeat(np.arange(6000), 2)
    vectors = rng.standard_normal((6000, 8))[classes] + 0.3 * rng.standard_normal((12_000, 8))
    model = Likeness.learnt(vectors[:600], classes[:600], classes[:600])
    tracemalloc.start()
    found = likeness._confusions(model, vectors, classes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6  # all with all are 288 MB
    few = likeness._confusions(model, vectors[:2000], classes[:2000])
    monkeypatch.setattr(likeness, "_MOST_CLASSES", 10**9)
    assert likeness._confusions(model, vectors[:2000], classes[:2000]) == few
    assert likeness._confusions(model, vectors, classes) == pytest.approx(found, rel=0.3)
