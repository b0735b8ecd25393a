# SPDX-License-Identifier: Apache-2.0
"""Judges by known answers: equal clips, shuffled pairs, planted delays, planted words, another voice at the start."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from idlora.data.prompt import Prompt, parse_prompt
from idlora.data.world.captions import caption, prompt_of
from idlora.data.world.clip import ClipSpec, render_picture, render_sound
from idlora.data.world.face import Face
from idlora.data.world.look import PLACES, portrait
from idlora.data.world.places import background
from idlora.data.world.speakers import clip
from idlora.data.world.voice import SAMPLE_RATE, STYLES
from idlora.errors import InputError, MediaError
from idlora.evaluation.clips import enrolment, target, true_sound
from idlora.evaluation.judges import Footage, JudgeRecord, Reference, SpeakerJudge, WordJudge
from idlora.evaluation.judges.conditions import Acoustics, ConditionsJudge, bins_of, reverberation
from idlora.evaluation.judges.learnt import facts
from idlora.evaluation.judges.levels import LevelsJudge, clipped_share, loudness, silent_share
from idlora.evaluation.judges.lips import LipJudge, align, opening_of
from idlora.evaluation.judges.onset import ONSET, OnsetJudge, split_errors
from idlora.evaluation.judges.stoi import stoi
from idlora.evaluation.judges.voices import DriftJudge, SpeakerSimilarity
from idlora.evaluation.judges.words import Heard, WordsJudge, letter_errors, spoken_words
from idlora.evaluation.judges.world_faces import WorldFacesJudge
from idlora.evaluation.judges.world_sounds import WorldSoundsJudge, asked_aspects

Sound = NDArray[np.float32]
NUM = 8


@pytest.fixture(scope="module")
def voices() -> SpeakerJudge:
    return SpeakerJudge()


@pytest.fixture(scope="module")
def words() -> WordsJudge:
    return WordsJudge(WordJudge(), WordJudge())


@cache
def sound_of(index: int, take: int = 0) -> Sound:
    return true_sound(target("test", index, take))


@cache
def footage(index: int) -> Footage:
    spec = target("test", index, 0)
    sound = render_sound(spec)
    return Footage(render_picture(spec, sound), 25.0, sound.samples.astype(np.float32))


def heard(samples: Sound) -> Footage:
    return Footage(samples=samples)


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
    assert [part.errors for part in split_errors(asked, right, ONSET)] == [0, 0]
    first, rest = split_errors(asked, said(("um", 0.0), ("one", 0.3), ("two", 0.8), ("three", 1.5)), ONSET)
    assert (first.errors, first.words, rest.errors, rest.words) == (1, 1, 0, 2)
    first, rest = split_errors(asked, said(("two", 0.8), ("three", 1.5)), ONSET)
    assert (first.errors, first.words, rest.errors) == (1, 1, 0)
    first, rest = split_errors(asked, said(("one", 0.1), ("two", 0.8), ("free", 1.5)), ONSET)
    assert (first.errors, rest.errors) == (0, 1)
    assert split_errors(asked, [], ONSET)[0].errors == 3


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
    sounds = [sound_of(index) for index in range(5)]
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
    for frames, reason in ((0 * noise, "no opening mouth"), (noise[:, :, :90], "not of the miniature")):
        with pytest.raises(InputError, match=reason):
            LipJudge().score(Footage(frames, 25.0, sound_of(0)), Reference(), None)
    with pytest.raises(InputError, match="too few"):
        align(opening_of(footage(0).pictures)[:15], sound_of(0), 25.0)


# Faces and sounds of the world


def test_faces_are_told_apart_by_their_parameters() -> None:
    judge = WorldFacesJudge()
    faces = [Face.draw(np.random.default_rng(seed)) for seed in range(40)]
    vectors = np.array([judge.embed(portrait(face)[None]) for face in faces])
    # Elsewhere, in another light and with an open mouth, each is still itself.
    elsewhere = np.array([judge.embed(portrait(face, PLACES[seed % 4])[None]) for seed, face in enumerate(faces)])
    same = np.diag(vectors @ elsewhere.T)
    different = (vectors @ elsewhere.T)[~np.eye(40, dtype=bool)]
    assert same.min() > 0.9
    assert abs(different.mean()) < 0.1
    assert judge.score(footage(0), Reference(picture=footage(0).pictures[0]), None)["similarity"] > 0.95
    assert judge.score(footage(0), Reference(footage(0)), None)["similarity"] == pytest.approx(1)


def test_what_is_no_face_of_the_world_is_refused() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (3, 96, 96, 3)).astype(np.uint8)
    empty = [(background(place, 96, np.zeros(1), rng).transpose(0, 2, 3, 1) * 255).astype(np.uint8) for place in PLACES]
    for frames in (noise, noise[:1] // 2, 0 * noise, 0 * noise + 128, footage(0).pictures[:, ::-1], *empty):
        with pytest.raises(InputError, match="no face"):
            WorldFacesJudge().embed(frames)
    with pytest.raises(InputError, match="no picture of the face"):
        WorldFacesJudge().score(footage(0), Reference(), None)


def asked_for(index: int) -> ClipSpec:
    """An unseen speaker in each place and style in turn."""
    spec = replace(clip("test", index), object="none", strike=1.0)
    return replace(spec, place=PLACES[index % 4], style=tuple(STYLES)[index // 4 % 4])


def test_sounds_are_as_their_captions_say_about_as_often_as_the_record_claims() -> None:
    judge, right = WorldSoundsJudge(), []
    for index in range(16):
        spec = asked_for(index)
        values = judge.score(heard(true_sound(spec)), Reference(), parse_prompt(caption(spec)))
        right.append([values["place_right"], values["style_right"]])
    place, style = np.mean(right, axis=0)
    accuracy = facts()["accuracy"]
    assert place > accuracy["place, true clips"] - 0.2
    assert style > accuracy["style, true clips"] - 0.25
    assert min(accuracy.values()) > 0.8


def test_a_prompt_is_read_by_the_captions_own_phrases() -> None:
    for seed in range(40):
        spec = asked_for(seed)
        prompt = prompt_of(spec, np.random.default_rng(seed))
        assert asked_aspects(prompt) == {"place": spec.place, "style": spec.style, "object": "none"}
    with pytest.raises(InputError, match="no place or style"):
        asked_aspects(Prompt(sounds="a tuba"))


def test_a_place_copied_from_the_reference_is_told() -> None:
    spec = replace(target("test", 0, 0), place="rain")
    reference = Reference(heard(true_sound(spec)))
    quiet = prompt_of(target("test", 0, 0))
    copied = WorldSoundsJudge().score(heard(true_sound(replace(spec, seed=5))), reference, quiet)
    followed = WorldSoundsJudge().score(heard(sound_of(0)), reference, quiet)
    assert (copied["place_copied"], copied["place_right"]) == (1, 0)
    assert (followed["place_copied"], followed["place_right"]) == (0, 1)


# Levels


def test_loudness_of_a_full_sine_is_the_standards() -> None:
    time = np.arange(3 * 48_000) / 48_000
    sine = np.sin(2 * np.pi * 997 * time).astype(np.float32)
    assert loudness(sine, 48_000) == pytest.approx(-3.01, abs=0.01)
    assert loudness(sine * np.float32(0.1), 48_000) == pytest.approx(-23.01, abs=0.01)
    # A pause is gated out.
    assert loudness(np.concatenate([sine, 0 * sine]), 48_000) == pytest.approx(-3.1, abs=0.3)


def test_silence_and_clipping_are_shares() -> None:
    tone = 0.5 * np.sin(np.arange(16_000) / 5).astype(np.float32)
    assert silent_share(np.concatenate([tone, 0 * tone])) == pytest.approx(0.5, abs=0.01)
    assert clipped_share(tone) == 0
    clipped = tone.copy()
    clipped[100:200] = 1
    clipped[300:302] = 1  # two samples may be a peak
    assert clipped_share(clipped) == pytest.approx(100 / 16_000)
    values = LevelsJudge().score(heard(clipped), Reference(truth=heard(clipped)), None)
    assert values["stoi"] == pytest.approx(1)
    assert values["peak"] == pytest.approx(0, abs=1e-3)


def chirp() -> NDArray[np.float64]:
    time = np.arange(20_000) / 10_000
    wave = np.sin(2 * np.pi * (200 + 300 * np.sin(3 * time)) * time) * (1 + np.sin(8 * np.pi * time))
    return np.asarray(wave * (time % 0.7 < 0.5))


@pytest.mark.parametrize(("gain", "expected"), [(0.0, 1.0), (0.1, 0.84359598), (0.5, 0.79222088), (2.0, 0.73591767)])
def test_intelligibility_is_that_of_pystoi(gain: float, expected: float) -> None:
    """Values of pystoi 0.4.1 at the definition's own 10 kHz."""
    noisy = chirp() + gain * np.random.default_rng(1).standard_normal(20_000)
    assert stoi(chirp(), noisy, 10_000) == pytest.approx(expected, abs=1e-7)


