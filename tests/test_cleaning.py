# SPDX-License-Identifier: Apache-2.0
"""A voice is cleaned in place: the noise goes, the speech stays where it was."""

import sys

import numpy as np
import pytest

from idlora.data.media import Voice, clean_voice
from idlora.data.world.clip import draw_reference, render_sound
from idlora.data.world.speakers import speaker
from idlora.errors import SettingsError
from idlora.pipeline import Request
from idlora.pipeline.inputs import read_inputs
from signals import Sound
from tiny_pipeline import PROMPT, settings

RATE = 16_000
NOISE = 0.02


def speech(index: int) -> Sound:
    """Speech (N,) with pauses; the place is quiet."""
    spec = draw_reference(np.random.default_rng(index), speaker("validation", index), 3.0)
    return render_sound(spec, 3 * RATE).samples.astype(np.float32)


def with_noise(samples: Sound) -> Sound:
    noisy: Sound = samples + np.random.default_rng(1).normal(0, NOISE, samples.shape).astype(np.float32)
    return noisy


def test_pauses_become_quiet_and_speech_stays_in_time() -> None:
    voice = speech(9)
    noise = with_noise(np.zeros_like(voice))
    silence = np.zeros(RATE, np.float32)
    recording = np.concatenate([voice + noise, with_noise(silence)])
    cleaned = clean_voice(Voice(recording[None], RATE)).samples[0]
    assert cleaned.shape == recording.shape
    # RNNoise needs a moment to know the noise; the last half second is noise alone.
    before, after = (np.square(each[-RATE // 2 :]).mean() for each in (recording, cleaned))
    assert after < before / 100
    lags = range(-40, 41)
    inner = slice(100, len(voice) - 100)
    likeness = [float((voice[inner] * np.roll(cleaned[: len(voice)], -lag)[inner]).sum()) for lag in lags]
    assert abs(lags[int(np.argmax(likeness))]) <= RATE // 1000  # within a millisecond
    assert max(likeness) > 0.8 * float(np.linalg.norm(voice) * np.linalg.norm(cleaned[: len(voice)]))


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("num_samples", [1, 479, 480, 9_999])
def test_rate_channels_and_length_stay(rate: int, channels: int, num_samples: int) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, (channels, num_samples)).astype(np.float32)
    cleaned = clean_voice(Voice(samples, rate))
    assert cleaned.sample_rate == rate
    assert cleaned.samples.shape == samples.shape
    assert cleaned.samples.dtype == np.float32
    assert np.isfinite(cleaned.samples).all()


def test_channels_do_not_hear_each_other() -> None:
    one, two = with_noise(speech(1)), with_noise(speech(2))
    both = clean_voice(Voice(np.stack([one, two]), RATE)).samples
    assert np.array_equal(both[0], clean_voice(Voice(one[None], RATE)).samples[0])
    assert np.array_equal(both[1], clean_voice(Voice(two[None], RATE)).samples[0])


def test_the_setting_cleans_and_says_so() -> None:
    voice = Voice(with_noise(speech(3))[None], RATE)
    raw = read_inputs(Request(PROMPT, settings(), voice=voice))
    clean = read_inputs(Request(PROMPT, settings(clean_voice=True), voice=voice))
    assert raw.voice is not None
    assert clean.voice is not None
    assert np.array_equal(clean.voice[0], clean_voice(voice).samples[0])
    assert not np.array_equal(clean.voice, raw.voice)
    assert [note for note in clean.notes if note not in raw.notes] == [
        "noise was taken out of the voice before anything else"
    ]
    assert clean.origins == raw.origins


def test_without_the_denoiser_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyrnnoise", None)
    with pytest.raises(SettingsError, match=r"idlora\[clean\]"):
        clean_voice(Voice(np.zeros((1, RATE), np.float32), RATE))
