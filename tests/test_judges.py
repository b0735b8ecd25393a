# SPDX-License-Identifier: Apache-2.0
"""Judges by known answers: equal clips, shuffled pairs, planted delays, planted words, another voice at the start."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from idlora.data.prompt import Prompt
from idlora.data.world.captions import prompt_of
from idlora.data.world.clip import spoken
from idlora.data.world.face import Face
from idlora.data.world.look import portrait
from idlora.data.world.speakers import clip as clip_of
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import InputError, MediaError
from idlora.evaluation.clips import enrolment, target, true_sound
from idlora.evaluation.judges import Footage, JudgeRecord, Reference, SpeakerJudge, WordJudge
from idlora.evaluation.judges.conditions import ConditionsJudge
from idlora.evaluation.judges.levels import LevelsJudge
from idlora.evaluation.judges.lips import LipJudge, align, opening_of
from idlora.evaluation.judges.onset import ONSET, OnsetJudge, split_errors
from idlora.evaluation.judges.voices import DriftJudge, SpeakerSimilarity
from idlora.evaluation.judges.words import Heard, WordsJudge, letter_errors, spoken_words
from idlora.evaluation.judges.world_faces import WorldFacesJudge
from idlora.evaluation.judges.world_sounds import WorldSoundsJudge
from judged_clips import footage, heard, sound_of

Sound = NDArray[np.float32]
NUM = 8


@pytest.fixture(scope="module")
def voices() -> SpeakerJudge:
    return SpeakerJudge()


@pytest.fixture(scope="module")
def words() -> WordsJudge:
    return WordsJudge(WordJudge(), WordJudge())


# Voices


def test_an_identical_clip_is_1_and_shuffled_pairs_are_as_different_speakers(voices: SpeakerJudge) -> None:
    judge = SpeakerSimilarity(voices)
    assert judge.score(footage(0), Reference(footage(0)), None)["similarity"] == pytest.approx(1, abs=1e-5)
    first, second = ([voices.embed(sound_of(index, take), SAMPLE_RATE) for index in range(NUM)] for take in (0, 1))
    table = np.array(first) @ np.array(second).T
    different = table[~np.eye(NUM, dtype=bool)].mean()
    turned = [
        judge.score(heard(sound_of(i)), Reference(heard(sound_of((i + 3) % NUM, 1))), None)["similarity"]
        for i in range(NUM)
    ]
    assert np.mean(turned) == pytest.approx(different, abs=0.05)
    assert np.diag(table).mean() > different + 0.1


def test_the_true_clip_is_a_second_measure(voices: SpeakerJudge) -> None:
    reference = Reference(heard(sound_of(1, 1)), truth=heard(sound_of(1)))
    values = SpeakerSimilarity(voices).score(heard(sound_of(1)), reference, None)
    assert values["truth"] == pytest.approx(1, abs=1e-5)
    assert values["similarity"] < 0.99


def test_the_reference_and_the_true_clip_do_not_need_one_another(voices: SpeakerJudge) -> None:
    judge, clip, truth = SpeakerSimilarity(voices), heard(sound_of(1)), heard(sound_of(1, 1))
    whole = judge.score(clip, Reference(heard(sound_of(1, 2)), truth=truth), None)
    noise = heard(0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32))
    for voice, reason in ((None, "no reference voice"), (noise, "speech are found"), (heard(0 * sound_of(1)), "level")):
        values = judge.score(clip, Reference(voice, truth=truth), None)
        assert values.keys() == {"truth", "similarity_unjudged"}
        assert values["truth"] == whole["truth"]
        assert reason in values["similarity_unjudged"]
        with pytest.raises(InputError, match=reason):
            judge.score(clip, Reference(voice, truth=noise), None)
    values = judge.score(clip, Reference(heard(sound_of(1, 2)), truth=noise), None)
    assert values["similarity"] == whole["similarity"]
    assert "speech are found" in values["truth_unjudged"]


def test_a_voice_that_changes_drifts(voices: SpeakerJudge) -> None:
    own = np.concatenate([sound_of(0), sound_of(0, 1)])
    changing = np.concatenate([sound_of(0), sound_of(5, 1)])
    judge, reference = DriftJudge(voices), Reference(heard(np.asarray(true_sound(enrolment("test", 0, 0)))))
    steady, drifting = (judge.score(heard(sound), reference, None) for sound in (own, changing))
    assert drifting["slope"] < steady["slope"] - 0.02
    assert drifting["lowest"] < steady["lowest"]
    assert len(steady["windows"]) == 8
    with pytest.raises(InputError, match=r"at least 1.5 s"):
        judge.score(heard(sound_of(0)[: SAMPLE_RATE * 4 // 3]), reference, None)


# The start of a clip


def planted(index: int, seconds: float = 0.4) -> Sound:
    """A clip whose first word is spoken by another voice."""
    sound, other = sound_of(index).copy(), sound_of((index + 5) % 40, 1)
    start, length = round(0.12 * SAMPLE_RATE), round(seconds * SAMPLE_RATE)
    sound[start : start + length] = other[:length]
    return sound


def test_another_voice_in_the_first_four_tenths_is_found(voices: SpeakerJudge, words: WordsJudge) -> None:
    judge = OnsetJudge(voices, words)
    clean, wrong = [], []
    for index in range(NUM):
        reference, prompt = Reference(heard(sound_of(index, 2))), prompt_of(target("test", index, 0))
        clean.append(judge.score(heard(sound_of(index)), reference, prompt))
        wrong.append(judge.score(heard(planted(index)), reference, prompt))
    for name, least in (("gap", 0.06), ("reference_gap", 0.1)):
        falls = np.array([a[name] - b[name] for a, b in zip(clean, wrong, strict=True)])
        assert falls.mean() > least, name
        assert falls.mean() > 3 * falls.std(ddof=1) / np.sqrt(NUM), name
    assert sum(values["onset_errors"] for values in wrong) >= NUM / 2
    assert sum(values["onset_errors"] for values in clean) <= NUM / 4
    assert all(values["onset_words"] + values["rest_words"] == 3 for values in clean)


def said(*words: tuple[str, float]) -> list[Heard]:
    return [Heard(word, start, start + 0.3) for word, start in words]


def test_errors_lie_where_they_are_heard() -> None:
    asked = ["one", "two", "three"]
    right = said(("one", 0.1), ("two", 0.8), ("three", 1.5))
    assert [part.errors for part in split_errors(asked, right, ONSET, 2.28)] == [0, 0]
    first, rest = split_errors(asked, said(("um", 0.0), ("one", 0.3), ("two", 0.8), ("three", 1.5)), ONSET, 2.28)
    assert (first.errors, first.words, rest.errors, rest.words) == (1, 1, 0, 2)
    first, rest = split_errors(asked, said(("two", 0.8), ("three", 1.5)), ONSET, 2.28)
    assert (first.errors, first.words, rest.errors) == (1, 1, 0)
    first, rest = split_errors(asked, said(("one", 0.1), ("two", 0.8), ("free", 1.5)), ONSET, 2.28)
    assert (first.errors, rest.errors) == (0, 1)


def test_missing_words_are_spread_over_the_time_they_lack() -> None:
    asked = ["one", "two", "three"]
    for words, seconds, onset, rest in (
        ([], 2.25, (1, 1), (2, 2)),  # at 0.375, 1.125 and 1.875 s
        ([], 0.5, (3, 3), (0, 0)),
        ([], 10.0, (0, 0), (3, 3)),  # a twentieth of the clip is no word of three
        (said(("three", 1.5)), 2.25, (1, 1), (1, 2)),
        (said(("one", 0.0), ("three", 1.5)), 2.25, (0, 1), (1, 2)),  # at 0.9 s, not where the word before it ended
        (said(("one", 0.0)), 2.25, (0, 1), (2, 2)),
    ):
        first, later = split_errors(asked, words, ONSET, seconds)
        assert ((first.errors, first.words), (later.errors, later.words)) == (onset, rest), words


def test_missing_words_of_true_clips_lie_on_their_side() -> None:
    for index in range(30):
        spec = clip_of("test", index)
        spans = [Heard(word, *span) for word, span in zip(spec.words, spoken(spec), strict=True)]
        for missing in ({0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}, {0, 1, 2}):
            first, rest = split_errors(spec.words, [w for i, w in enumerate(spans) if i not in missing], ONSET, 2.28)
            early = sum(spans[place].start < ONSET for place in missing)
            assert (first.errors, rest.errors) == (early, len(missing) - early)


# Words


def test_planted_word_errors_are_counted(words: WordsJudge) -> None:
    index = 4  # whom the listener understands
    spec = target("test", index, 0)
    voice = heard(sound_of(index))
    right = words.score(voice, Reference(), prompt_of(spec))
    assert (right["errors"], right["words"], right["heard"]) == (0, 3, " ".join(spec.words))
    others = [word for word in ("zero", "river", "candle", "two") if word not in spec.words]
    for text, errors in (
        (f"{others[0]} {spec.words[1]} {spec.words[2]}", 1),
        (f"{spec.words[0]} {others[0]} {others[1]}", 2),
        (f"{others[0]} {' '.join(spec.words)} {others[1]}", 2),
        (spec.words[0], 2),
    ):
        assert words.score(voice, Reference(), Prompt(speech=text))["errors"] == errors, text


def test_a_sound_is_heard_alike_whatever_was_heard_before() -> None:
    judge = WordJudge()
    sounds = [sound_of(index) for index in (0, 1, 6)]
    first = [judge.words(sound, SAMPLE_RATE) for sound in sounds]
    assert [judge.words(sound, SAMPLE_RATE) for sound in reversed(sounds)] == first[::-1]


def test_words_of_the_reference_that_leak_are_counted(words: WordsJudge) -> None:
    spec = target("test", 0, 0)
    asked = Prompt(speech=f"{spec.words[0]} purple")
    leaky = words.score(heard(sound_of(0)), Reference(said=f"{spec.words[1].upper()}, zero!"), asked)
    assert leaky["leaked"] == 1
    assert words.score(heard(sound_of(0)), Reference(said=spec.words[0]), asked)["leaked"] == 0


def test_other_words_than_the_worlds_are_heard_by_the_open_listener(words: WordsJudge) -> None:
    assert words.listener_of(["river", "two"]) is words.closed
    assert words.listener_of(["river", "banana"]) is words.listener
    assert spoken_words("It's \u201cNine\u201d o\u2019clock, no.") == ["it's", "nine", "o'clock", "no"]
    assert letter_errors(["ab", "c"], ["ab", "d"]) == 1


def test_the_record_names_the_model_and_every_listener(voices: SpeakerJudge, words: WordsJudge) -> None:
    closed, free = WordJudge().record, WordJudge(None).record
    assert len(closed.weights) == 64
    assert closed.weights == free.weights  # one package
    assert closed.limits != free.limits
    both = WordsJudge(closed=WordJudge()).record
    assert closed.limits in both.limits
    assert free.limits in both.limits
    assert (both.name, both.version, both.weights) == (closed.name, closed.version, closed.weights)
    assert WordsJudge(WordJudge(None)).record == free
    onset = OnsetJudge(voices, words).record
    assert onset.weights == voices.record.weights + closed.weights
    assert closed.limits in onset.limits


@pytest.mark.parametrize("prompt", [None, Prompt(visual="a person")])
def test_without_words_there_is_nothing_to_count(words: WordsJudge, prompt: Prompt | None) -> None:
    with pytest.raises(InputError, match="says no words"):
        words.score(heard(sound_of(0)), Reference(), prompt)


# Lips


@pytest.mark.parametrize("delay", [-0.2, -0.08, 0.0, 0.08, 0.2])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_planted_delay_is_found_within_20_ms(index: int, delay: float) -> None:
    clip = footage(index)
    moved = np.roll(clip.sound, round(delay * SAMPLE_RATE))
    values = LipJudge().score(replace(clip, samples=moved), Reference(), None)
    assert values["offset"] == pytest.approx(delay, abs=0.02)
    assert values["best"] > 0.95
    assert (values["correlation"] > 0.95) == (delay == 0.0)


def test_a_delay_is_found_at_another_frame_rate_too() -> None:
    clip = footage(0)
    assert clip.frames is not None
    moved = np.roll(clip.sound, round(0.08 * SAMPLE_RATE))
    doubled = Footage(np.repeat(clip.frames, 2, axis=0), 50.0, moved)
    assert LipJudge().score(doubled, Reference(), None)["offset"] == pytest.approx(0.08, abs=0.03)


def test_no_mouth_is_no_verdict() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (57, 96, 96, 3)).astype(np.uint8)
    shut = np.repeat(portrait(Face.draw(np.random.default_rng(0)))[None], 57, axis=0)
    for frames, reason in ((shut, "does not open"), (noise, "no face"), (noise[:, :, :90], "not of the miniature")):
        with pytest.raises(InputError, match=reason):
            LipJudge().score(Footage(frames, 25.0, sound_of(0)), Reference(), None)
    with pytest.raises(InputError, match="too few"):
        align(opening_of(footage(0).pictures)[:15], sound_of(0), 25.0)


def test_what_does_not_change_is_in_step_with_nothing() -> None:
    clip = footage(0)
    time = np.arange(len(clip.sound)) / SAMPLE_RATE
    hums = {f: (0.2 * np.sin(2 * np.pi * f * time)).astype(np.float32) for f in (50, 60, 110, 440)}
    late = np.concatenate([0 * clip.sound, clip.sound])  # begins when the pictures are over
    for samples, reason in (
        *((hum, "the sound is steady") for hum in hums.values()),
        (np.full_like(clip.sound, 0.2), "the sound is steady"),
        (late, "s of sound under the pictures are below"),
    ):
        with pytest.raises(InputError, match=reason):
            LipJudge().score(replace(clip, samples=samples), Reference(), None)
    frames = clip.pictures.copy()
    frames[:40] = frames[0]
    with pytest.raises(InputError, match=r"mouth does not move in the 1.60 s that have sound"):
        LipJudge().score(Footage(frames, 25.0, clip.sound[: 40 * 640]), Reference(), None)
    noisy = 0.01 * np.random.default_rng(0).standard_normal(len(clip.sound)).astype(np.float32)
    assert LipJudge().score(replace(clip, samples=noisy), Reference(), None)["best"] > 0  # noise counts as sound


# The interface


def every_judge(voices: SpeakerJudge, words: WordsJudge) -> list[object]:
    worlds = [LipJudge(), WorldFacesJudge(), WorldSoundsJudge(), LevelsJudge(), ConditionsJudge()]
    return [SpeakerSimilarity(voices), DriftJudge(voices), words, OnsetJudge(voices, words), *worlds]


def test_every_judge_says_who_it_is_and_travels(voices: SpeakerJudge) -> None:
    for judge in every_judge(SpeakerJudge(), WordsJudge(closed=WordJudge())):
        again = pickle.loads(pickle.dumps(judge))  # noqa: S301 - made one line above
        assert isinstance(again.record, JudgeRecord)
        assert again.record.name
        assert again.record.limits
    assert len(SpeakerSimilarity(voices).record.weights) == len(WorldFacesJudge().record.weights) == 64


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (Footage(samples=np.zeros(32_000, np.float32)), "level is below"),
        (Footage(samples=np.zeros(10, np.float32)), "0.001 s long"),
        (Footage(samples=None), "no audio track"),
        (Footage(samples=np.full(32_000, np.nan, np.float32)), "finite"),
    ],
)
def test_what_is_not_there_is_not_scored(voices: SpeakerJudge, words: WordsJudge, clip: Footage, reason: str) -> None:
    reference = Reference(footage(0), truth=footage(0))
    for judge in (SpeakerSimilarity(voices), DriftJudge(voices), words, OnsetJudge(voices, words), LevelsJudge()):
        with pytest.raises(InputError, match=reason):
            judge.score(clip, reference, Prompt(speech="two"))


def test_noise_is_no_speech_and_a_sound_is_no_picture(voices: SpeakerJudge) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    with pytest.raises(InputError, match="of speech are found"):
        SpeakerSimilarity(voices).score(heard(noise), Reference(footage(0)), None)
    with pytest.raises(InputError, match="no reference voice"):
        SpeakerSimilarity(voices).score(footage(0), Reference(), None)
    with pytest.raises(MediaError, match="no pictures"):
        LipJudge().score(heard(sound_of(0)), Reference(), None)
    with pytest.raises(MediaError, match="frame rate is 0"):
        LipJudge().score(replace(footage(0), frame_rate=0.0), Reference(), None)
