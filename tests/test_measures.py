# SPDX-License-Identifier: Apache-2.0
"""Judges that measure: faces and sounds of the world, levels, intelligibility, and how recordings were made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from idlora.data.prompt import Prompt, parse_prompt
from idlora.data.world.captions import caption, prompt_of
from idlora.data.world.clip import ClipSpec
from idlora.data.world.face import Face
from idlora.data.world.look import PLACES, portrait
from idlora.data.world.places import background
from idlora.data.world.speakers import clip
from idlora.data.world.voice import SAMPLE_RATE, STYLES
from idlora.errors import InputError
from idlora.evaluation.clips import target, true_sound
from idlora.evaluation.judges import Reference
from idlora.evaluation.judges.conditions import Acoustics, ConditionsJudge, bins_of, reverberation
from idlora.evaluation.judges.learnt import facts
from idlora.evaluation.judges.levels import LevelsJudge, clipped_share, loudness, silent_share
from idlora.evaluation.judges.stoi import stoi
from idlora.evaluation.judges.world_faces import WorldFacesJudge
from idlora.evaluation.judges.world_sounds import (
    ASPECTS,
    WorldSoundsJudge,
    asked_aspects,
    heard_aspects,
    risen_seconds,
)
from judged_clips import footage, heard, sound_of

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


def test_a_style_wants_somebody_who_speaks() -> None:
    judge, prompt = WorldSoundsJudge(), prompt_of(target("test", 0, 0))
    length = len(sound_of(0))
    noise = 0.1 * np.random.default_rng(0).standard_normal(length)
    click = 0.9 * np.eye(1, length, length // 2)[0]
    for sound in (noise, np.full(length, 0.2), click, 0.2 * np.sin(np.arange(length) / 20)):
        values = judge.score(heard(sound.astype(np.float32)), Reference(), prompt)
        assert "nobody speaks in it" in values["style_unjudged"]
        assert values.keys() == {"style_unjudged", "place_heard", "object_heard", "place_right", "object_right"}
    with pytest.raises(InputError, match=r"0.12 s do not tell a place"):
        judge.score(heard(sound_of(0)[: SAMPLE_RATE * 12 // 100]), Reference(), prompt)
    for index in range(16):  # whoever whispers in the rain too, in whom WebRTC's detector may find no speech
        sound = true_sound(replace(asked_for(index), place="rain") if index % 2 else asked_for(index))
        values = judge.score(heard(sound), Reference(), prompt)
        assert {aspect: values[f"{aspect}_heard"] for aspect in ASPECTS} == heard_aspects(sound)
        assert "style_unjudged" not in values


def test_whispers_in_the_rain_rise_out_of_it() -> None:
    risen = [
        risen_seconds(true_sound(replace(clip("test", index), style="whispered", place="rain"))) for index in range(40)
    ]
    assert min(risen) > 0.15


def test_a_reference_that_tells_no_place_costs_that_alone() -> None:
    judge, prompt = WorldSoundsJudge(), prompt_of(target("test", 0, 0))
    alone = judge.score(heard(sound_of(0)), Reference(), prompt)
    for voice, reason in ((0 * sound_of(1), "level is below"), (sound_of(1)[:3200], "0.20 s do not tell")):
        values = judge.score(heard(sound_of(0)), Reference(heard(voice)), prompt)
        assert reason in values.pop("place_copied_unjudged")
        assert values == alone


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


@given(st.lists(st.sampled_from((0.0, 0.1, 0.5, 0.7, 2.0)), min_size=3, max_size=40), st.integers(2, 4))
def test_equal_distances_stay_together_and_no_bin_is_empty(distances: list[float], count: int) -> None:
    if len(distances) < count:
        return
    edges, places = bins_of(np.array(distances), count)
    if len(set(distances)) < count:
        assert (len(edges), places) == (0, [])
        return
    assert set(places) == set(range(count))
    pairs = sorted(zip(distances, places, strict=True))
    assert [place for _, place in pairs] == sorted(places)
    assert len(dict(pairs)) == len(set(pairs))
    assert all(edges[p] <= d <= edges[p + 1] for d, p in pairs)


def test_references_from_the_true_place_are_the_near_ones() -> None:
    assert bins_of(np.array([0.0] * 8 + [1.0, 2.0, 3.0, 4.0]))[1] == [0] * 8 + [1, 1, 2, 2]
    assert bins_of(np.array([1.0, 2.0, 3.0, 4.0] + [9.0] * 8))[1] == [0, 0, 0, 1] + [2] * 8
