# SPDX-License-Identifier: Apache-2.0
"""The sound of the world: laws of voices, styles, places, struck objects, clips and splits."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from idlora.data.world import speakers
from idlora.data.world.clip import (
    BEAT,
    FIRST_ONSET,
    NUM_FRAMES,
    ClipSpec,
    draw_clip,
    draw_words,
    held_out_order,
    mouth,
    render_sound,
    speech_energy,
)
from idlora.data.world.look import PLACES
from idlora.data.world.sound import PARTIALS, STRIKE_PEAK, background, in_place, struck
from idlora.data.world.speakers import NUM_SPEAKERS, Split
from idlora.data.world.voice import (
    BASE_VOICES,
    HELD_OUT_VOICE,
    SAMPLE_RATE,
    STYLES,
    VOCABULARY,
    Speech,
    Voice,
    recordings,
    speak,
)

Array = NDArray[np.float64]

PLAIN = Voice(base="rms", f0=140.0, formant=1.0, intonation=0.0, tilt=0.0, rate=1.0, breathiness=0.0)


def said(voice: Voice = PLAIN, style: str = "calm", word: str = "nine", seed: int = 0) -> Speech:
    return speak(voice, [word], [0.0], STYLES[style], np.random.default_rng(seed))


def vowel(speech: Speech) -> Array:
    """The longest vowel in a word."""
    vowels = [phone for phone in speech.phones if phone[0][0] in "aeiou"]
    _, start, end = max(vowels, key=lambda phone: phone[2] - phone[1])
    return speech.samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]


def pitch_of(sound: Array) -> tuple[float, float]:
    """Frequency in Hz of the strongest periodicity from 70 to 400 Hz by autocorrelation, and its strength 0..1."""
    spectrum = np.abs(np.fft.rfft(sound - sound.mean(), 2 * len(sound))) ** 2
    correlation = np.fft.irfft(spectrum)[: len(sound)] / np.arange(len(sound), 0, -1)
    lags = np.arange(SAMPLE_RATE // 400, min(SAMPLE_RATE // 70, len(sound) * 2 // 3))
    # The shortest of nearly equal peaks: every multiple of a period is one as well.
    best = int(lags[correlation[lags] > 0.85 * correlation[lags].max()][0])
    best += int(correlation[best : best + SAMPLE_RATE // 800].argmax())
    return SAMPLE_RATE / best, float(correlation[best] / correlation[0])


def decibels(sound: Array) -> float:
    return float(10 * np.log10(np.mean(sound**2) + 1e-12))


def centroid(sound: Array) -> float:
    power = np.abs(np.fft.rfft(sound)) ** 2
    return float((np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE) * power).sum() / power.sum())


def clip(seed: int = 0, **changes: object) -> ClipSpec:
    rng = np.random.default_rng(seed)
    plain = replace(draw_clip(rng, Voice.draw(rng)), style="calm", place="quiet room", object="none")
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_every_voice_has_recorded_every_word() -> None:
    assert set(recordings()) == {(base, word) for base in (*BASE_VOICES, HELD_OUT_VOICE) for word in VOCABULARY}
    assert len(VOCABULARY) >= 20


def test_equal_seeds_give_equal_samples_and_other_seeds_do_not() -> None:
    spec = clip(place="rain", object="glass")
    first, again, other = (render_sound(s).samples for s in (spec, spec, replace(spec, seed=spec.seed + 1)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("base", [*BASE_VOICES, HELD_OUT_VOICE])
@pytest.mark.parametrize("f0", [95.0, 150.0, 230.0])
def test_pitch_follows_the_speaker(base: str, f0: float) -> None:
    heard, strength = pitch_of(vowel(said(replace(PLAIN, base=base, f0=f0))))
    assert heard == pytest.approx(f0, rel=0.03)
    assert strength > 0.6


def test_loud_speech_is_higher_by_its_factor() -> None:
    calm, loud = (pitch_of(vowel(said(style=style)))[0] for style in ("calm", "loud"))
    assert loud / calm == pytest.approx(STYLES["loud"].pitch, rel=0.03)


@pytest.mark.parametrize("base", BASE_VOICES)
def test_whispers_have_no_pitch(base: str) -> None:
    voice = replace(PLAIN, base=base)
    assert pitch_of(vowel(said(voice, "whispered")))[1] < 0.5 < pitch_of(vowel(said(voice)))[1]


@pytest.mark.parametrize("style", list(STYLES))
@pytest.mark.parametrize("word", ["seven", "coffee"])
def test_each_style_has_its_level(style: str, word: str) -> None:
    speech = said(style=style, word=word)
    end = round(speech.phones[-1][2] * SAMPLE_RATE)
    assert decibels(speech.samples[:end]) == pytest.approx(STYLES[style].level, abs=1.0)


def test_fast_speech_takes_less_time_by_its_tempo() -> None:
    calm, fast = (said(style=style, word="morning").phones[-1][2] for style in ("calm", "fast"))
    assert calm / fast == pytest.approx(STYLES["fast"].tempo, rel=0.02)


def test_rate_of_the_speaker_shortens_words() -> None:
    slow, quick = (said(replace(PLAIN, rate=rate)).phones[-1][2] for rate in (0.9, 1.12))
    assert slow / quick == pytest.approx(1.12 / 0.9, rel=0.02)


def test_a_short_vocal_tract_and_a_positive_tilt_move_energy_up() -> None:
    by_tract = [centroid(said(replace(PLAIN, formant=formant)).samples) for formant in (0.86, 1.0, 1.16)]
    by_tilt = [centroid(said(replace(PLAIN, tilt=tilt)).samples) for tilt in (-2.5, 0.0, 2.5)]
    assert by_tract == sorted(by_tract)
    assert by_tilt == sorted(by_tilt)


def test_breath_weakens_periodicity() -> None:
    clear, breathy = (pitch_of(vowel(said(replace(PLAIN, breathiness=b))))[1] for b in (0.0, 0.8))
    assert breathy < clear - 0.1


@pytest.mark.parametrize("kind", list(PARTIALS))
@pytest.mark.parametrize("second", [0.3, 1.7])
def test_a_strike_is_heard_from_its_second_on(kind: str, second: float) -> None:
    ring = struck(kind, [second], 2 * SAMPLE_RATE, np.random.default_rng(0))
    start = round(second * SAMPLE_RATE)
    assert not ring[:start].any()
    assert np.abs(ring[start : start + 400]).max() > 0.3 * STRIKE_PEAK
    # It dies away, and in a room it stands out at its second.
    assert decibels(ring[-800:]) < decibels(ring[start : start + 800]) - 6
    heard = in_place(np.zeros(2 * SAMPLE_RATE), "quiet room", [second], kind, np.random.default_rng(1))
    assert decibels(heard[start : start + 400]) > decibels(heard[start - 400 : start]) + 20


def test_without_an_object_nothing_is_struck() -> None:
    assert not struck("none", [0.5], 1000, np.random.default_rng(0)).any()
    assert clip(object="none").strikes == ()


def test_a_hall_echoes_longer_than_a_room() -> None:
    dry = np.zeros(SAMPLE_RATE)
    dry[:1600] = 0.3 * np.random.default_rng(0).standard_normal(1600)
    late = [decibels(in_place(dry, p, (), "none", np.random.default_rng(1))[5000:7000]) for p in ("hall", "quiet room")]
    assert late[0] > late[1] + 10


def test_places_differ_by_their_own_sound() -> None:
    sounds = {place: background(place, 2 * SAMPLE_RATE, np.random.default_rng(0)) for place in PLACES}
    levels = {place: decibels(sound) for place, sound in sounds.items()}
    assert max(levels["quiet room"], levels["hall"]) + 20 < min(levels["rain"], levels["street"])
    assert centroid(sounds["street"]) + 1000 < centroid(sounds["rain"])


@pytest.mark.parametrize("place", PLACES)
def test_no_place_clips_the_loudest_speech(place: str) -> None:
    samples = render_sound(clip(1, style="loud", place=place, object="bell")).samples
    assert np.abs(samples).max() <= 0.99


def test_words_are_said_on_the_beat_and_phones_run_in_order() -> None:
    spec = clip(2)
    phones = render_sound(spec).phones
    assert all(start < end for _, start, end in phones)
    assert all(first[2] <= second[1] + 0.01 for first, second in pairwise(phones))
    firsts = [phone for phone in phones if any(abs(phone[1] - FIRST_ONSET - BEAT * i) <= 0.031 for i in range(3))]
    assert len(firsts) >= len(spec.words)


def test_sound_has_the_length_asked_for_and_longer_ones_begin_alike() -> None:
    short, long = (render_sound(clip(3), num_samples) for num_samples in (20_000, 48_000))
    assert (len(short.samples), len(long.samples)) == (20_000, 48_000)
    assert np.array_equal(short.dry, long.dry[:20_000])


def test_lips_follow_the_energy_of_speech() -> None:
    correlations = []
    for seed in range(8):
        sound = render_sound(clip(seed))
        opening, width = mouth(sound)
        assert opening.shape == width.shape == (NUM_FRAMES,)
        assert opening.min() >= 0
        assert opening.max() <= 1
        assert np.abs(width).max() <= 1
        correlations.append(np.corrcoef(opening, speech_energy(sound.samples, NUM_FRAMES))[0, 1])
    assert np.mean(correlations) > 0.9


def test_lips_are_shut_in_silence() -> None:
    sound = render_sound(clip(4))
    silent = speech_energy(sound.dry, NUM_FRAMES) == 0
    assert silent.any()
    assert not mouth(sound)[0][silent].any()


def test_energy_is_that_of_each_frame() -> None:
    samples = np.repeat([0.0, 0.25, 1.0], SAMPLE_RATE // 25)
    assert speech_energy(samples, 4) == pytest.approx([0.0, 0.5, 1.0, 0.0])


def test_everything_but_the_voice_is_drawn_without_it() -> None:
    """A picture never tells the voice: equal generators give equal clips whoever speaks."""
    first, second = (draw_clip(np.random.default_rng(5), voice) for voice in (PLAIN, replace(PLAIN, f0=220.0)))
    assert replace(first, voice=second.voice) == second


def test_words_are_distinct_and_avoid_those_named() -> None:
    rng, avoid = np.random.default_rng(6), VOCABULARY[:12]
    for held_out in (False, True):
        words = draw_words(rng, held_out, avoid)
        assert len(set(words)) == 3
        assert not set(words) & set(avoid)
        assert held_out_order(words) == held_out


def test_about_a_tenth_of_all_orders_is_held_out() -> None:
    orders = [(a, b, c) for a in VOCABULARY for b in VOCABULARY for c in VOCABULARY if len({a, b, c}) == 3]
    assert np.mean([held_out_order(order) for order in orders]) == pytest.approx(0.1, abs=0.015)


def test_splits_share_no_speaker_and_no_order() -> None:
    splits: tuple[Split, ...] = ("train", "validation", "test", "held-out voice")
    voices = {split: {speakers.speaker(split, index) for index in range(NUM_SPEAKERS[split])} for split in splits}
    assert [len(voices[split]) for split in splits] == [NUM_SPEAKERS[split] for split in splits]
    assert len(set().union(*voices.values())) == sum(NUM_SPEAKERS.values())
    bases = {split: {voice.base for voice in voices[split]} for split in splits}
    known = {split: set(BASE_VOICES) for split in splits[:-1]}
    assert bases == {**known, "held-out voice": {HELD_OUT_VOICE}}
    orders = {split: {speakers.clip(split, index).words for index in range(150)} for split in splits}
    assert not any(held_out_order(words) for words in orders["train"])
    assert all(held_out_order(words) for split in splits[1:] for words in orders[split])


def test_clips_of_a_split_belong_to_its_speakers_in_turn() -> None:
    later = speakers.clip("test", 3 + 2 * NUM_SPEAKERS["test"])
    assert later.voice == speakers.speaker("test", 3)
    assert later == speakers.clip("test", 3 + 2 * NUM_SPEAKERS["test"])
    assert later.words != speakers.clip("test", 3).words
