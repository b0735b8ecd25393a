# SPDX-License-Identifier: Apache-2.0
"""Pairs: other words, another recording, near and far conditions; references cleaned in time; captions of facts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idlora.data.manifest import read_manifest
from idlora.data.media import Voice, read_voice, write_mp4
from idlora.errors import InputError, SettingsError
from idlora.evaluation.judges.conditions import Acoustics
from idlora.evaluation.judges.words import Heard
from idlora.mining import captions, clips, cutting, manifest, pairing
from idlora.mining.pairing import OTHER, SAME, Candidate, pairs_of
from idlora.mining.settings import CaptionRules, ClipRules, PairRules
from idlora.mining.tables import Table
from idlora.mining.words import _inside, vocabulary_of
from signals import RATE, gradient_frames, speech

WORDS = "one two three four five six seven eight nine ten".split()


def candidate(number: int, recording: str, words: str, level: float = -20.0, speaker: str = "s") -> Candidate:
    said = frozenset(words.split())
    sound = Acoustics(level, 20.0, None, np.zeros(6))
    span = (4.0 * number, 4.0 * number + 2)
    return Candidate(f"c{number:03d}", recording, recording, speaker, said, said, span, span, sound)


SAID = st.sets(st.sampled_from(WORDS), min_size=1, max_size=3)
DRAWN = st.tuples(st.integers(0, 3), SAID, st.integers(0, 2), st.floats(-60, 0))


@given(st.lists(DRAWN, min_size=1, max_size=24), st.integers(1, 6))
def test_pairs_share_no_word_come_from_another_recording_and_are_bounded(given_clips: list[Any], most: int) -> None:
    told = [
        candidate(number, f"r{recording}", " ".join(sorted(words)), level, f"s{speaker}")
        for number, (recording, words, speaker, level) in enumerate(given_clips)
    ]
    rules = PairRules(per_speaker=most, same_recording=True)
    assert all(row["relation"] == OTHER for row in pairs_of(told, PairRules(per_speaker=most))[0])
    rows, gone = pairs_of(told, rules)
    by_name = {each.clip: each for each in told}
    for row in rows:
        clip, reference = by_name[row["clip"]], by_name[row["reference"]]
        assert clip.speaker == reference.speaker == row["speaker"]
        assert not clip.words & reference.reference_words
        others = any(each.recording != clip.recording for each in told if each.speaker == clip.speaker)
        assert row["relation"] == (OTHER if others else SAME)
        assert (clip.recording != reference.recording) == (row["relation"] == OTHER)
        assert clip.clip != reference.clip
    assert max(Counter(row["speaker"] for row in rows).values(), default=0) <= most
    assert max(Counter(row["clip"] for row in rows).values(), default=0) <= 1
    # Every clip is in a pair or told to be in none.
    assert sorted([row["clip"] for row in rows] + [row["item"] for row in gone]) == sorted(by_name)
    assert pairs_of(told[::-1], rules)[0] == rows


def test_near_and_far_conditions_are_filled_alike_and_words_may_be_shared_if_asked() -> None:
    told = [candidate(number, f"r{number % 2}", "one", level=-60.0 + 2.5 * number) for number in range(24)]
    assert pairs_of(told, PairRules())[0] == []
    rows, _ = pairs_of(told, PairRules(share_words=True, per_speaker=12))
    counts = Counter(row["bin"] for row in rows)
    assert counts == {0: 4, 1: 4, 2: 4}
    by_bin = {place: [row["distance"] for row in rows if row["bin"] == place] for place in counts}
    assert max(by_bin[0]) <= min(by_bin[1]) <= max(by_bin[1]) <= min(by_bin[2])


def test_speakers_who_are_tested_have_an_easy_pair_beside_the_hard_one() -> None:
    told = [candidate(number, f"r{number % 2}", WORDS[number]) for number in range(6)]
    rows, _ = pairs_of(told, PairRules(), {"s"})
    hard, easy = ([row["clip"] for row in rows if row["relation"] == which] for which in (OTHER, SAME))
    assert sorted(hard) == sorted(easy) == [each.clip for each in told]
    assert len({row["pair"] for row in rows}) == 12
    assert all(row["file"] == row["reference_file"] for row in rows if row["relation"] == SAME)


def test_parts_of_one_video_are_no_pair_of_the_same_seconds() -> None:
    """Two spans of a list are two files of one recording, by the clock of their video."""

    def part(name: str, file: str, start: float, recording: str, words: str) -> Candidate:
        said, span = frozenset(words.split()), (start, start + 4)
        return Candidate(name, file, recording, "s", said, said, span, span, candidate(0, "r", "one").acoustics, "v")

    told = [part("a", "v", 1.0, "yt", "one two"), part("b", "v-500", 1.4, "yt", "three"), candidate(9, "w", "four")]
    rows, _ = pairs_of(told, PairRules(), {"s"})
    assert rows
    assert all("c009" in (row["clip"], row["reference"]) for row in rows)
    told[1] = part("b", "v-500", 5.0, "yt", "three")
    easy = [row for row in pairs_of(told, PairRules(), {"s"})[0] if row["relation"] == SAME]
    assert {(row["clip"], row["reference"]) for row in easy} == {("a", "b"), ("b", "a")}
    # Nor where somebody has given the parts of one video two recordings.
    told = [part("a", "v", 1.0, "x", "one two"), part("b", "v-500", 1.4, "y", "three")]
    assert pairs_of(told, PairRules())[0] == []


def test_of_very_many_clips_a_part_is_looked_through_and_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [candidate(number, f"r{number % 5}", f"w{number}", level=-60 + 0.2 * number) for number in range(300)]
    asked: list[int] = []
    true = Acoustics.distance

    def counted(one: Acoustics, other: Acoustics) -> float:
        asked.append(1)
        return true(one, other)

    monkeypatch.setattr(Acoustics, "distance", counted)
    rows, gone = pairs_of(told, PairRules())
    assert len(asked) <= 64 * 300  # not all with all
    assert Counter(row["bin"] for row in rows) == {0: 4, 1: 4, 2: 4}
    assert len({row["clip"] for row in rows} | {row["item"] for row in gone}) == 300
    assert {row["reason"] for row in gone} == {pairing.ENOUGH}
    assert pairs_of(told[::-1], PairRules())[0] == rows
    # Whose words are in all of that part finds a reference beyond it.
    pool = {each.clip for each in pairing._pool(told)}
    common = [replace(each, reference_words=frozenset(["all"])) if each.clip in pool else each for each in told]
    common[7] = replace(common[7], words=frozenset(["all"]), acoustics=told[7].acoustics)
    assert common[7].clip in {row["clip"] for row in pairs_of(common, PairRules(per_speaker=300))[0]}


def cut(
    own: list[tuple[float, float]], foreign: list[tuple[float, float]], end: float = 20.0
) -> tuple[list[Any], list[Any]]:
    track = {"track": "t", "start": 0.0, "end": end}
    active = [{"track": "t", "start": low, "end": high} for low, high in own]
    return clips.clips_of("f", [track], active, sorted(own + foreign), ClipRules(num_frames=57))


def test_clips_begin_before_speech_end_in_pauses_and_hold_nobody_else() -> None:
    found, gone = cut([(1.0, 2.0), (2.2, 2.9), (6.0, 7.5), (12.0, 13.3)], [(13.6, 14.0)])
    assert [row["start"] for row in found] == pytest.approx([0.88, 5.88, 11.31], abs=0.02)
    assert found[2]["end"] <= 13.6
    assert gone == []
    found, gone = cut([(1.0, 9.0)], [])
    assert found == []
    assert [row["reason"] for row in gone] == [clips.ENDS]
    assert [row["reason"] for row in cut([(1.0, 2.0)], [(2.2, 4.0), (0.0, 0.9)])[1]] == [clips.OTHERS]
    assert [row["reason"] for row in cut([(0.05, 2.0)], [])[1]] == [clips.BRIEF]
    assert [row["reason"] for row in cut([(1.0, 1.3)], [])[1]] == [clips.LITTLE]
    assert [row["reason"] for row in cut([(1.0, 2.1)], [], end=2.2)[1]] == [clips.BRIEF]


@given(st.lists(st.tuples(st.floats(0.05, 1.5), st.floats(0.1, 3.0), st.booleans()), min_size=1, max_size=12))
def test_no_clip_cuts_speech_or_overlaps_another(turns: list[tuple[float, float, bool]]) -> None:
    own: list[tuple[float, float]] = []
    foreign: list[tuple[float, float]] = []
    at = 0.0
    for pause, length, mine in turns:
        (own if mine else foreign).append((at + pause, at + pause + length))
        at += pause + length
    found, _ = cut(own, foreign, end=at + 0.5)
    for row in found:
        assert row["end"] - row["start"] == pytest.approx(57 / 25)
        assert not any(low < row["start"] < high or low < row["end"] < high for low, high in own)
        assert not any(low < row["end"] and high > row["start"] for low, high in foreign)
        assert not any(low < row["reference_end"] and high > row["reference_start"] for low, high in foreign)
        assert 0 <= row["reference_start"] <= row["start"] < row["end"] <= row["reference_end"]
    edges = [edge for row in found for edge in (row["start"], row["end"])]
    assert edges == sorted(edges)


def test_references_are_cleaned_in_time_and_the_original_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("pyrnnoise")
    for folder in ("clips", "references", "originals"):
        (tmp_path / folder).mkdir()
    clean = speech(4.0)
    noisy = clean + 0.02 * np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)
    write_mp4(tmp_path / "source.mp4", gradient_frames(100), 25.0, noisy, RATE)
    item = {
        "out": str(tmp_path),
        "path": str(tmp_path / "source.mp4"),
        "clip": "c",
        "file": "f",
        "as_clip": False,
        "as_reference": True,
        "start": 0.0,
        "reference_start": 0.5,
        "reference_end": 3.5,
        "clean": True,
    }
    row = cutting.cut(item)["rows"][0]
    assert (row["cleaned"], row["video"]) == (True, "")
    original, cleaned = (read_voice(tmp_path / row[name]).samples[0] for name in ("original", "reference"))
    truth = clean[0, RATE // 2 : RATE // 2 + len(original)]
    assert len(original) == len(cleaned) == 3 * RATE
    for sound in (original, cleaned):
        assert abs(_lag(sound, truth)) <= 16  # a millisecond
    quiet = [np.percentile(sound.reshape(-1, 320).std(axis=1), 5) for sound in (original, cleaned)]
    assert quiet[1] < 0.5 * quiet[0]
    assert cutting.cut({**item, "clean": False})["rows"][0]["reference"] == "originals/c.wav"


def _lag(sound: np.ndarray, truth: np.ndarray) -> int:
    """Samples by which a sound is late."""
    size = 2 * len(sound)
    found = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(truth, size)))
    return int((found.argmax() + len(sound)) % size - len(sound))


def test_a_clip_is_written_at_the_training_rate(tmp_path: Path) -> None:
    from idlora.data.media import read_video

    (tmp_path / "clips").mkdir()
    write_mp4(tmp_path / "source.mp4", gradient_frames(90, 34, 46), 30.0, speech(3.0), RATE)
    item = {
        "out": str(tmp_path),
        "path": str(tmp_path / "source.mp4"),
        "clip": "c",
        "file": "f",
        "as_clip": True,
        "as_reference": False,
        "start": 0.5,
        "frame_rate": 25.0,
        "num_frames": 57,
        "sample_rate": 16_000,
    }
    cutting.cut(item)
    clip = read_video(tmp_path / "clips" / "c.mp4")
    assert (clip.frames.shape, clip.frame_rate) == ((57, 34, 46, 3), 25.0)
    assert clip.audio is not None
    heard, said = clip.audio.samples[0], speech(3.0)[0, 8000 : 8000 + clip.audio.samples.shape[1]]
    assert np.corrcoef(heard[:30_000], said[:30_000])[0, 1] > 0.98
    with pytest.raises(InputError, match="of 57 frames"):
        cutting.cut({**item, "start": 1.5})


FACTS = {
    "hertz": 210.0,
    "spread": 0.1,
    "loudness": -15.0,
    "snr": 10.0,
    "rt60": 1.2,
    "rate": 4.0,
    "text": "river garden",
    "left": 0.1,
    "width": 0.3,
    "height": 0.6,
    "turned": 0.1,
    "clip": "c",
    "start": 0.0,
    "end": 2.0,
}


def test_captions_say_what_was_measured_and_nothing_else() -> None:
    assert captions.heard(FACTS) == "a high-pitched loud voice, speaking fast, noise around, an echoing room"
    assert captions.seen(FACTS) == "one person in close-up, on the left of the picture, facing the camera, speaking"
    middling = {**FACTS, "hertz": 160.0, "loudness": -25.0, "snr": 20.0, "rt60": 0.5, "rate": 2.5}
    assert captions.heard(middling) == "a voice"
    assert captions.heard({**FACTS, "hertz": 0.0, "rt60": None}) == "a loud voice, speaking fast, noise around"
    assert captions.seen({**FACTS, "turned": 0.5}).endswith("half turned away, speaking")
    assert captions.seen({**FACTS, "turned": 0.0}) == "one person in close-up, on the left of the picture, speaking"
    for low, high, kind in ((0.7, 0.1, "low-frequency noise"), (0.0, 0.8, "high-frequency noise"), (0.4, 0.3, "noise")):
        assert f", {kind} around" in captions.heard({**FACTS, "low": low, "high": high, "music": 0.0})
    assert "noise" not in captions.heard({**middling, "low": 0.9, "high": 0.0})
    assert captions.heard({**middling, "music": 0.07}) == "a voice, a held tone at times"
    row = captions.captions_of({"rules": vars(CaptionRules()), "clips": [FACTS], "path": ""})["rows"][0]
    assert captions.prompt_of(row).text().startswith("[VISUAL] one person in close-up")
    assert (row["speech"], row["captioner"]) == ("river garden", captions.TEMPLATE)


def test_a_captioner_by_address_is_asked_and_its_silence_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import json
    import urllib.error
    import urllib.request

    write_mp4(tmp_path / "a.mp4", gradient_frames(60), 25.0)
    asked: list[Any] = []

    def answer(request: Any, timeout: float) -> Any:
        asked.append((request.full_url, json.loads(request.data), request.headers, timeout))
        return io.BytesIO(
            json.dumps({"choices": [{"message": {"content": '"A woman\n[SOUNDS] in a room."'}}]}).encode()
        )

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    rules = CaptionRules("http://localhost:9/v1", "some-model")
    item = {"rules": vars(rules), "clips": [FACTS], "path": str(tmp_path / "a.mp4")}
    row = captions.captions_of(item)["rows"][0]
    assert (row["visual"], row["captioner"]) == ("A woman (SOUNDS) in a room.", "some-model")
    address, content, headers, _ = asked[0]
    assert (address, content["model"]) == ("http://localhost:9/v1/chat/completions", "some-model")
    assert headers["Authorization"] == "Bearer secret"
    assert content["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,")

    def refuse(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("refused")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(SettingsError, match="gave no caption"):
        captions.captions_of(item)
    codes = [400, 413, 422, 401, 403, 404, 429, 500, 503]

    def coded(request: Any, **_: Any) -> Any:
        raise urllib.error.HTTPError(request.full_url, codes.pop(0), "no", {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr(urllib.request, "urlopen", coded)
    for _ in range(3):  # this picture is refused: others go on
        assert captions.captions_of(item)["rows"][0]["captioner"] == captions.TEMPLATE
    for _ in range(6):
        with pytest.raises(SettingsError, match="gave no caption"):
            captions.captions_of(item)
    assert codes == []
    with pytest.raises(SettingsError, match="captioner-model"):
        captions.captions_of({**item, "rules": vars(CaptionRules("http://localhost:9/v1"))})


def test_words_with_times_are_taken_by_their_middle_and_others_are_heard_again() -> None:
    words = [Heard("one", 0.1, 0.5), Heard("two", 0.9, 1.3), Heard("three", 2.0, 2.4)]
    assert [each.word for each in _inside(words, 0.6, 2.1) or ()] == ["two"]
    assert _inside([Heard("one", float("nan"), float("nan"))], 0.0, 1.0) is None
    assert vocabulary_of("One two\none") == ("one", "two")
    with pytest.raises(InputError):
        vocabulary_of(" \n")


def test_the_manifest_is_one_that_precompute_reads(tmp_path: Path) -> None:
    rights = {"recording": "r", "source": "x", "licence": "CC0", "consent": "given"}
    rows: dict[str, list[dict[str, Any]]] = {
        "files": [{"file": "f", **rights}, {"file": "g", **rights}],
        "splits": [{"clip": "c", "split": "test", "speaker": "s"}],
        "media": [
            {"clip": "c", "video": "clips/c.mp4", "reference": "", "original": "", "cleaned": False},
            {"clip": "d", "video": "", "reference": "references/d.wav", "original": "originals/d.wav", "cleaned": True},
        ],
        "captions": [{"clip": "c", "visual": "one person", "speech": "river", "sounds": "", "captioner": "x"}],
        "pairs": [
            {
                "pair": "p",
                "clip": "c",
                "reference": "d",
                "file": "f",
                "reference_file": "g",
                "speaker": "s",
                "relation": OTHER,
                "distance": 1.0,
                "bin": 2,
            }
        ],
    }
    lines = manifest.lines_of({name: Table(name, "", own) for name, own in rows.items()})
    manifest.write_manifests(tmp_path, lines)
    pairs, faults = read_manifest(tmp_path / "manifest.jsonl")
    assert faults == []
    assert (pairs[0].video, pairs[0].reference) == (tmp_path / "clips/c.mp4", tmp_path / "references/d.wav")
    assert (pairs[0].caption, pairs[0].split) == ("[VISUAL] one person [SPEECH] river", "test")
    assert lines[0]["extra"]["consent"] == lines[0]["extra"]["reference_consent"] == "given"
    assert (tmp_path / "test-hard.jsonl").read_text() == (tmp_path / "manifest.jsonl").read_text()
    assert (tmp_path / "test-easy.jsonl").read_text() == ""
    assert pairing.COLUMNS.keys() >= {"relation", "bin"}
    assert Voice(np.zeros((1, 4), np.float32), 4).seconds == 1
