# SPDX-License-Identifier: Apache-2.0
"""The one interface of all judges: who judges, what is judged, and by what it is measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from idlora.data.media import Video, Voice, read_image, read_video, read_voice
from idlora.data.media.containers import opened
from idlora.data.prompt import Prompt
from idlora.data.world.clip import FRAME_RATE
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import IDLoraError, InputError, MediaError
from idlora.evaluation.judges.sounds import Sound, at_16_khz, mono, refuse_silence
from idlora.evaluation.store import Values

Frames = NDArray[np.uint8]
SHORTEST = 0.1  # seconds; below, there is nothing to judge

_SOUND_FILES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff"})


@dataclass(frozen=True)
class JudgeRecord:
    """Who judges: a package or network, its version, what its verdict is worth, and the SHA-256 of its weights.

    `weights` is empty where the judge is a formula or is trained on the spot from a fixed seed.
    """

    name: str
    version: str
    limits: str
    weights: str = ""


@dataclass(frozen=True, eq=False)
class Footage:
    """Pictures, sound or both. None = there is no such track.

    Attributes:
        frames: (F, H, W, 3) uint8.
        frame_rate: frames a second.
        samples: (N,) float32, mono.
        sample_rate: Hz.
    """

    frames: Frames | None = None
    frame_rate: float = FRAME_RATE
    samples: Sound | None = None
    sample_rate: int = SAMPLE_RATE

    @classmethod
    def of_arrays(cls, video: Frames, audio: Sound, sample_rate: int, frame_rate: float = FRAME_RATE) -> Footage:
        """A clip in memory: frames (F, H, W, 3) and sound (channels, N), as the pipeline's `Result` has them."""
        return cls(video, frame_rate, mono(audio), sample_rate)

    @classmethod
    def of_voice(cls, voice: Voice) -> Footage:
        """A recording without pictures."""
        return cls(samples=mono(voice.samples), sample_rate=voice.sample_rate)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Footage:
        """A video file with or without sound, or a sound file, an MP4 without pictures too (MediaError if neither)."""
        seen = False
        if Path(path).suffix.lower() not in _SOUND_FILES:
            with opened(path) as container:
                seen = bool(container.streams.video)
        return cls._of_video(read_video(path)) if seen else cls.of_voice(read_voice(path))

    @classmethod
    def _of_video(cls, video: Video) -> Footage:
        if video.audio is None:
            return cls(video.frames, video.frame_rate)
        return cls(video.frames, video.frame_rate, mono(video.audio.samples), video.audio.sample_rate)

    @cached_property
    def sound(self) -> Sound:
        """The sound (N,) at 16 kHz, silent or not; raises InputError if there is none worth the name."""
        if self.samples is None:
            raise MediaError("it has no audio track; judge a clip with sound")
        if len(self.samples) < SHORTEST * self.sample_rate:
            raise MediaError(
                f"its sound is {len(self.samples) / self.sample_rate:.3f} s long; at least {SHORTEST} s are judged"
            )
        return at_16_khz(self.samples, self.sample_rate)

    @cached_property
    def audible(self) -> Sound:
        """As `sound`; raises InputError for silence too."""
        refuse_silence(self.sound)
        return self.sound

    @property
    def pictures(self) -> Frames:
        """The frames (F, H, W, 3); raises InputError if there are none or their rate is unknown."""
        if self.frames is None or not len(self.frames):
            raise MediaError("it has no pictures; judge a video")
        if not 0 < self.frame_rate <= 240:
            raise MediaError(f"its frame rate is {self.frame_rate}; 0 to 240 a second can be judged")
        return self.frames


@dataclass(frozen=True, eq=False)
class Reference:
    """What a clip is measured by; each part may be missing, then what needs it is not judged.

    Attributes:
        voice: recording of the speaker who should be heard.
        picture: (H, W, 3) uint8, the face that should be seen.
        truth: the clip as it truly was: the same words by the same speaker in the same place.
        said: the words of the voice, where they are known.
        face_box: left, top, width and height in pixels of the face in the clip, for judges that need a crop.
    """

    voice: Footage | None = None
    picture: Frames | None = None
    truth: Footage | None = None
    said: str = ""
    face_box: tuple[int, int, int, int] | None = None

    @classmethod
    def read(
        cls,
        voice: Path | None = None,
        picture: Path | None = None,
        truth: Path | None = None,
        said: str = "",
        face_box: tuple[int, int, int, int] | None = None,
    ) -> Reference:
        """The files that there are. One that cannot be read is told to whoever uses that part, as MediaError."""
        heard, true = (_part(Footage.read, path) for path in (voice, truth))
        return cls(heard, _part(lambda path: np.asarray(read_image(path)), picture), true, said, face_box)

    @property
    def speaker(self) -> Footage:
        """The voice; raises InputError if none is given."""
        if self.voice is None:
            raise InputError("no reference voice is given; name one to judge the voice")
        return self.voice

    @property
    def face(self) -> Frames:
        """Pictures (F, H, W, 3) of the face: the picture, else the reference video, else the true clip's.

        Raises:
            InputError: there is none.
        """
        if self.picture is not None:
            return self.picture[None]
        for footage in (self.voice, self.truth):
            if footage is not None and footage.frames is not None:
                return footage.frames
        raise InputError("no picture of the face is given; name one to judge the face")


class _Unread:
    """Stands for a part of a reference whose file cannot be read, and says why as soon as it is used."""

    def __init__(self, path: Path, error: Exception) -> None:
        told = str(error).replace(str(path), path.name)  # so that equal faults are told as one
        self._fault: Exception = MediaError(told)
        if not isinstance(error, IDLoraError):  # a codec's own, or want of memory: the file may be sound
            self._fault = RuntimeError(f"{path.name} cannot be read: {type(error).__name__}: {told}")

    def __getattr__(self, _: str) -> NoReturn:
        raise self._fault

    def __getitem__(self, _: object) -> NoReturn:
        raise self._fault


def _part(read: Callable[[Path], Any], path: Path | None) -> Any:
    """What a file holds; None without one."""
    if path is None:
        return None
    try:
        return read(path)
    except Exception as error:  # noqa: BLE001 - one file must not cost the judges that do without it
        return _Unread(path, error)


class Judge(Protocol):
    """Anything that scores clips. It must be picklable before its first use: other processes judge with copies."""

    @property
    def record(self) -> JudgeRecord:
        """Who this is."""
        ...

    def score(self, clip: Footage, reference: Reference, prompt: Prompt | None) -> Values:
        """The scores of a clip by name: numbers, and texts or lists that explain them.

        Args:
            clip: what is judged.
            reference: what it is measured by.
            prompt: what was asked for; None if nobody knows.

        Raises:
            IDLoraError: this clip cannot be judged, and why. There is no score for want of a score.
        """
        ...


@dataclass(frozen=True)
class Absent:
    """A judge that cannot work here, and how to get it. It is reported; nothing stands in for it."""

    name: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Unjudged:
    """A clip that a judge could not score."""

    judge: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """All scores of a clip, by judge, and who could not score it."""

    scores: dict[str, Values] = field(default_factory=dict)
    unjudged: tuple[Unjudged, ...] = ()

    def value(self, judge: str, name: str) -> Any:
        """One score; None if the judge could not give it."""
        return self.scores.get(judge, {}).get(name)
