# SPDX-License-Identifier: Apache-2.0
"""Pictures and voices: what is written is read back, any common file is understood, every broken one is told."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from idlora.data.media import Voice, fit_image, read_image, read_voice, resample, write_mp4, write_png, write_wav
from idlora.data.media.pace import syllables_per_second
from idlora.errors import InputError, MediaError
from signals import RATE, Sound, gradient_frames, tone, truncated

Folder = pytest.TempPathFactory


# --- pictures


@given(pixels=st.binary(min_size=3 * 7 * 5, max_size=3 * 7 * 5))
def test_png_keeps_every_pixel(pixels: bytes, tmp_path_factory: Folder) -> None:
    path = tmp_path_factory.mktemp("png") / "x.png"
    array = np.frombuffer(pixels, np.uint8).reshape(7, 5, 3)
    write_png(path, array)
    assert np.array_equal(np.asarray(read_image(path)), array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = 255  # white in the upper left only, so that all eight orientations differ
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
            6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
            8: lambda a: np.rot90(a, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    stored.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.png")), upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 4))
    image.convert(mode).save(tmp_path / "x.png")
    read = np.asarray(read_image(tmp_path / "x.png"))
    assert (read[:, :2] == 0).all()
    assert (read[:, 2:] == 255).all()


def test_half_transparent_black_becomes_middle_grey(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(tmp_path / "x.png")
    assert np.asarray(read_image(tmp_path / "x.png")).mean() == pytest.approx(127, abs=1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGB"])
def test_every_mode_becomes_rgb_of_the_same_brightness(mode: str, tmp_path: Path) -> None:
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (4, 0, 8, 8))
    image.convert("RGB").convert(mode).save(tmp_path / "x.tiff")
    read = read_image(tmp_path / "x.tiff")
    assert (read.mode, read.size) == ("RGB", (8, 8))
    assert np.asarray(read)[:, :4].mean() < 3
    assert np.asarray(read)[:, 4:].mean() > 252


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_grey_keeps_its_range(dtype: type[np.generic], tmp_path: Path) -> None:
    ramp = np.linspace(0.0, 1.0, 256)[None].repeat(2, axis=0)
    deep = (ramp * 65535).astype(np.uint16) if dtype is np.uint16 else ramp.astype(np.float32)
    Image.fromarray(deep).save(tmp_path / "x.tiff")
    assert np.abs(np.asarray(read_image(tmp_path / "x.tiff"))[0, :, 0] - np.arange(256.0)).max() <= 1


def test_huge_jpeg_is_read_at_a_fraction_and_a_huge_png_is_refused(tmp_path: Path) -> None:
    Image.new("L", (20_000, 5_100), 90).save(tmp_path / "x.jpg")
    assert read_image(tmp_path / "x.jpg").width <= 10_000
    Image.new("1", (20_000, 5_100)).save(tmp_path / "x.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "y.png")
    for name in ("x.png", "y.png"):
        with pytest.raises(MediaError, match=r"more than 100,000,000 pixels; scale it down"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["text.png", "empty.jpg", "absent.png", "cut.png", "cut.jpg", "folder.png"])
def test_broken_pictures_are_told_by_name(name: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for suffix in (".png", ".jpg"):
        Image.fromarray(noise).save(tmp_path / f"whole{suffix}")
        truncated(tmp_path / f"cut{suffix}", tmp_path / f"whole{suffix}", 0.6)
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(MediaError, match=name.replace(".", r"\.")):
        read_image(tmp_path / name)


@given(size=st.tuples(*[st.integers(1, 300)] * 4))
def test_fitting_gives_the_size_asked_for(size: tuple[int, int, int, int]) -> None:
    width, height, new_width, new_height = size
    assert fit_image(Image.new("RGB", (width, height)), new_height, new_width).size == (new_width, new_height)


def test_fitting_keeps_the_centre_and_its_aspect() -> None:
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    assert np.asarray(fit_image(image, 50, 50))[:, 2:-2].min() > 250
    with pytest.raises(InputError, match="0 x 4 is not positive"):
        fit_image(image, 0, 4)


# --- voices


@given(samples=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=400), channels=st.integers(1, 2),
       rate=st.sampled_from([8_000, 16_000, 44_100, 48_000]))  # fmt: skip
def test_wav_comes_back_within_half_a_step(
    samples: list[float], channels: int, rate: int, tmp_path_factory: Folder
) -> None:
    path = tmp_path_factory.mktemp("wav") / "x.wav"
    sound = np.tile(np.array(samples, np.float32), (channels, 1))
    write_wav(path, sound, rate)
    voice = read_voice(path)
    assert voice.sample_rate == rate
    assert voice.samples.shape == sound.shape
    assert np.abs(voice.samples - sound).max() <= 1.01 / 32768


@pytest.mark.parametrize("kind", ["wav", "flac", "aiff", "au", "caf", "w64", "ogg", "mp3"])
def test_common_sound_files_are_read(kind: str, tmp_path: Path) -> None:
    sound = tone(1.0, channels=2)
    soundfile.write(tmp_path / f"x.{kind}", sound.T, RATE)
    voice = read_voice(tmp_path / f"x.{kind}")
    lossy = kind in ("ogg", "mp3")
    assert voice.samples.shape[0] == 2
    assert voice.seconds == pytest.approx(1.0, abs=0.03 if lossy else 0.0)
    assert np.abs(voice.samples[:, 2000:14000] - sound[:, 2000:14000]).max() < (0.05 if lossy else 1e-4)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_sample_format_is_scaled_to_one(subtype: str, tmp_path: Path) -> None:
    sound = tone(0.2)
    soundfile.write(tmp_path / "x.wav", sound.T, RATE, subtype=subtype)
    voice = read_voice(tmp_path / "x.wav")
    assert voice.samples.dtype == np.float32
    assert np.abs(voice.samples - sound).max() < 0.02


def _encode(path: Path, sound: Sound, layout: str) -> None:
    """Write a FLAC file that says which channel is which."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=RATE, layout=layout, format="s16")
        packed = np.ascontiguousarray((sound.T * 32767).astype(np.int16).reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("layout", ["5.1", "7.1"])
@pytest.mark.parametrize(
    ("channel", "left", "right"), [(0, 1.0, 0.0), (1, 0.0, 1.0), (2, 0.7071, 0.7071), (3, 0.0, 0.0)]
)
def test_surround_folds_by_its_layout(layout: str, channel: int, left: float, right: float, tmp_path: Path) -> None:
    sound = np.zeros((6 if layout == "5.1" else 8, RATE), np.float32)
    sound[channel] = tone(1.0)[0]
    _encode(tmp_path / "x.flac", sound, layout)
    voice = read_voice(tmp_path / "x.flac")
    gains = voice.samples[:, 1000:-1000] @ sound[channel, 1000:-1000] / np.square(sound[channel, 1000:-1000]).sum()
    assert gains == pytest.approx([left, right], abs=2e-3)


@pytest.mark.parametrize("channels", [3, 4, 6, 8, 12])
def test_channels_without_names_are_averaged(channels: int, tmp_path: Path) -> None:
    sound = tone(0.3, frequency=100.0, channels=channels)
    soundfile.write(tmp_path / "x.wav", sound.T, RATE, subtype="FLOAT")
    voice = read_voice(tmp_path / "x.wav")
    assert np.abs(voice.samples - sound.mean(axis=0)).max() < 1e-5
    assert voice.samples.shape[0] == 2


def test_the_sound_of_a_video_is_a_voice(tmp_path: Path) -> None:
    write_mp4(tmp_path / "x.mp4", gradient_frames(25), 25, tone(1.0), RATE)
    assert read_voice(tmp_path / "x.mp4").seconds == 1.0


BROKEN: dict[str, Callable[[Path], object]] = {
    "absent": lambda _: None,
    "folder": lambda path: path.mkdir(),
    "empty file": lambda path: path.touch(),
    "text": lambda path: path.write_text("one two three\n" * 500),
    "playlist": lambda path: path.write_text("ffconcat version 1.0\nfile whole.wav\n"),
    "header alone": lambda path: write_wav(path, np.zeros((1, 0), np.float32), RATE),
    "cut wav": lambda path: truncated(path, path.with_name("whole.wav"), 0.5),
    "cut flac": lambda path: truncated(path, path.with_name("whole.flac"), 0.5),
    "cut mp4": lambda path: truncated(path, path.with_name("whole.mp4"), 0.6),
    "no audio": lambda path: write_mp4(path, gradient_frames(3), 25),
    "nan": lambda path: soundfile.write(path, np.full(100, np.nan), RATE, subtype="FLOAT"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_sound_is_told_by_name(fault: str, tmp_path: Path) -> None:
    for suffix in ("wav", "flac"):
        soundfile.write(tmp_path / f"whole.{suffix}", tone(1.0).T, RATE)
    write_mp4(tmp_path / "whole.mp4", gradient_frames(25), 25, tone(1.0), RATE)
    BROKEN[fault](tmp_path / "voice.wav")
    with pytest.raises(MediaError, match=r"voice\.wav.*[;:]"):
        read_voice(tmp_path / "voice.wav")


def test_a_wav_from_a_pipe_need_not_know_its_length(tmp_path: Path) -> None:
    write_wav(tmp_path / "x.wav", tone(0.5), RATE)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    content[40:44] = b"\xff" * 4
    (tmp_path / "x.wav").write_bytes(content)
    assert read_voice(tmp_path / "x.wav").seconds == pytest.approx(0.5, abs=1e-3)


@given(
    seconds=st.floats(0.05, 0.5),
    rates=st.tuples(*[st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000])] * 2),
)
@settings(max_examples=20)
def test_resampling_keeps_a_tone(seconds: float, rates: tuple[int, int]) -> None:
    source, target = rates
    resampled = resample(tone(seconds, rate=source), source, target)
    expected = tone(seconds, rate=target)
    num_samples = min(resampled.shape[1], expected.shape[1])
    assert abs(resampled.shape[1] - expected.shape[1]) <= 1 + target / source
    edge = num_samples // 4
    assert np.abs(resampled[:, edge : num_samples - edge] - expected[:, edge : num_samples - edge]).max() < 5e-3


def pulses(rate_hz: float, seconds: float, gain: float = 0.5, sample_rate: int = 16_000) -> Voice:
    """A hum that swells so many times a second."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    swell = np.maximum(np.sin(2 * np.pi * rate_hz * time), 0) ** 2
    return Voice((gain * swell * np.sin(2 * np.pi * 150 * time)).astype(np.float32)[None], sample_rate)


@pytest.mark.parametrize("rate_hz", [2.0, 3.5, 5.0, 6.5])
@pytest.mark.parametrize("sample_rate", [8_000, 44_100])
def test_the_pace_of_swells_is_counted(rate_hz: float, sample_rate: int) -> None:
    loud = pulses(rate_hz, 4.0, sample_rate=sample_rate)
    assert syllables_per_second(loud) == pytest.approx(max(rate_hz, 1 / 0.3), rel=0.06)
    quiet = pulses(rate_hz, 4.0, gain=0.005, sample_rate=sample_rate)
    assert syllables_per_second(quiet) == pytest.approx(syllables_per_second(loud), rel=1e-3)


def test_pauses_do_not_slow_a_speaker_down() -> None:
    run = pulses(5.0, 2.0)
    pause = np.zeros((1, 16_000), np.float32)
    with_pause = Voice(np.concatenate([run.samples, pause, run.samples], axis=1), 16_000)
    assert syllables_per_second(with_pause) == pytest.approx(syllables_per_second(run), rel=0.06)
    assert syllables_per_second(Voice(pause, 16_000)) == 0
    assert syllables_per_second(Voice(pause[:, :100], 16_000)) == 0
