# SPDX-License-Identifier: Apache-2.0
"""Clips and voice windows: sound and picture stay together, and the seconds chosen are those with speech."""

import math
import os
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from idlora.data.media import Voice, prepare_voice, read_video, read_voice, videos, write_mp4
from idlora.errors import InputError, MediaError, SettingsError
from idlora.files import sha256_of
from signals import RATE, gradient_frames, speech, tone, truncated

# --- the window that serves as the voice


def _speech_between(total: float, first: float, last: float) -> Voice:
    noise = np.random.default_rng(1).standard_normal((1, round(total * RATE))).astype(np.float32)
    noise *= 1e-4
    span = slice(round(first * RATE), round(last * RATE))
    noise[:, span] += tone(last - first)
    return Voice(noise, RATE)


@pytest.mark.parametrize("first", [0.0, 1.3, 7.0, 12.0])
def test_the_window_finds_the_speech(first: float) -> None:
    prepared = prepare_voice(_speech_between(17.0, first, first + 5.0))
    assert prepared.start == pytest.approx(first, abs=0.021)
    assert prepared.voice.samples.shape == (1, 5 * RATE)
    assert prepared.shortened


@pytest.mark.parametrize("kind", ["white", "pink", "bursts"])
def test_noise_as_loud_as_the_voice_is_no_speech(kind: str) -> None:
    spoken = speech(5.5)
    noise = np.random.default_rng(3).standard_normal(6 * RATE)
    if kind == "pink":
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), len(noise))
    if kind == "bursts":
        noise *= np.sin(np.arange(len(noise)) * 2 * np.pi * 4 / RATE) > 0
    noise = (noise * spoken.std() / noise.std())[None].astype(np.float32)
    prepared = prepare_voice(Voice(np.concatenate([noise, spoken, noise], axis=1), RATE))
    assert 5.9 <= prepared.start <= 6.6


def test_a_recording_without_any_pitch_is_judged_by_level() -> None:
    whispered = np.random.default_rng(4).standard_normal((1, 12 * RATE)).astype(np.float32) * 0.01
    whispered[:, 6 * RATE : 11 * RATE] *= 10
    assert prepare_voice(Voice(whispered, RATE)).start == pytest.approx(6.0, abs=0.1)


@given(gain=st.floats(0.02, 3.0))
@settings(max_examples=15)
def test_the_window_does_not_depend_on_the_gain(gain: float) -> None:
    voice = _speech_between(9.0, 2.5, 7.5)
    louder = Voice(voice.samples * np.float32(gain), RATE)
    assert prepare_voice(louder).start == prepare_voice(voice).start


def test_equal_windows_give_the_first_and_a_short_voice_is_kept_whole() -> None:
    assert prepare_voice(Voice(tone(8.0, frequency=400.0), RATE)).start == 0.0
    short = prepare_voice(Voice(tone(1.0, rate=44_100, channels=2), 44_100))
    assert short.voice.samples.shape == (2, RATE)
    assert (short.start, short.total, short.shortened) == (0.0, 1.0, False)


def test_one_click_does_not_count_as_speech() -> None:
    voice = _speech_between(14.0, 6.0, 11.0)
    voice.samples[:, RATE] = 1.0
    assert prepare_voice(voice).start == pytest.approx(6.0, abs=0.03)


@pytest.mark.parametrize("level", [0.0, 1e-5])
@pytest.mark.parametrize("offset", [0.0, 0.2])
def test_silence_is_refused_whatever_its_offset(level: float, offset: float) -> None:
    with pytest.raises(MediaError, match=r"voice is silent.*-60 dB"):
        prepare_voice(Voice(tone(2.0, gain=level) + np.float32(offset), RATE))


def test_too_short_a_voice_and_contradicting_limits_are_refused() -> None:
    with pytest.raises(MediaError, match=r"0\.49 s long; at least 0\.5 s"):
        prepare_voice(Voice(tone(0.49), RATE))
    assert prepare_voice(Voice(tone(0.5), RATE)).voice.seconds == 0.5
    with pytest.raises(SettingsError, match="min <= max"):
        prepare_voice(Voice(tone(1.0), RATE), max_seconds=0.3)


# --- clips


@pytest.mark.parametrize("frame_rate", [12, 23.976, 24, 25, 30, 60])
@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100, 10_000])
def test_sound_is_as_long_as_the_video(frame_rate: float, rate: int, tmp_path: Path) -> None:
    frames = gradient_frames(9)
    write_mp4(tmp_path / "x.mp4", frames, frame_rate, tone(1.0, rate=rate, channels=2), rate)
    video = read_video(tmp_path / "x.mp4")
    assert video.audio is not None
    assert video.frames.shape == frames.shape
    assert video.frame_rate == pytest.approx(frame_rate, rel=1e-3)
    assert video.audio.samples.shape[0] == 2
    assert abs(video.audio.seconds - len(frames) / frame_rate) < 1 / frame_rate


