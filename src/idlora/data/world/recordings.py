# SPDX-License-Identifier: Apache-2.0
"""Raw recordings of the world, as somebody's camera leaves them: shots, cuts, places, and what is no use for training.

All is known about each of them, so that what is mined from such files can be compared with the truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idlora.data.media import write_mp4
from idlora.data.processes import counted
from idlora.data.world.clip import BEAT, FRAME_RATE, NUM_WORDS, SIZE, Sound, mouth
from idlora.data.world.look import Face, Look, render
from idlora.data.world.places import PLACES, background
from idlora.data.world.sound import in_place
from idlora.data.world.voice import SAMPLE_RATE, STYLES, VOCABULARY, Array, Voice, speak, word_spans
from idlora.errors import InputError

TALK, INTERVIEW, MUSIC, WHISPER = "talk", "interview", "music", "whisper"
LISTENER, DUB, SCENERY, TWO = "listener", "dub", "scenery", "two people"
USABLE = (TALK, INTERVIEW)
"""Kinds of shots that hold training clips: one face that says what is heard, and nothing else."""

LEAST_APART = 2.0
"""Just noticeable steps between two speakers, see `apart`."""

_STEPS = {"f0": 0.1, "formant": 0.025, "intonation": 0.4, "tilt": 1.5, "breathiness": 0.15}  # f0 in octaves
_MOST_DRAWS = 5000
_SEED = 9_100_019
_BETWEEN = (INTERVIEW, MUSIC, WHISPER, LISTENER, DUB, SCENERY)
_SHARES = (0.1, 0.2, 0.1, 0.2, 0.2, 0.2)
_LEAD, _PAUSE, _TAIL = 0.35, 0.55, 0.45  # seconds before, between and after phrases
_SAMPLES_A_FRAME = SAMPLE_RATE // FRAME_RATE
_CHORDS = ((220.0, 277.2, 329.6), (246.9, 311.1, 370.0), (196.0, 246.9, 293.7))


@dataclass(frozen=True)
class Shot:
    """What is seen between two cuts, and what is heard meanwhile.

    Attributes:
        kind: one of the names above.
        speaker: number of who is heard; -1 = nobody.
        phrases: words, with a pause between phrases.
        style: how they are said.
        seed: of face, sway and noise.
        place: what is seen around.
    """

    kind: str
    speaker: int
    phrases: tuple[tuple[str, ...], ...]
    style: str
    seed: int
    place: str

    @property
    def onsets(self) -> list[float]:
        """Seconds into the shot at which each word begins."""
        beat, found, at = BEAT / STYLES[self.style].tempo, [], _LEAD
        for phrase in self.phrases:
            found += [at + beat * place for place in range(len(phrase))]
            at += beat * len(phrase) + _PAUSE
        return found

    @property
    def words(self) -> list[str]:
        """All words in order."""
        return [word for phrase in self.phrases for word in phrase]

    @property
    def num_frames(self) -> int:
        """Length of the shot; a silent one has two seconds."""
        last = self.onsets[-1] + BEAT / STYLES[self.style].tempo + _TAIL if self.phrases else 2.0
        return round(last * FRAME_RATE)


@dataclass(frozen=True)
class Recording:
    """One file: shots in one place, by name."""

    name: str
    place: str
    shots: tuple[Shot, ...]
    seed: int

    def truth(self) -> dict[str, Any]:
        """What is so: name, place, and of every shot its span, kind, who speaks, and the words with their spans."""
        ends = list(accumulate(shot.num_frames for shot in self.shots))
        starts = [0, *ends[:-1]]
        spans = [(start / FRAME_RATE, end / FRAME_RATE) for start, end in zip(starts, ends, strict=True)]
        told = [_told(shot, *span) for shot, span in zip(self.shots, spans, strict=True)]
        return {"file": f"{self.name}.mp4", "place": self.place, "shots": told}


def voice_of(speaker: int) -> Voice:
    """The voice of a speaker of these recordings; no other part of the world knows them.

    A voice of the world is seven numbers, so that a hundred drawn ones hold pairs whom nobody could tell apart. Each is
    drawn again until it is at least `LEAST_APART` from every one before it.
    """
    return _voices(speaker + 1)[speaker]


def apart(first: Voice, second: Voice) -> float:
    """How far two voices are from each other, in just noticeable steps; infinite for two base voices."""
    if first.base != second.base:
        return float("inf")
    return float(np.linalg.norm(in_steps(first) - in_steps(second)))


def in_steps(voice: Voice) -> Array:
    """Where a voice is among those of its base, (5,) in just noticeable steps: all that makes it but the rate."""
    octaves = float(np.log2(voice.f0))
    others = [getattr(voice, name) / step for name, step in _STEPS.items() if name != "f0"]
    return np.array([octaves / _STEPS["f0"], *others])


@cache
def _voices(count: int) -> tuple[Voice, ...]:
    if not count:
        return ()
    before = _voices(count - 1)
    rng = np.random.default_rng([_SEED, count - 1])
    for _ in range(_MOST_DRAWS):
        voice = Voice.draw(rng)
        if all(apart(voice, other) >= LEAST_APART for other in before):
            return (*before, voice)
    raise InputError(f"no {count} speakers can be told apart in this world; ask for fewer")


def _told(shot: Shot, start: float, end: float) -> dict[str, Any]:
    who = f"speaker-{shot.speaker:04d}" if shot.speaker >= 0 else ""
    spans: list[tuple[float, float]] = []
    if shot.phrases:
        spans = word_spans(voice_of(shot.speaker), shot.words, shot.onsets, STYLES[shot.style])
    words = [(word, start + low, start + high) for word, (low, high) in zip(shot.words, spans, strict=True)]
    return {"start": start, "end": end, "kind": shot.kind, "speaker": who, "style": shot.style, "words": words}


def draw_recordings(num_speakers: int, files: int = 3, talks: int = 2, first: int = 0) -> list[Recording]:
    """Files of every speaker: all but the last in one place, the last in another, where there are two or more.

    Args:
        num_speakers: how many; each is the guest of others now and then.
        files: of each.
        talks: usable shots of each file.
        first: number of the first speaker; other numbers are other people with other recordings.
    """
    found = []
    for speaker in range(first, first + num_speakers):
        rng = np.random.default_rng([_SEED, 1, speaker])
        here, there = (str(place) for place in rng.choice(PLACES, 2, replace=False))
        for number in range(files):
            place = there if number and number == files - 1 else here
            shots = _draw_shots(rng, speaker, range(first, first + num_speakers), talks, place)
            found.append(Recording(f"{speaker:04d}-{number}", place, shots, int(rng.integers(2**31))))
    return found


def _draw_shots(rng: np.random.Generator, speaker: int, people: range, talks: int, place: str) -> tuple[Shot, ...]:
    """Usable shots with others between them; every cut shows another picture."""
    face, shots = int(rng.integers(2**31)), []
    for number in range(talks):
        if number:
            shots.append(_between(rng, speaker, people, place))
        shots.append(Shot(TALK, speaker, _phrases(rng, 2), _style(rng), face, place))
    return tuple(shots)


def _between(rng: np.random.Generator, speaker: int, people: range, place: str) -> Shot:
    kind = str(rng.choice(_BETWEEN, p=_SHARES))
    further = 1 + int(rng.integers(max(1, len(people) - 1))) if kind == INTERVIEW else 0
    who = people[(people.index(speaker) + further) % len(people)]
    style = "whispered" if kind == WHISPER else _style(rng)
    silent = kind == SCENERY
    seen = str(rng.choice([other for other in PLACES if other != place])) if kind == SCENERY else place
    phrases = () if silent else _phrases(rng, 2 if kind == INTERVIEW else 1)
    return Shot(kind, -1 if silent else who, phrases, style, int(rng.integers(2**31)), seen)


def draw_conversations(num_speakers: int, count: int, first: int = 0) -> list[Recording]:
    """Files with two people side by side all the time, of whom one speaks; `first` as of `draw_recordings`."""
    found = []
    for number in range(first, first + count):
        rng = np.random.default_rng([_SEED, 2, number])
        place, speaker = str(rng.choice(PLACES)), first + int(rng.integers(num_speakers))
        shot = Shot(TWO, speaker, _phrases(rng, 2), "calm", int(rng.integers(2**31)), place)
        found.append(Recording(f"two-{number:04d}", place, (shot,), int(rng.integers(2**31))))
    return found


def _phrases(rng: np.random.Generator, count: int) -> tuple[tuple[str, ...], ...]:
    words = [str(word) for word in rng.choice(VOCABULARY, count * NUM_WORDS, replace=False)]
    return tuple(tuple(words[place : place + NUM_WORDS]) for place in range(0, len(words), NUM_WORDS))


def _style(rng: np.random.Generator) -> str:
    return str(rng.choice(("calm", "loud", "fast"), p=(0.7, 0.15, 0.15)))


def render_heard(recording: Recording) -> tuple[NDArray[np.float32], list[Sound]]:
    """The sound (N,) at 16 kHz of a whole file, and the dry speech of every shot."""
    rng = np.random.default_rng([recording.seed, 1])
    dry = [_spoken(shot, rng) for shot in recording.shots]
    placed = in_place(np.concatenate([sound.dry for sound in dry]), recording.place, (), "none", rng)
    music = np.concatenate([_music(shot, rng) for shot in recording.shots])
    sound = placed + music
    return (sound / max(1.0, float(np.abs(sound).max()) / 0.99)).astype(np.float32), dry


def render_seen(recording: Recording, dry: list[Sound]) -> NDArray[np.uint8]:
    """The frames (F, 96, 96 or 192, 3) of a whole file."""
    return np.concatenate([_seen(shot, sound) for shot, sound in zip(recording.shots, dry, strict=True)])


def write_recording(recording: Recording, folder: Path) -> Path:
    """Write a recording as `<name>.mp4` if it is not there yet (OutputError if it cannot be); returns its path."""
    path = folder / f"{recording.name}.mp4"
    if not path.exists():
        sound, dry = render_heard(recording)
        write_mp4(path, render_seen(recording, dry), FRAME_RATE, sound[None], SAMPLE_RATE)
    return path


def write_recordings(recordings: Sequence[Recording], folder: Path, workers: int = 1) -> Iterator[int]:
    """Write recordings into a folder that is there; yields how many are there after each.

    Raises:
        OutputError: a file cannot be written.
    """
    return counted(partial(write_recording, folder=folder), recordings, workers)


def _spoken(shot: Shot, rng: np.random.Generator) -> Sound:
    dry = np.zeros(shot.num_frames * _SAMPLES_A_FRAME)
    if not shot.phrases:
        return Sound(dry, dry, ())
    speech = speak(voice_of(shot.speaker), shot.words, shot.onsets, STYLES[shot.style], rng)
    length = min(len(dry), len(speech.samples))
    dry[:length] = speech.samples[:length]
    return Sound(dry, dry, speech.phones)


def _music(shot: Shot, rng: np.random.Generator) -> Array:
    """Chords under the speech of a music shot, half a second each; silence in any other."""
    length = shot.num_frames * _SAMPLES_A_FRAME
    if shot.kind != MUSIC:
        return np.zeros(length)
    time = np.arange(length) / SAMPLE_RATE
    notes = np.zeros(length)
    for start in np.arange(0.0, length / SAMPLE_RATE, 0.5):
        heard = (time >= start) & (time < start + 0.5)
        fade = np.exp(-(time[heard] - start) * 1.5)
        for pitch in _CHORDS[int(rng.integers(len(_CHORDS)))]:
            partials = [np.sin(2 * np.pi * pitch * order * time[heard]) / order for order in (1, 2, 3)]
            notes[heard] += fade * np.sum(partials, axis=0)
    return np.asarray(notes * 10 ** (-26 / 20) / (np.sqrt(np.mean(notes**2)) + 1e-9))


def _seen(shot: Shot, sound: Sound) -> NDArray[np.uint8]:
    rng = np.random.default_rng([shot.seed, 3])
    frames = shot.num_frames
    if shot.kind == SCENERY:
        seconds = (np.arange(frames) / FRAME_RATE).astype(np.float32)
        canvas = background(shot.place, SIZE, seconds, rng)
        return np.asarray(np.clip(canvas.transpose(0, 2, 3, 1) * 255 + 0.5, 0, 255), np.uint8)
    opening, width = mouth(sound, frames)
    if shot.kind == LISTENER:
        opening, width = np.zeros(frames), np.zeros(frames)
    if shot.kind == DUB:  # the lips of other words
        other = Shot(TALK, shot.speaker, _phrases(rng, len(shot.phrases)), shot.style, shot.seed, shot.place)
        opening, width = mouth(_spoken(other, rng), frames)
        opening, width = np.roll(opening, FRAME_RATE // 3), np.roll(width, FRAME_RATE // 3)
    person = render(Look(Face.draw(rng), shot.place, seed=shot.seed), opening, width)
    if shot.kind != TWO:
        return person
    silent = np.zeros(frames)
    beside = render(Look(Face.draw(rng), shot.place, seed=shot.seed + 1), silent, silent)
    return np.concatenate([person, beside], axis=2)
