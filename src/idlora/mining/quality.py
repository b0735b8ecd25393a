# SPDX-License-Identifier: Apache-2.0
"""Whether a clip is good enough: noise, clipping, music, whispers, blur, black bars, and cuts that were missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import laplace, uniform_filter1d
from scipy.signal import butter, sosfilt

from idlora.data.media.timeline import frames_between, read_mono
from idlora.evaluation.judges.conditions import Acoustics
from idlora.evaluation.judges.levels import clipped_share
from idlora.mining.mapping import Item, Outcome
from idlora.mining.pitch import pitch_of
from idlora.mining.settings import QualityRules
from idlora.mining.tables import Row, dropped

Floats = NDArray[np.float64]
Frames = NDArray[np.uint8]

NOISY, CLIPPED, MUSIC, WHISPERED, BLURRED, BARS, CUT = (
    "noisy", "clipped", "music", "whispered", "blurred", "black bars", "a cut inside"
)  # fmt: skip
RATE = 16_000
COLUMNS = {
    "clip": "text", "file": "text", "snr": "number", "clipped": "number", "music": "number", "voiced": "number",
    "hertz": "number", "spread": "number", "sharp": "number", "black": "number", "jump": "number",
    "loudness": "number", "contrast": "number", "rt60": "number", "spectrum": "numbers", "low": "number",
    "high": "number",
}  # fmt: skip

_BAND = (400.0, 6000.0)  # Hz
_LOW, _HIGH = 250.0, 2000.0  # Hz, below and above which noise is low and high
_LEAST_FRAMES = 8  # of 32 ms, of pauses that noise can be told from
_SIDE = 320  # pixels
_FAINTEST = 1e-5
_DARK = 20  # of 255: a black bar is darker
_LEAST_CHANGE = 1.5  # grey levels; below, no change is a cut


def quality_of(item: Item) -> Outcome:
    """Measures of every clip of a file, and those that fall short with the first reason.

    Raises:
        MediaError: the file cannot be decoded.
    """
    rules = QualityRules(**item["rules"])
    rows: list[Row] = []
    gone: list[Row] = []
    for clip in item["clips"]:
        measured = measures(item["path"], clip, item["sample_rate"], item["frame_rate"])
        row = {"clip": clip["clip"], **measured}
        fault = fault_of(measured, rules)
        if fault:
            span = (clip["start"], clip["end"])
            gone.append(dropped(clip["clip"], item["file"], fault[0], fault[1], span))
        else:
            rows.append(row)
    return {"rows": rows, "dropped": gone}


def measures(path: str, clip: dict[str, Any], sample_rate: int, frame_rate: float) -> dict[str, Any]:
    """All measures of one clip; `clip` has start, end, speech (spans) and face (left, top, width, height)."""
    start, end = clip["start"], clip["end"]
    frames = np.stack(list(frames_between(path, frame_rate, start, end - 0.5 / frame_rate, _SIDE)))
    raw = read_mono(path, sample_rate or RATE, start, end)
    sound = read_mono(path, RATE, start, end)
    pitch, acoustics = pitch_of(sound), Acoustics.of(sound)
    spans = [(low - start, high - start) for low, high in clip["speech"]]
    noise = background(sound, spans)
    return {
        "snr": snr(sound, spans),
        "clipped": clipped_share(raw),
        "music": music(sound),
        "voiced": pitch.voiced,
        "hertz": pitch.hertz,
        "spread": pitch.spread,
        "sharp": sharpness(frames, clip["face"]),
        "black": black_bars(frames),
        "jump": jump(frames),
        "loudness": acoustics.loudness,
        "contrast": acoustics.snr,
        "rt60": acoustics.rt60,
        "spectrum": [float(np.float32(value)) for value in acoustics.spectrum],
        "low": noise[0] if noise else None,
        "high": noise[1] if noise else None,
    }


def fault_of(measured: dict[str, Any], rules: QualityRules) -> tuple[str, str] | None:
    """The first reason for which a clip is not good enough, and its number beside its limit."""
    checks = (
        (CUT, "jump", rules.most_jump, measured["jump"] > rules.most_jump),
        (BARS, "black", rules.most_black, measured["black"] > rules.most_black),
        (BLURRED, "sharp", rules.least_sharp, measured["sharp"] < rules.least_sharp),
        (CLIPPED, "clipped", rules.most_clipped, measured["clipped"] > rules.most_clipped),
        (WHISPERED, "voiced", rules.least_voiced, measured["voiced"] < rules.least_voiced),
        (MUSIC, "music", rules.most_music, measured["music"] > rules.most_music),
        (NOISY, "snr", rules.least_snr, measured["snr"] < rules.least_snr),
    )
    for reason, name, limit, wrong in checks:
        if wrong:
            return reason, f"{name} {measured[name]:.3g}, the limit is {limit:g}"
    return None


def snr(sound: NDArray[np.float32], spans: Sequence[tuple[float, float]]) -> float:
    """Decibels of a sound (N,) at 16 kHz in its stretches of speech over what is left in its pauses, at most 60.

    Between 400 and 6,000 Hz: the rumble of traffic below hides no voice. Where there is no pause of 0.1 s, the loudest
    tenth of frames of 20 ms over the quietest tenth.
    """
    band = sosfilt(butter(4, _BAND, "bandpass", fs=RATE, output="sos"), sound.astype(np.float64))
    power = np.square(band)
    said = np.zeros(len(sound), bool)
    for low, high in spans:
        said[max(0, round(low * RATE)) : max(0, round(high * RATE))] = True
    if (~said).sum() >= 0.1 * RATE and said.any():
        speech, rest = power[said].mean(), power[~said].mean()
    else:
        frames = power[: len(power) // 320 * 320].reshape(-1, 320).mean(axis=1)
        speech, rest = np.percentile(frames, 90), np.percentile(frames, 10)
    return float(min(60.0, 10 * np.log10(max(speech, _FAINTEST**2) / max(rest, _FAINTEST**2))))


def background(sound: NDArray[np.float32], spans: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Shares of the power in the pauses of a sound (N,) at 16 kHz below 250 Hz and above 2 kHz; None without pauses.

    Args:
        sound: of a clip.
        spans: seconds of it in which somebody speaks.
    """
    size = 512
    said = np.zeros(len(sound), bool)
    for low, high in spans:
        said[max(0, round(low * RATE)) : max(0, round(high * RATE))] = True
    count = len(sound) // size
    frames = sound[: count * size].reshape(count, size).astype(np.float64)
    frames = frames[~said[: count * size].reshape(count, size).any(axis=1)]
    if len(frames) < _LEAST_FRAMES:
        return None
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(size), axis=1))).mean(axis=0)[1:]
    hertz = np.fft.rfftfreq(size, 1 / RATE)[1:]
    whole = max(float(power.sum()), 1e-12)
    return float(power[hertz < _LOW].sum()) / whole, float(power[hertz > _HIGH].sum()) / whole


