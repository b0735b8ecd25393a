# SPDX-License-Identifier: Apache-2.0
"""The voices of the miniature world: recorded words, warped into hundreds of speakers and spoken again.

The recordings are WORLD parameters (pitch, spectral envelope, aperiodicity; Morise et al. 2016) of words spoken by four
flite voices, made once by `tools/record_words.py`. A speaker is a base voice with its own pitch, vocal-tract length,
rate, tilt and breathiness; a style changes how that speaker says the words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SAMPLE_RATE = 16_000
FRAME_SECONDS = 0.005
NUM_BANDS = 80
FFT_SIZE = 1024
SILENCE_DB = -120.0
TAIL_ROWS = 20  # in which the last sound dies away

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOUNS = tuple("river garden coffee music happy yellow window doctor sunday morning purple dragon candle silver".split())
VOCABULARY = DIGITS + NOUNS
BASE_VOICES = ("kal16", "rms", "slt")
HELD_OUT_VOICE = "awb"


@dataclass(frozen=True)
class Recording:
    """One word by one base voice, at 5 ms a row: f0 (T,) Hz, 0 unvoiced; envelope (T, 80) dB; aperiodicity (T, 80)."""

    f0: Array
    envelope: Array
    aperiodicity: Array
    phones: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Style:
    """How words are said: tempo and pitch factors, level in dBFS, spectral tilt in dB an octave, voiced or not."""

    tempo: float = 1.0
    pitch: float = 1.0
    level: float = -23.0
    tilt: float = 0.0
    voiced: bool = True


STYLES = {
    "calm": Style(),
    "loud": Style(pitch=1.25, level=-14.0, tilt=3.0),
    "fast": Style(tempo=1.4, pitch=1.05, level=-21.0),
    "whispered": Style(level=-30.0, tilt=1.5, voiced=False),
}


@dataclass(frozen=True)
class Voice:
    """A speaker: base recordings, mean f0 in Hz, vocal-tract factor (< 1 longer), and manner.

    formant 0.86..1.16 scales the envelope's frequencies, intonation 0.4..1.6 the pitch movement, tilt -2.5..2.5 dB an
    octave, rate 0.9..1.12 the speaking rate, breathiness 0..0.4 the share of noise in voiced sounds.
    """

    base: str
    f0: float
    formant: float
    intonation: float
    tilt: float
    rate: float
    breathiness: float

    @classmethod
    def draw(cls, rng: np.random.Generator, bases: tuple[str, ...] = BASE_VOICES) -> Voice:
        """Draw a speaker from `rng`; pitch and vocal tract are drawn apart, so that neither tells the other."""
        return cls(
            base=str(rng.choice(bases)),
            f0=float(np.exp(rng.uniform(np.log(90.0), np.log(240.0)))),
            formant=float(rng.uniform(0.86, 1.16)),
            intonation=float(rng.uniform(0.4, 1.6)),
            tilt=float(rng.uniform(-2.5, 2.5)),
            rate=float(rng.uniform(0.9, 1.12)),
            breathiness=float(rng.uniform(0.0, 0.4) * (rng.random() < 0.5)),
        )


@dataclass(frozen=True)
class Speech:
    """Words spoken by one voice: samples (N,) at 16 kHz and the phones with start and end in seconds."""

    samples: Array
    phones: tuple[tuple[str, float, float], ...]


@cache
def recordings() -> dict[tuple[str, str], Recording]:
    """Read the shipped recordings, keyed by (base voice, word)."""
    with files("idlora.data.world").joinpath("assets/words.npz").open("rb") as stream:
        arrays = dict(np.load(stream))
    phones = json.loads(arrays["phones"].tobytes())
    return {tuple(key.split("/")): _recording(arrays, key, spoken) for key, spoken in phones.items()}


def _recording(arrays: dict[str, NDArray[np.generic]], key: str, phones: list[tuple[str, float]]) -> Recording:
    coarse = arrays[f"{key}/aperiodicity"].astype(float) / 255.0  # (T, 10)
    bands = np.linspace(0, coarse.shape[1] - 1, NUM_BANDS)
    return Recording(
        f0=arrays[f"{key}/f0"].astype(float),
        envelope=arrays[f"{key}/envelope"].astype(float) / 2.0 - 120.0,
        aperiodicity=_take_columns(coarse, bands),
        phones=tuple((name, end) for name, end in phones),
    )


def speak(voice: Voice, words: list[str], onsets: list[float], style: Style, rng: np.random.Generator) -> Speech:
    """Say `words`, each from its onset in seconds, and return the sound (its length ends with the last word).

    The level is set over the spoken part: root mean square `style.level` dBFS.
    """
    tracks = [_word_track(voice, recordings()[voice.base, word], style) for word in words]
    line = _timeline(tracks, [round(onset / FRAME_SECONDS) for onset in onsets])
    samples = synthesise(line.f0, line.envelope, line.aperiodicity, rng)
    spoken = np.repeat(line.envelope.max(axis=1) > SILENCE_DB, round(FRAME_SECONDS * SAMPLE_RATE))
    rms = np.sqrt(np.mean(samples[spoken] ** 2)) + 1e-9
    phones = [phone for onset, track in zip(onsets, tracks, strict=True) for phone in _heard(track, onset)]
    return Speech(samples * 10 ** (style.level / 20) / rms, tuple(phones))


def word_spans(voice: Voice, words: list[str], onsets: list[float], style: Style) -> list[tuple[float, float]]:
    """Start and end in seconds of each word as `speak` says it."""
    tracks = [_word_track(voice, recordings()[voice.base, word], style) for word in words]
    return [(onset, onset + track.phones[-1][1]) for onset, track in zip(onsets, tracks, strict=True)]


def _timeline(tracks: list[Recording], firsts: list[int]) -> Recording:
    """All words on one time axis, each from its first row; between them silence."""
    length = max(first + len(track.f0) for first, track in zip(firsts, tracks, strict=True)) + TAIL_ROWS
    f0, aperiodicity = np.zeros(length), np.ones((length, NUM_BANDS))
    envelope = np.full((length, NUM_BANDS), SILENCE_DB)
    for first, track in zip(firsts, tracks, strict=True):
        rows = slice(first, first + len(track.f0))
        f0[rows], envelope[rows], aperiodicity[rows] = track.f0, track.envelope, track.aperiodicity
    return Recording(f0, envelope, aperiodicity, ())


def _heard(track: Recording, onset: float) -> list[tuple[str, float, float]]:
    """The word's phones with start and end in seconds of the clip."""
    ends = [onset + end for _, end in track.phones]
    return [(name, start, end) for (name, _), start, end in zip(track.phones, [onset, *ends], ends, strict=False)]