def test_intelligibility_at_16_khz_and_its_faults() -> None:
    clean = sound_of(0)
    noisy = clean + np.float32(0.05) * np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    assert 0.3 < stoi(clean, sound_of(3), SAMPLE_RATE) + 0.2 < stoi(clean, noisy, SAMPLE_RATE) < 0.95
    with pytest.raises(InputError, match="one length"):
        stoi(clean, clean[1:], SAMPLE_RATE)
    with pytest.raises(InputError, match="too few"):
        stoi(clean[:4000], clean[:4000], SAMPLE_RATE)


# Conditions


def test_distance_grows_as_conditions_diverge() -> None:
    of = {
        place: [Acoustics.of(true_sound(replace(target("test", i, 0), place=place))) for i in range(4)]
        for place in PLACES
    }
    same = [a.distance(b) for group in of.values() for a in group for b in group if a is not b]
    other = [a.distance(b) for a in of["quiet room"] for place in PLACES[1:] for b in of[place]]
    assert np.mean(other) > np.mean(same) + 0.4
    first, second = of["hall"][0], of["rain"][0]
    assert first.distance(first) == 0
    assert first.distance(second) == pytest.approx(second.distance(first))


def test_noise_and_level_add_distance_step_by_step() -> None:
    sound, noise = sound_of(0), np.random.default_rng(0).standard_normal(len(sound_of(0))).astype(np.float32)
    clean = Acoustics.of(sound)
    steps = [clean.distance(Acoustics.of(sound + np.float32(level) * noise)) for level in (0.003, 0.01, 0.03, 0.1)]
    assert steps == sorted(steps)
    # Six LU alone: a quarter of the mean of squares.
    assert clean.distance(Acoustics.of(sound * np.float32(0.5012))) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("seconds", [0.3, 0.6, 1.2])
def test_reverberation_of_a_decay_is_its_own(seconds: float) -> None:
    rng = np.random.default_rng(0)
    time = np.arange(round(1.5 * seconds * SAMPLE_RATE)) / SAMPLE_RATE
    burst = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    found = reverberation(np.concatenate([burst, burst, burst]).astype(np.float32))
    assert found == pytest.approx(seconds, rel=0.3)


def test_conditions_need_the_true_clip() -> None:
    reference = Reference(heard(sound_of(0)), truth=heard(sound_of(0)))
    assert ConditionsJudge().score(heard(sound_of(1)), reference, None)["distance"] == 0
    with pytest.raises(InputError, match="no true clip"):
        ConditionsJudge().score(heard(sound_of(1)), Reference(heard(sound_of(0))), None)


@given(st.lists(st.floats(0, 10), min_size=3, max_size=40, unique=True))
def test_bins_hold_as_many_each(distances: list[float]) -> None:
    edges, places = bins_of(np.array(distances))
    counts = np.bincount(places, minlength=3)
    assert counts.max() - counts.min() <= 2
    assert all(edges[p] <= d + 1e-9 and d <= edges[p + 1] + 1e-9 for d, p in zip(distances, places, strict=True))


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
