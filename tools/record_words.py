# SPDX-License-Identifier: Apache-2.0
"""Record the words of the miniature world with flite and store them as WORLD vocoder parameters.

Run once by a maintainer, never by users: `python tools/record_words.py`. Needs the program `flite` (2.2) and
the packages pyworld (0.3.5), numpy and soundfile. Writes src/idlora/data/world/assets/words.npz, which ships.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pyworld
import soundfile

WORDS = (
    "zero one two three four five six seven eight nine "
    "river garden coffee music happy yellow window doctor sunday morning purple dragon candle silver"
).split()
# flite voice -> duration stretch that brings its speaking rate near the others'
VOICES = {"kal16": 1.15, "awb": 1.1, "rms": 0.95, "slt": 1.0}
FRAME_MS = 5.0
NUM_BANDS = 80
FFT_SIZE = 1024
RATE = 16000
ASSET = Path(__file__).parents[1] / "src/idlora/data/world/assets/words.npz"


def speak(voice: str, word: str) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """Return the waveform of one word and its phones with their end times in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={VOICES[voice]}", "-psdur", "-t", word, "-o"]
        printed = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True).stdout
        samples, rate = soundfile.read(path)
    assert rate == RATE, f"{voice} speaks at {rate} Hz"
    phones = [(name, float(end)) for name, end in (item.split(":") for item in printed.split())]
    return samples, phones


def band_edges() -> np.ndarray:
    """Frequencies (Hz) of the stored envelope: evenly spaced on the mel scale from 0 to 8 kHz."""
    mel = np.linspace(0.0, 2595.0 * np.log10(1.0 + RATE / 2 / 700.0), NUM_BANDS)
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def analyse(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """WORLD analysis: f0 in Hz (T,), envelope in dB (T, NUM_BANDS), aperiodicity in 0..1 (T, NUM_BANDS)."""
    f0, times = pyworld.harvest(samples, RATE, f0_floor=60.0, f0_ceil=350.0, frame_period=FRAME_MS)
    envelope = pyworld.cheaptrick(samples, f0, times, RATE, fft_size=FFT_SIZE)
    aperiodicity = pyworld.d4c(samples, f0, times, RATE, fft_size=FFT_SIZE)
    bins = np.linspace(0.0, RATE / 2, FFT_SIZE // 2 + 1)
    decibels = 10.0 * np.log10(np.maximum(envelope, 1e-12))
    sample = lambda rows: np.stack([np.interp(band_edges(), bins, row) for row in rows])  # noqa: E731
    return f0, sample(decibels), sample(aperiodicity)


def main() -> None:
    """Record every word in every voice."""
    arrays: dict[str, np.ndarray] = {}
    phones_of: dict[str, list[tuple[str, float]]] = {}
    for voice in VOICES:
        for word in WORDS:
            samples, phones = speak(voice, word)
            start = phones[0][1] - 0.015
            spoken = [(name, end) for name, end in phones[1:] if name != "pau"]
            f0, envelope, aperiodicity = analyse(samples)
            rows = slice(int(start / FRAME_MS * 1000), int((spoken[-1][1] + 0.03) / FRAME_MS * 1000))
            key = f"{voice}/{word}"
            arrays[f"{key}/f0"] = f0[rows].astype(np.float16)
            arrays[f"{key}/envelope"] = np.clip(np.round(2.0 * (envelope[rows] + 120.0)), 0, 255).astype(np.uint8)
            arrays[f"{key}/aperiodicity"] = np.round(255.0 * aperiodicity[rows, ::8]).astype(np.uint8)
            phones_of[key] = [(name, round(end - start, 3)) for name, end in spoken]
    arrays["phones"] = np.frombuffer(json.dumps(phones_of).encode(), dtype=np.uint8)
    np.savez_compressed(ASSET, **arrays)


if __name__ == "__main__":
    main()
