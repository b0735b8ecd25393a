# SPDX-License-Identifier: Apache-2.0
"""Odd files that people have, and that must work: any rate, any number of channels, any kind of picture."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from idlora.pipeline import Request
from idlora.pipeline.inputs import read_inputs
from signals import tone
from tiny_pipeline import PROMPT, SETTINGS, pipeline


@pytest.mark.parametrize(
    ("rate", "channels", "seconds"),
    [(8_000, 1, 1.0), (192_000, 2, 1.0), (48_000, 6, 1.0), (16_000, 1, 60.0), (44_100, 8, 0.5)],
)
def test_voices_of_any_rate_and_number_of_channels(tmp_path: Path, rate: int, channels: int, seconds: float) -> None:
    path = tmp_path / "voice.wav"
    soundfile.write(path, np.repeat(tone(seconds, rate=rate), channels, axis=0).T, rate)
    inputs = read_inputs(Request(PROMPT, SETTINGS, voice=path), ("river", "garden"))
    assert inputs.voice is not None
    assert inputs.voice.shape == (2, round(min(seconds, SETTINGS.max_voice_seconds) * 16_000))
    assert np.isfinite(inputs.voice).all()
    assert np.array_equal(inputs.voice[0], inputs.voice[1])
    spectrum = np.abs(np.fft.rfft(inputs.voice[0]))
    assert np.argmax(spectrum) / inputs.voice.shape[1] * 16_000 == pytest.approx(440, abs=2)
    assert any("best part" in note for note in inputs.notes) == (seconds > SETTINGS.max_voice_seconds)


def picture(kind: str, path: Path) -> None:
    """A picture whose upper half is dark and lower half light, as somebody's camera or program leaves it."""
    grey = np.repeat(np.array([40, 200], np.uint8), 200)[:, None].repeat(300, axis=1)
    if kind == "alpha":
        Image.fromarray(grey).convert("RGBA").save(path)
    elif kind == "16 bits":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    elif kind == "lying on its side":
        exif = Image.Exif()
        exif[0x0112] = 8
        Image.fromarray(np.rot90(grey, -1).copy()).save(path, exif=exif)
    elif kind == "huge":
        Image.fromarray(grey).resize((20_000, 4_000)).save(path)
    else:
        Image.fromarray(grey).convert(kind).save(path)


@pytest.mark.parametrize("kind", ["alpha", "16 bits", "lying on its side", "huge", "1", "L", "P", "CMYK"])
def test_pictures_of_any_kind(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("face.jpg" if kind in ("CMYK", "huge") else "face.png")
    picture(kind, path)
    pixels, _ = read_inputs(Request(PROMPT, SETTINGS, image=path), ("river", "garden")).pixels(64, 96)[0]
    assert pixels.shape == (64, 96, 3)
    dark, light = pixels[:28].astype(float).mean(), pixels[36:].astype(float).mean()
    assert (dark, light) == pytest.approx((0, 255) if kind == "1" else (40, 200), abs=60 if kind == "1" else 6)


def test_they_make_clips(tmp_path: Path) -> None:
    picture("16 bits", tmp_path / "face.png")
    soundfile.write(tmp_path / "voice.wav", np.repeat(tone(1.0, rate=192_000), 6, axis=0).T, 192_000)
    result = pipeline()(PROMPT, image=tmp_path / "face.png", voice=tmp_path / "voice.wav", settings=SETTINGS)
    assert np.isfinite(result.audio).all()