def _word_track(voice: Voice, word: Recording, style: Style) -> Recording:
    """Warp one recording: time by rate and tempo, frequency axis by the vocal tract, pitch, tilt and breath."""
    tempo = voice.rate * style.tempo
    rows = np.linspace(0, len(word.f0) - 1, round(len(word.f0) / tempo))
    bands = _bands_at(mel_frequencies() / voice.formant)
    envelope = _take_columns(_take_rows(word.envelope, rows), bands)
    octaves = np.log2(np.maximum(mel_frequencies(), 100.0) / 1000.0)
    envelope = envelope + (voice.tilt + style.tilt) * octaves
    aperiodicity = np.maximum(_take_columns(_take_rows(word.aperiodicity, rows), bands), voice.breathiness)
    phones = tuple((name, end / tempo) for name, end in word.phones)
    return Recording(_pitch(voice, word, style, rows), envelope, aperiodicity, phones)


def _pitch(voice: Voice, word: Recording, style: Style, rows: Array) -> Array:
    """Move the recorded contour to the speaker's mean pitch, its movement scaled in the log domain."""
    if not style.voiced:
        return np.zeros(len(rows))
    f0 = word.f0[np.round(rows).astype(int)]
    voiced = f0 > 0
    movement = np.log(np.where(voiced, f0, 1.0)) - _mean_log_f0(voice.base)
    return np.where(voiced, voice.f0 * style.pitch * np.exp(voice.intonation * movement), 0.0)


@cache
def _mean_log_f0(base: str) -> float:
    voiced = np.concatenate([r.f0[r.f0 > 0] for (name, _), r in recordings().items() if name == base])
    return float(np.mean(np.log(voiced)))


