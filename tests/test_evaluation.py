# SPDX-License-Identifier: Apache-2.0
"""Judges hear true clips rightly, statistics cover the truth, and the protocol scores a perfect model as perfect."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from idlora.data.media import Voice
from idlora.data.prompt import parse_prompt
from idlora.data.world.clip import draw_reference, render_picture, render_sound
from idlora.data.world.voice import SAMPLE_RATE, VOCABULARY
from idlora.errors import InputError, SettingsError
from idlora.evaluation import protocol
from idlora.evaluation.classifier import Ridge, sound_features
from idlora.evaluation.clips import Plan, enrolment, first_frame, reference_sound, target, true_sound
from idlora.evaluation.codec_rows import psnr
from idlora.evaluation.judges import SpeakerJudge, WordJudge, lip_correlation, pearson, wer, word_errors
from idlora.evaluation.report import GOALS, Row, table
from idlora.evaluation.scoring import Judges
from idlora.evaluation.statistics import (
    Estimate,
)
from idlora.evaluation.store import Store
from idlora.evaluation.voice_rows import Clip, Subject, other_speaker
from idlora.pipeline import Request, Settings

Sound = NDArray[np.float32]
Frames = NDArray[np.uint8]
WORDS = st.lists(st.sampled_from(VOCABULARY[:4]), max_size=6)
PLAN = Plan(speakers=3, prompts=1, enrolments=1, batch=2, world_clips=60)


@pytest.fixture(scope="session")
def judges() -> Judges:
    return Judges()


# Judges


def test_two_clips_of_a_speaker_are_nearer_than_clips_of_two(judges: Judges) -> None:
    first, second = ([true_sound(target("test", s, take)) for s in range(3)] for take in (0, 1))
    near = [[judges.speaker.similarity(a, SAMPLE_RATE, b, SAMPLE_RATE) for b in second] for a in first]
    same = np.diag(near)
    assert same.mean() > np.mean(near) + 0.1
    assert same.mean() > 0.75


def test_a_voice_is_the_same_at_any_level_and_rate(judges: Judges) -> None:
    from scipy.signal import resample_poly

    sound = true_sound(target("test", 0, 0))
    embedding = judges.speaker.embed(sound, SAMPLE_RATE)
    assert embedding.shape == (256,)
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    assert judges.speaker.similarity(sound, SAMPLE_RATE, sound * np.float32(0.3), SAMPLE_RATE) > 0.98
    faster = resample_poly(sound, 3, 1).astype(np.float32)
    assert judges.speaker.similarity(sound, SAMPLE_RATE, faster, 3 * SAMPLE_RATE) > 0.98
    assert judges.speaker.similarity(sound, SAMPLE_RATE, faster, SAMPLE_RATE) < 0.9


def test_the_speaker_judge_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    SpeakerJudge().embed(true_sound(target("test", 0, 0)), SAMPLE_RATE)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sound", [np.zeros(8000, np.float32), np.ones((2, 8000), np.float32), np.full(9, np.nan)])
def test_what_is_no_voice_is_refused(judges: Judges, sound: Sound) -> None:
    with pytest.raises(InputError, match=r"silent|level|mono"):
        judges.speaker.embed(sound, SAMPLE_RATE)


def test_words_of_true_clips_are_heard_in_their_order(judges: Judges) -> None:
    specs = [target("test", speaker, 0) for speaker in range(6)]
    heard = [judges.word.words(true_sound(spec), SAMPLE_RATE) for spec in specs]
    errors = [word_errors(spec.words, words) for spec, words in zip(specs, heard, strict=True)]
    backwards = [word_errors(spec.words[::-1], words) for spec, words in zip(specs, heard, strict=True)]
    assert sum(errors) <= 0.2 * 3 * len(specs)
    assert sum(backwards) > 0.5 * 3 * len(specs)


def test_nothing_is_heard_in_silence(judges: Judges) -> None:
    assert judges.word.words(np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE) == []


def test_the_word_judge_knows_its_vocabulary_alone() -> None:
    spec = target("test", 0, 0)
    assert set(WordJudge(spec.words[:2]).words(true_sound(spec), SAMPLE_RATE)) <= set(spec.words[:2])


def levenshtein(a: Sequence[str], b: Sequence[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@given(WORDS.filter(bool), WORDS)
def test_word_errors_are_the_edit_distance(reference: list[str], hypothesis: list[str]) -> None:
    assert word_errors(reference, hypothesis) == levenshtein(reference, hypothesis)
    assert wer(reference, hypothesis) == levenshtein(reference, hypothesis) / len(reference)


def test_a_rate_without_reference_is_refused() -> None:
    with pytest.raises(InputError, match="no words"):
        wer([], ["one"])


def test_lips_of_a_true_clip_follow_its_sound_and_no_other() -> None:
    spec, other = target("test", 0, 0), target("test", 1, 0)
    sound, shifted = true_sound(spec), np.roll(true_sound(other), SAMPLE_RATE // 3)
    frames = render_picture(spec, render_sound(spec))
    assert lip_correlation(frames, sound, SAMPLE_RATE) > 0.85
    assert lip_correlation(frames, shifted, SAMPLE_RATE) < 0.5
    assert lip_correlation(np.repeat(frames[:1], 57, axis=0), sound, SAMPLE_RATE) == 0


def test_pearson_is_numpys() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 50))
    assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert pearson(a, 3 - 2 * a) == pytest.approx(-1)


# Statistics


def test_targets_are_quiet_and_unseen_and_enrolments_are_others() -> None:
    asked, enrolled = target("test", 3, 1), enrolment("test", 3, 0)
    assert (asked.style, asked.place, asked.object) == ("calm", "quiet room", "none")
    assert asked.voice == enrolled.voice
    assert asked.face != enrolled.face
    assert np.array_equal(first_frame(asked), render_picture(asked, render_sound(asked))[0])


def test_a_reference_has_other_words_and_fills_its_seconds() -> None:
    asked, places = target("test", 0, 0), set()
    for seed in range(20):
        spec = draw_reference(np.random.default_rng(seed), asked.voice, 3.0, asked.words)
        assert not set(spec.words) & set(asked.words)
        assert len(set(spec.words)) == 4
        places.add(spec.place)
    assert len(places) == 4
    sound = reference_sound("test", 0, asked, 3.0)
    assert sound.shape == (3 * SAMPLE_RATE,)
    assert np.array_equal(sound, reference_sound("test", 0, asked, 3.0))


@pytest.mark.parametrize("number", [2, 3, 7, 40])
def test_everybody_gets_another_speakers_reference(number: int) -> None:
    pairs = [[other_speaker(index, prompt, number) for index in range(number)] for prompt in range(4)]
    for others in pairs:
        assert sorted(others) == list(range(number))
        assert all(index != other for index, other in enumerate(others))
    assert number == 2 or pairs[0] != pairs[1]


@pytest.mark.parametrize("wrong", [{"speakers": 1}, {"speakers": 41}, {"prompts": 0}, {"reference_seconds": 9.0}])
def test_a_plan_out_of_range_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="it must be"):
        Plan(**wrong)


# Classifier


def test_ridge_separates_what_a_line_can() -> None:
    rng = np.random.default_rng(0)
    labels = ["a", "b", "c"] * 40
    features = np.array([[("a", "b", "c").index(x) == i for i in range(3)] for x in labels]) + rng.normal(
        0, 0.1, (120, 3)
    )
    ridge = Ridge.fit(features[:90], labels[:90])
    assert ridge.predict(features[90:]) == labels[90:]
    shuffled = Ridge.fit(features[:90], list(rng.permutation(labels[:90])))
    assert np.mean(np.array(shuffled.predict(features[90:])) == labels[90:]) < 0.9


def test_features_tell_rain_from_a_quiet_room() -> None:
    specs = [replace(target("train", index, 0), place=place) for index in range(16) for place in ("rain", "quiet room")]
    features = np.stack([sound_features(true_sound(spec)) for spec in specs])
    ridge = Ridge.fit(features[:20], [spec.place for spec in specs[:20]])
    assert ridge.predict(features[20:]) == [spec.place for spec in specs[20:]]


# Protocol


class Untouched:
    """A codec that loses nothing."""

    def sound(self, samples: Sound) -> tuple[Sound, int]:
        return samples, SAMPLE_RATE

    def picture(self, frames: Frames) -> Frames:
        return frames


@dataclass(frozen=True)
class TrueClip:
    video: Frames
    audio: Sound
    sample_rate: int = SAMPLE_RATE


@cache
def _reference(speaker: int, index: int, prompt: int) -> Sound:
    return reference_sound("test", speaker, target("test", index, prompt), PLAN.reference_seconds)


@dataclass
class Perfect:
    """A model that speaks what is asked in the voice that it recognises in the reference, else in a fixed one.

    Without its adapter it speaks backwards.
    """

    requests: list[Request] = field(default_factory=list)
    adapted: bool = True
    fail_at: int = 10**6

    def __call__(self, requests: Sequence[Request]) -> list[Clip]:
        if len(self.requests) + len(requests) > self.fail_at:
            raise KeyboardInterrupt
        self.requests += requests
        return [self._clip(request) for request in requests]

    @contextmanager
    def base(self) -> Iterator[None]:
        self.adapted = False
        yield
        self.adapted = True

    def _clip(self, request: Request) -> Clip:
        assert self.adapted == (request.voice is not None)
        prompt, index = divmod(request.settings.seed, 1000)
        asked = target("test", index, prompt)
        assert parse_prompt(request.prompt).speech.split() == list(asked.words)
        voice = target("test", 39 if request.voice is None else self._whose(request, index, prompt), 0).voice
        spec = replace(asked, voice=voice, words=asked.words if self.adapted else asked.words[::-1])
        sound = render_sound(spec)
        return TrueClip(render_picture(spec, sound), np.stack([sound.samples] * 2).astype(np.float32))

    def _whose(self, request: Request, index: int, prompt: int) -> int:
        assert isinstance(request.voice, Voice)
        heard = [_reference(s, index, prompt) for s in range(PLAN.speakers)]
        return next(s for s, sound in enumerate(heard) if np.array_equal(sound, request.voice.samples[0]))

    def subject(self, settings: Settings | None = None) -> Subject:
        return Subject(self, Untouched(), settings or Settings(), {"name": "perfect"}, self.base)


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory, judges: Judges) -> tuple[Path, list[Row]]:
    out = tmp_path_factory.mktemp("evaluated")
    return out, protocol.run(Perfect().subject(), out, ("codec", "voice", "wrong"), PLAN, judges)


def value(rows: Sequence[Row], measure: str) -> float:
    return next(row.estimate.value for row in rows if row.measure == measure)


def test_a_perfect_model_has_the_whole_share_and_a_wrong_reference_redirects_it(
    evaluated: tuple[Path, list[Row]],
) -> None:
    _, rows = evaluated
    assert value(rows, "voice share") == pytest.approx(1, abs=1e-4)
    assert value(rows, "top-1") == value(rows, "codec top-1") == 1
    assert value(rows, "WER") == value(rows, "codec WER") < value(rows, "floor: WER")
    assert value(rows, "lip correlation") > 0.85
    assert value(rows, "floor: margin") < 0.1 < value(rows, "margin")
    assert value(rows, "wrong reference: margin") < 0 < value(rows, "wrong reference: margin to its own speaker")
    assert value(rows, "video PSNR") == 100
    assert value(rows, "codec mouth opening r") > 0.95


def test_results_say_what_they_rest_on(evaluated: tuple[Path, list[Row]]) -> None:
    out, rows = evaluated
    results = json.loads((out / "results.json").read_text())
    assert [row["measure"] for row in results["rows"]] == [row.measure for row in rows]
    assert {"measure", "value", "interval", "n", "must", "aim", "met"} == set(results["rows"][0])
    assert all(row["interval"][0] <= row["value"] <= row["interval"][1] for row in results["rows"])
    assert results["settings"]["guidance"]["identity"]["scale"] == 1
    assert results["protocol"]["speakers"] == 3
    assert {judge["name"] for judge in results["judges"]} == {"Resemblyzer", "pocketsphinx en-US"}
    assert "torch" in results["versions"]


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, judges: Judges, evaluated: tuple[Path, list[Row]]
) -> None:
    scores = tmp_path / "scores.jsonl"
    known = (evaluated[0] / "scores.jsonl").read_text().splitlines(keepends=True)
    scores.write_text("".join([known[0], *(line for line in known if "enrolment/" in line or "codec/" in line)]))
    with pytest.raises(KeyboardInterrupt):
        protocol.run(Perfect(fail_at=2).subject(), tmp_path, ("voice",), PLAN, judges)
    scores.write_text(scores.read_text()[:-20])  # the last line was being written
    second = Perfect()
    rows = protocol.run(second.subject(), tmp_path, ("voice",), PLAN, judges)
    assert len(second.requests) == 2 * PLAN.speakers - 1
    assert value(rows, "voice share") == value(evaluated[1], "voice share")
    third = Perfect()
    assert protocol.run(third.subject(), tmp_path, ("voice",), PLAN, judges) == rows
    assert not third.requests


def test_scores_of_other_settings_are_not_mixed(evaluated: tuple[Path, list[Row]], judges: Judges) -> None:
    other = Settings(num_inference_steps=3)
    with pytest.raises(SettingsError, match="another model or other settings"):
        protocol.run(Perfect().subject(other), evaluated[0], ("voice",), PLAN, judges)


def test_an_unknown_group_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="choose from world, codec"):
        protocol.run(Perfect().subject(), tmp_path, ("voices",))
    assert not list(tmp_path.iterdir())


def test_a_store_gives_back_what_was_put(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "s.jsonl", "me")
    assert store.recall("a", lambda: {"x": 1.5}) == {"x": 1.5}
    again = Store(store.path, "me")
    assert again.recall("a", lambda: pytest.fail("made twice")) == {"x": 1.5}
    assert "b" not in again


# Report


def test_goals_are_read_in_their_direction() -> None:
    low, high = (Row("WER", Estimate(v, v, v), 1).to_json() for v in (0.39, 0.41))
    assert (low["met"], high["met"], low["must"]) == (True, False, "<= 0.4")
    assert Row("top-1", Estimate(0.39, 0, 1), 1).to_json()["met"] is False
    assert Row("floor: WER", Estimate(0.9, 0, 1), 1).to_json()["must"] is None
    for goal in GOALS.values():
        assert goal.met(goal.aim)


def test_the_table_has_a_line_for_each_row() -> None:
    lines = table([Row("WER", Estimate(0.5, 0.4, 0.6), 80), Row("cos", Estimate(0.8, 0.7, 0.9), 80)]).splitlines()
    assert lines[2] == "| WER | 0.500 (missed) | 0.400 to 0.600 | 80 | <= 0.4 | <= 0.25 |"
    assert lines[3].endswith("| reported | - |")


def test_psnr_by_hand() -> None:
    black = np.zeros((1, 4, 4, 3), np.uint8)
    assert psnr(black, black) == 100
    assert psnr(black, black + 255) == pytest.approx(0)
    assert psnr(black, black + 51) == pytest.approx(13.979, abs=1e-3)
