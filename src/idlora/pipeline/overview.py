# SPDX-License-Identifier: Apache-2.0
"""One picture that shows clips and sounds: key frames above, the log-mel spectrogram below, a title for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from idlora.core.positions import SAMPLING_RATE
from idlora.data.media import resample
from idlora.networks.mel import LogMel

NUM_KEY_FRAMES = 6
FRAME_SIDE = 128
SPECTROGRAM_HEIGHT = 128
TITLE_HEIGHT = 22
WIDTH = NUM_KEY_FRAMES * FRAME_SIDE
_INK, _PAPER = (32, 32, 40), (250, 250, 247)
# From black through violet and orange to pale yellow: loudness in even steps of lightness.
_COLOURS = np.array([(0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191)], np.float64)
_RANGE = 9.0  # nepers from black to pale yellow: 78 dB


@dataclass(frozen=True, eq=False)
class Panel:
    """A title with sound (channels, N) and, if it is a clip, frames (F, H, W, 3) uint8."""

    title: str
    audio: NDArray[np.float32]
    sample_rate: int
    video: NDArray[np.uint8] | None = None


def overview(panels: Sequence[Panel]) -> Image.Image:
    """All panels one below the other."""
    drawn = [_panel(panel) for panel in panels]
    sheet = Image.new("RGB", (WIDTH, sum(image.height for image in drawn)), _PAPER)
    top = 0
    for image in drawn:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def _panel(panel: Panel) -> Image.Image:
    parts = [] if panel.video is None else [key_frames(panel.video)]
    parts.append(spectrogram(panel.audio, panel.sample_rate))
    image = Image.new("RGB", (WIDTH, TITLE_HEIGHT + sum(part.height for part in parts)), _PAPER)
    seconds = panel.audio.shape[1] / panel.sample_rate
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(image).text((6, 2), f"{panel.title} ({seconds:.2f} s)", fill=_INK, font=font)
    top = TITLE_HEIGHT
    for part in parts:
        image.paste(part, (0, top))
        top += part.height
    return image


def key_frames(video: NDArray[np.uint8]) -> Image.Image:
    """Frames at even distances side by side, the first and the last among them, at the clip's aspect."""
    height = round(FRAME_SIDE * video.shape[1] / video.shape[2])
    strip = Image.new("RGB", (WIDTH, height))
    for column, index in enumerate(np.linspace(0, len(video) - 1, NUM_KEY_FRAMES).round().astype(int)):
        frame = Image.fromarray(video[index]).resize((FRAME_SIDE, height), Image.Resampling.LANCZOS)
        strip.paste(frame, (column * FRAME_SIDE, 0))
    return strip


def spectrogram(audio: NDArray[np.float32], sample_rate: int) -> Image.Image:
    """Log-mel over time as colours, low pitches at the bottom, the loudest point the brightest."""
    mono = resample(audio.mean(axis=0, keepdims=True), sample_rate, SAMPLING_RATE)
    mel = LogMel()(torch.from_numpy(mono.copy())[None])[0, 0].numpy()  # (T, bins)
    level = np.clip(1 + (mel - mel.max()) / _RANGE, 0, 1).T[::-1] * (len(_COLOURS) - 1)
    stops = np.arange(len(_COLOURS))
    pixels = np.stack([np.interp(level, stops, channel) for channel in _COLOURS.T], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8)).resize((WIDTH, SPECTROGRAM_HEIGHT))