def synthesise(f0: Array, envelope: Array, aperiodicity: Array, rng: np.random.Generator) -> Array:
    """Sound from f0 (T,) Hz, envelope (T, 80) dB and aperiodicity (T, 80) at 5 ms a row: pulses plus filtered noise."""
    hop = round(FRAME_SECONDS * SAMPLE_RATE)
    out = np.zeros(len(f0) * hop + 2 * FFT_SIZE)
    _add_pulses(out, f0, envelope, aperiodicity, hop)
    _add_noise(out, envelope, aperiodicity, hop, rng)
    return out[: len(f0) * hop]


def _add_pulses(out: Array, f0: Array, envelope: Array, aperiodicity: Array, hop: int) -> None:
    pitch = np.repeat(f0, hop)
    phase = np.cumsum(pitch / SAMPLE_RATE)
    positions = np.flatnonzero(np.diff(np.floor(phase)) > 0) + 1
    if not len(positions):
        return
    late = (phase[positions] % 1.0) / (pitch[positions] / SAMPLE_RATE + 1e-9)  # samples since the true crossing
    rows = np.minimum(positions / hop, len(f0) - 1)
    periodic = np.sqrt(np.maximum(1.0 - _take_rows(aperiodicity, rows) ** 2, 1e-6))
    level = 0.5 * envelope_log(_take_rows(envelope, rows)) + np.log(periodic)
    level += 0.5 * np.log(SAMPLE_RATE / np.maximum(pitch[positions], 1.0))[:, None]
    omega = 2 * np.pi * np.arange(FFT_SIZE // 2 + 1) / FFT_SIZE
    shift = np.exp(-1j * omega * (1.0 - np.clip(late, 0.0, 1.0))[:, None])
    pulses = np.fft.irfft(minimum_phase(level) * shift, axis=1)  # (P, FFT_SIZE)
    for position, pulse in zip(positions, pulses, strict=True):
        out[position : position + FFT_SIZE] += pulse


def _add_noise(out: Array, envelope: Array, aperiodicity: Array, hop: int, rng: np.random.Generator) -> None:
    active = np.flatnonzero(envelope.max(axis=1) > SILENCE_DB)
    window = np.hanning(2 * hop + 1)[:-1]
    noise = rng.standard_normal((len(active), 2 * hop)) * window
    level = 0.5 * envelope_log(envelope[active]) + np.log(np.maximum(aperiodicity[active], 1e-3))
    spectrum = np.fft.rfft(noise, FFT_SIZE, axis=1) * minimum_phase(level)
    for row, burst in zip(active, np.fft.irfft(spectrum, axis=1), strict=True):
        out[row * hop : row * hop + FFT_SIZE] += burst


def envelope_log(decibels: Array) -> Array:
    """Natural log of power from dB."""
    return np.asarray(decibels * (np.log(10.0) / 10.0))


def minimum_phase(log_amplitude_bands: Array) -> NDArray[np.complex128]:
    """Minimum-phase spectrum (P, FFT_SIZE/2 + 1) of a log amplitude given on the mel bands (P, 80), by its cepstrum."""
    linear = _take_columns(log_amplitude_bands, _bands_at(np.linspace(0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1)))
    cepstrum = np.fft.irfft(linear, axis=1)
    cepstrum[:, 1 : FFT_SIZE // 2] *= 2.0
    cepstrum[:, FFT_SIZE // 2 + 1 :] = 0.0
    spectrum: NDArray[np.complex128] = np.exp(np.fft.rfft(cepstrum, axis=1))
    return spectrum


@cache
def _mel_frequencies() -> Array:
    mel = np.linspace(0.0, 2595.0 * np.log10(1.0 + SAMPLE_RATE / 2 / 700.0), NUM_BANDS)
    return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))


def mel_frequencies() -> Array:
    """Frequencies in Hz of the 80 stored bands, evenly spaced on the mel scale from 0 to 8 kHz."""
    return _mel_frequencies()


def _bands_at(frequencies: Array) -> Array:
    """Fractional band indices of frequencies in Hz, clamped to the stored range."""
    return np.interp(frequencies, mel_frequencies(), np.arange(NUM_BANDS))


def _take_rows(table: Array, rows: Array) -> Array:
    low = np.floor(rows).astype(int)
    high = np.minimum(low + 1, len(table) - 1)
    share = (rows - low)[:, None]
    return np.asarray(table[low] * (1.0 - share) + table[high] * share)


def _take_columns(table: Array, columns: Array) -> Array:
    return _take_rows(table.T, columns).T