def test_a_clip_comes_back_close_in_colour_and_sound(tmp_path: Path) -> None:
    frames, sound = gradient_frames(25, 64, 96), tone(1.0)
    write_mp4(tmp_path / "x.mp4", frames, 25, sound, RATE)
    video = read_video(tmp_path / "x.mp4")
    assert video.audio is not None
    assert np.abs(video.frames.astype(int) - frames).mean() < 3
    assert np.abs(video.frames.astype(int) - frames).mean(axis=(0, 1, 2)).max() < 4
    middle = slice(2000, -2000)
    assert np.abs(video.audio.samples[0, middle] - sound[0, middle]).max() < 0.02


def test_equal_clips_make_equal_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 256, (64, 96, 3), np.uint8)
    frames, digests, litter = np.stack([np.roll(grain, shift, axis=1) for shift in range(9)]), set(), []
    for _ in range(40):
        litter.append(rng.bytes(int(rng.integers(1, 300_000))))  # so that memory is not the same every time
        write_mp4(tmp_path / "x.mp4", frames, 25, tone(0.36), RATE)
        assert len(read_video(tmp_path / "x.mp4").frames) == 9
        digests.add(sha256_of(tmp_path / "x.mp4"))
    assert len(digests) == 1


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 90), (0, 0, 0), (255, 255, 255)])
def test_flat_colours_survive(colour: tuple[int, int, int], tmp_path: Path) -> None:
    frames = np.broadcast_to(np.array(colour, np.uint8), (3, 32, 32, 3))
    write_mp4(tmp_path / "x.mp4", frames, 25)
    assert np.abs(read_video(tmp_path / "x.mp4").frames.astype(int) - colour).max() <= 4


def test_loud_sound_is_attenuated_below_one_decibel_and_quiet_sound_is_left(tmp_path: Path) -> None:
    peaks = {}
    for gain in (0.1, 3.0):
        write_mp4(tmp_path / "x.mp4", gradient_frames(50), 25, tone(2.0, gain=gain), RATE)
        peaks[gain] = np.abs(read_voice(tmp_path / "x.mp4").samples).max()
    assert peaks[3.0] < 10 ** (-1 / 20)
    assert peaks[0.1] == pytest.approx(0.1, abs=0.02)


def test_index_comes_first_and_metadata_is_kept(tmp_path: Path) -> None:
    write_mp4(tmp_path / "x.mp4", gradient_frames(3), 25, metadata={"title": "a clip", "idlora.seed": "7"})
    content = (tmp_path / "x.mp4").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")
    with av.open(str(tmp_path / "x.mp4")) as container:
        assert container.metadata["title"] == "a clip"
        assert container.metadata["idlora.seed"] == "7"
    assert read_video(tmp_path / "x.mp4").audio is None


def test_the_same_clip_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, gradient_frames(9), 25, tone(0.4), RATE)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


BAD_CLIPS: dict[str, dict[str, object]] = {
    "sides must be even": {"frames": np.zeros((2, 33, 32, 3), np.uint8)},
    "0 frames": {"frames": np.zeros((0, 32, 32, 3), np.uint8)},
    "uint8": {"frames": np.zeros((2, 32, 32, 3), np.float32)},
    "(2, 32, 32)": {"frames": np.zeros((2, 32, 32), np.uint8)},
    "frame rate 0": {"frame_rate": 0.0},
    "frame rate nan": {"frame_rate": math.nan},
    "shape (3, 10)": {"audio": np.zeros((3, 10), np.float32)},
    "finite": {"audio": np.full((1, 10), np.inf, np.float32)},
}


@pytest.mark.parametrize("message", BAD_CLIPS)
def test_clips_that_cannot_be_written_are_refused_and_leave_nothing(message: str, tmp_path: Path) -> None:
    arguments: dict[str, object] = {"frames": gradient_frames(2), "frame_rate": 25.0, **BAD_CLIPS[message]}
    with pytest.raises(InputError) as fault:
        write_mp4(tmp_path / "x.mp4", **arguments)  # type: ignore[arg-type]
    assert message in str(fault.value)
    assert os.listdir(tmp_path) == []


def test_ctrl_c_while_encoding_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(videos, "_encode_audio", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_mp4(tmp_path / "x.mp4", gradient_frames(9), 25, tone(0.4), RATE)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fault", ["no video track", "cannot be decoded", "too large"])
def test_broken_videos_are_told(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.mp4"
    write_mp4(path, gradient_frames(9), 25)
    if fault == "no video track":
        soundfile.write(path, tone(1.0).T, RATE, format="WAV")
    elif fault == "cannot be decoded":
        truncated(path, path, 0.5)
    else:
        monkeypatch.setattr(videos, "MAX_VIDEO_BYTES", 10_000)
    with pytest.raises(MediaError, match=fault):
        read_video(path)