def music(sound: NDArray[np.float32]) -> float:
    """Share of a sound (N,) at 16 kHz in which a tone stands still for a third of a second: notes do, voices do not.

    A tone is a peak of the spectrum (windows of 128 ms, every 32 ms) between 150 and 2,500 Hz that stands 12 dB above
    its surroundings and within 35 dB of the loudest. It stands still where one bin holds a peak in ten windows on end
    and its level neither falls by 4 dB, as the echo of a hall does, nor moves by more than 8.
    """
    size, hop, run = 2048, 512, 10
    if len(sound) < size + run * hop:
        return 0.0
    windows = np.lib.stride_tricks.sliding_window_view(sound.astype(np.float64), size)[::hop] * np.hanning(size)
    levels = 20 * np.log10(np.abs(np.fft.rfft(windows, axis=1)) + 1e-9)
    low, high = round(150 * size / RATE), round(2500 * size / RATE)
    inner = levels[:, low:high]
    peaks = (inner > levels[:, low - 1 : high - 1]) & (inner >= levels[:, low + 1 : high + 1])
    peaks &= (inner > uniform_filter1d(levels, 25, axis=1)[:, low:high] + 12) & (inner > levels.max() - 35)
    peaks[:, 1:] |= peaks[:, :-1].copy()
    through = np.lib.stride_tricks.sliding_window_view(peaks, run, axis=0).all(axis=-1)
    heights = np.lib.stride_tricks.sliding_window_view(inner, run, axis=0)
    steady = (heights[..., -1] > heights[..., 0] - 4) & (np.ptp(heights, axis=-1) < 8)
    return float((through & steady).any(axis=1).mean())


def sharpness(frames: Frames, face: Sequence[float]) -> float:
    """Spread of the Laplacian of the face over the spread of its brightness, the median of five frames (F, H, W, 3)."""
    height, width = frames.shape[1:3]
    left, top, wide, high = face
    rows = slice(max(0, int(top * height)), max(2, int((top + high) * height)))
    columns = slice(max(0, int(left * width)), max(2, int((left + wide) * width)))
    chosen = frames[np.linspace(0, len(frames) - 1, 5).astype(int), rows, columns].astype(np.float64).mean(axis=-1)
    return float(np.median([laplace(grey).std() / (grey.std() + 1.0) for grey in chosen]))


def black_bars(frames: Frames) -> float:
    """The larger share of rows or of columns at the borders that stay black through frames (F, H, W, 3)."""
    brightest = frames.max(axis=(0, 3))
    shares = []
    for axis in (1, 0):
        dark = brightest.max(axis=axis) < _DARK
        lit = np.flatnonzero(~dark)
        shares.append(1.0 if not len(lit) else (lit[0] + len(dark) - 1 - lit[-1]) / len(dark))
    return float(max(shares))


def jump(frames: Frames) -> float:
    """The greatest change between neighbours in frames (F, H, W, 3) as a multiple of the median one."""
    grey = frames[:, ::2, ::2].astype(np.float32).mean(axis=3)
    changes = np.abs(np.diff(grey, axis=0)).mean(axis=(1, 2))
    if not len(changes) or changes.max() < _LEAST_CHANGE:
        return 0.0
    return float(changes.max() / max(float(np.median(changes)), _LEAST_CHANGE / 4))
