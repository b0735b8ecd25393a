# SPDX-License-Identifier: Apache-2.0
"""One clip of the miniature world: who is seen and heard, what is said how and where; its sound, mouth and picture."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from idlora.data.world.look import OBJECTS, PLACES, Face, Look, render
from idlora.data.world.sound import in_place
from idlora.data.world.voice import SAMPLE_RATE, STYLES, VOCABULARY, Array, Speech, Voice, speak, word_spans

FRAME_RATE = 25
NUM_FRAMES = 57
SIZE = 96
NUM_WORDS = 3
FIRST_ONSET = 0.12
BEAT = 0.68
# how far the lips part for a phone: closed 0, wide open 1 (phones not listed: 0.45)
OPENNESS = {
    **dict.fromkeys(("m", "p", "b"), 0.0),
    **dict.fromkeys(("f", "v", "s", "z", "t", "d", "th", "n", "ng", "k", "g"), 0.3),
    **dict.fromkeys(("aa", "ae", "ao", "ay", "ah"), 1.0),
    **dict.fromkeys(("eh", "ey", "ow", "er", "ax"), 0.75),
}
# how the lips are drawn: rounded -1, spread 1 (phones not listed: 0)
WIDTH = {
    **dict.fromkeys(("uw", "w", "ow", "ao", "er"), -1.0),
    **dict.fromkeys(("iy", "ey", "ih", "eh", "s", "z"), 0.8),
}


@dataclass(frozen=True)
class ClipSpec:
    """Everything that makes a clip. strike: second at which the object is struck; seed: sway, blinks and noise."""

    face: Face
    voice: Voice
    words: tuple[str, ...]
    style: str
    place: str
    object: str
    strike: float
    seed: int

    @property
    def strikes(self) -> tuple[float, ...]:
        """Seconds at which the object is struck; empty without an object."""
        return () if self.object == "none" else (self.strike,)


@dataclass(frozen=True)
class Sound:
    """Sound of a clip: samples (N,) at 16 kHz, the dry speech in it (N,), and phones with start and end in seconds."""

    samples: Array
    dry: Array
    phones: tuple[tuple[str, float, float], ...]


def held_out_order(words: tuple[str, ...]) -> bool:
    """Whether this order of words belongs to the tenth that training never sees."""
    return hashlib.sha256(" ".join(words).encode()).digest()[0] < 26


def draw_words(rng: np.random.Generator, held_out: bool = False, avoid: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Draw three different words, none of `avoid`, whose order is (or is not) held out from training."""
    choices = [word for word in VOCABULARY if word not in avoid]
    while True:
        words = tuple(str(word) for word in rng.choice(choices, NUM_WORDS, replace=False))
        if held_out_order(words) == held_out:
            return words


def draw_clip(rng: np.random.Generator, voice: Voice, held_out: bool = False) -> ClipSpec:
    """Draw a clip of `voice`: face, words, style, place and object are drawn independently of it and of each other."""
    return ClipSpec(
        face=Face.draw(rng),
        voice=voice,
        words=draw_words(rng, held_out),
        style=str(rng.choice(tuple(STYLES), p=(0.55, 0.15, 0.15, 0.15))),
        place=str(rng.choice(PLACES, p=(0.4, 0.2, 0.2, 0.2))),
        object=str(rng.choice(OBJECTS, p=(0.55, 0.15, 0.15, 0.15))),
        strike=float(rng.uniform(0.2, 2.0)),
        seed=int(rng.integers(2**31)),
    )


def draw_reference(rng: np.random.Generator, voice: Voice, seconds: float, avoid: tuple[str, ...] = ()) -> ClipSpec:
    """Draw what a user hands in as a voice: calm words, none of `avoid`, that fill `seconds`, in a random place."""
    spec = draw_clip(rng, voice, held_out=True)
    words = [word for word in VOCABULARY if word not in avoid]
    said = rng.choice(words, max(1, int((seconds - FIRST_ONSET - 0.1) / BEAT)), replace=False)
    chosen = tuple(str(word) for word in said)
    return replace(spec, words=chosen, style="calm", object="none", place=str(rng.choice(PLACES)))


def render_sound(spec: ClipSpec, num_samples: int = NUM_FRAMES * SAMPLE_RATE // FRAME_RATE) -> Sound:
    """Speak the words on the beat and put them into the place; the result is cut or padded to `num_samples`."""
    rng = np.random.default_rng([spec.seed, 1])
    style = STYLES[spec.style]
    speech: Speech = speak(spec.voice, list(spec.words), _onsets(spec, rng), style, rng)
    dry = np.zeros(num_samples)
    dry[: len(speech.samples)] = speech.samples[:num_samples]
    return Sound(in_place(dry, spec.place, spec.strikes, spec.object, rng), dry, speech.phones)


def spoken(spec: ClipSpec) -> list[tuple[float, float]]:
    """Start and end in seconds of each spoken word."""
    onsets = _onsets(spec, np.random.default_rng([spec.seed, 1]))
    return word_spans(spec.voice, list(spec.words), onsets, STYLES[spec.style])


def _onsets(spec: ClipSpec, rng: np.random.Generator) -> list[float]:
    beat = BEAT / STYLES[spec.style].tempo
    return [FIRST_ONSET + beat * index + rng.uniform(-0.03, 0.03) for index in range(len(spec.words))]


def mouth(sound: Sound, num_frames: int = NUM_FRAMES) -> tuple[Array, Array]:
    """Lip opening 0..1 and width -1..1, (F,) each: the phone's shape, opened as far as the speech is loud then."""
    energy = speech_energy(sound.dry, num_frames)
    loudness = energy / (np.percentile(energy, 95) + 1e-9)
    openness, width = _shapes(sound.phones, num_frames)
    opening = np.clip(loudness * (0.55 + 0.45 * openness), 0.0, 1.0)
    return opening, width


def speech_energy(samples: Array, num_frames: int, frame_rate: float = FRAME_RATE) -> Array:
    """Square root of the root mean square of the samples of each frame, (F,): what lips are compared with."""
    edges = np.round(np.arange(num_frames + 1) * SAMPLE_RATE / frame_rate).astype(int)
    padded = np.pad(samples, (0, max(0, edges[-1] - len(samples))))
    power = [np.mean(padded[start:end] ** 2) for start, end in pairwise(edges)]
    return np.asarray(np.array(power) ** 0.25)


def _shapes(phones: tuple[tuple[str, float, float], ...], num_frames: int) -> tuple[Array, Array]:
    """Mean openness and width of the phones heard during each frame, (F,) each; 0 in silence."""
    time = (np.arange(num_frames * 8) + 0.5) / (8 * FRAME_RATE)
    openness, width = np.zeros(len(time)), np.zeros(len(time))
    for name, start, end in phones:
        heard = (time >= start) & (time < end)
        openness[heard], width[heard] = OPENNESS.get(name, 0.45), WIDTH.get(name, 0.0)
    return openness.reshape(-1, 8).mean(1), width.reshape(-1, 8).mean(1)


def render_picture(spec: ClipSpec, sound: Sound, num_frames: int = NUM_FRAMES, size: int = SIZE) -> NDArray[np.uint8]:
    """Frames (F, size, size, 3) of the person speaking `sound`."""
    opening, width = mouth(sound, num_frames)
    look = Look(face=spec.face, place=spec.place, object=spec.object, seed=spec.seed)
    return render(look, opening, width, spec.strikes, frame_rate=FRAME_RATE, size=size)
