# SPDX-License-Identifier: Apache-2.0
"""All that decides what is mined, as frozen records; a stage is made anew when the part that it reads has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from idlora.errors import InputError, SettingsError, nearest

FINDERS = ("auto", "mesh", "cascade", "world")
DOUBTS = ("drop", "keep")


@dataclass(frozen=True)
class FileRules:
    """Which files are looked at.

    Attributes:
        least_seconds: a shorter file holds no clip.
        least_side: pixels of the shorter side.
        most_minutes: of a longer file the beginning is used.
        require_consent: leave out what nobody has consented to: consent must be given, granted, yes or true.
    """

    least_seconds: float = 2.0
    least_side: int = 64
    most_minutes: float = 120.0
    require_consent: bool = False


@dataclass(frozen=True)
class FaceRules:
    """What counts as one large frontal face that speaks.

    Attributes:
        finder: who finds faces: `mesh` (mediapipe), `cascade` (OpenCV), `world` (the miniature's), or `auto`: the mesh
            where it is installed, else the cascade.
        rate: frames a second that are looked at; lips want all of 25.
        max_side: pixels to which larger frames are scaled down before.
        least_height: of a face, as a share of the picture's.
        most_turned: 0 looks straight into the camera, 1 is a profile.
        least_seconds: of a track.
        most_gap: seconds without a face that a track outlives.
        least_moved: how far lips must move, as a share of the face's height.
        least_follow: correlation of lips and sound, at the best offset within 0.2 s.
    """

    finder: str = "auto"
    rate: float = 25.0
    max_side: int = 480
    least_height: float = 0.2
    most_turned: float = 0.6
    least_seconds: float = 1.0
    most_gap: float = 0.2
    least_moved: float = 0.01
    least_follow: float = 0.45

    def __post_init__(self) -> None:
        if self.finder not in FINDERS:
            raise SettingsError(f"there is no finder {self.finder!r}; choose one of {', '.join(FINDERS)}")


@dataclass(frozen=True)
class ClipRules:
    """How clips are cut.

    Attributes:
        num_frames: 8k + 1, as the model makes them.
        frame_rate: frames a second.
        margin: seconds that a clip keeps away from cuts and from the ends of tracks.
        lead: seconds of silence that a clip begins with, where there are so many.
        least_speech: share of a clip in which somebody speaks.
        reference_seconds: longest reference that is cut around a clip.
        most: clips of a file.
    """

    num_frames: int = 121
    frame_rate: float = 25.0
    margin: float = 0.08
    lead: float = 0.12
    least_speech: float = 0.5
    reference_seconds: float = 5.0
    most: int = 100

    def __post_init__(self) -> None:
        if self.num_frames < 9 or self.num_frames % 8 != 1 or not 0 < self.frame_rate <= 120:
            raise SettingsError(
                f"clips of {self.num_frames} frames at {self.frame_rate:g} a second cannot be made; "
                "frames are 8k + 1, from 9 on, and a rate lies in (0, 120]"
            )

    @property
    def seconds(self) -> float:
        """Duration of a clip."""
        return self.num_frames / self.frame_rate


@dataclass(frozen=True)
class QualityRules:
    """Which clips are good enough.

    Attributes:
        least_snr: dB of speech over what is heard in its pauses.
        most_clipped: share of samples at full scale.
        most_music: share of a clip in which a tone stands still, as notes do.
        least_voiced: share of loud frames with a pitch: a whisper has none.
        least_sharp: sharpness of the face (see `quality.sharpness`).
        most_black: share of rows or columns that are black bars.
        most_jump: change between two frames, as a multiple of the clip's usual change, that counts as a cut.
    """

    least_snr: float = 4.0
    most_clipped: float = 0.001
    most_music: float = 0.12
    least_voiced: float = 0.15
    least_sharp: float = 0.04
    most_black: float = 0.1
    most_jump: float = 12.0


@dataclass(frozen=True)
class SpeakerRules:
    """How voices of several files become speakers.

    Attributes:
        encoder: name of a judge of voices: `speaker` (Resemblyzer, in its package), `speaker-world` (for the world of
            the miniature alone), or one that needs weights.
        weights: file, folder or hub name of its weights.
        copies: degraded copies of a voice's clips from which the effect of rooms and noise is learnt.
        clean: embed denoised sound, where the denoiser is installed.
        neighbours: of each voice that are looked at.
        false_links: share of wrong links that is foretold, at the most, when the bar is chosen.
        seed: of the degradations.
    """

    encoder: str = "speaker"
    weights: str = ""
    copies: int = 2
    clean: bool = False
    neighbours: int = 4
    false_links: float = 0.005
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.false_links < 1 or self.neighbours < 1 or self.copies < 1:
            raise SettingsError(
                f"{self.neighbours} neighbours, {self.copies} copies, {self.false_links} false links: at least 1, 1, "
                "and a share in (0, 1)"
            )


@dataclass(frozen=True)
class WordRules:
    """Who writes down what is said.

    Attributes:
        whisper: folder or hub name of Whisper; empty = pocketsphinx.
        vocabulary: words that pocketsphinx listens for; none = its own model of English.
    """

    whisper: str = ""
    vocabulary: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairRules:
    """Which pairs are made.

    Attributes:
        per_speaker: at most so many.
        bins: of acoustic distance, to be filled alike.
        share_words: allow words that clip and reference share.
        same_recording: allow references of the clip's own recording where there is no other. Such a speaker may be
            somebody else's other half, whom no link has found; with it, leakage between splits is likelier.
        clean: take noise out of references, where the denoiser is installed.
    """

    per_speaker: int = 12
    bins: int = 3
    share_words: bool = False
    same_recording: bool = False
    clean: bool = True


@dataclass(frozen=True)
class CaptionRules:
    """Who describes what is seen.

    Attributes:
        captioner: folder of an image-to-text model of transformers, or the address of a vision-language model that
            speaks OpenAI's protocol; empty = a template of what was measured.
        model: name of the model at that address.
        key_variable: name of the environment variable that holds its key.
    """

    captioner: str = ""
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"


@dataclass(frozen=True)
class SplitRules:
    """How speakers are shared out.

    Attributes:
        validation, test: shares of the speakers.
        doubts: what becomes of a training voice that may be a speaker of validation or test.
        seed: of the order in which speakers are taken.
    """

    validation: float = 0.05
    test: float = 0.1
    doubts: str = "drop"
    seed: int = 1

    def __post_init__(self) -> None:
        if self.doubts not in DOUBTS or min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise SettingsError(
                f"splits of {self.validation} and {self.test} with doubts {self.doubts!r} cannot be made; shares are 0 "
                f"or more and below 1 together, doubts one of {', '.join(DOUBTS)}"
            )


@dataclass(frozen=True)
class MiningSettings:
    """All of it."""

    files: FileRules = field(default_factory=FileRules)
    faces: FaceRules = field(default_factory=FaceRules)
    clips: ClipRules = field(default_factory=ClipRules)
    quality: QualityRules = field(default_factory=QualityRules)
    speakers: SpeakerRules = field(default_factory=SpeakerRules)
    words: WordRules = field(default_factory=WordRules)
    pairs: PairRules = field(default_factory=PairRules)
    captions: CaptionRules = field(default_factory=CaptionRules)
    splits: SplitRules = field(default_factory=SplitRules)


def settings_of(given: Mapping[str, Mapping[str, Any]], path: Path | None = None) -> MiningSettings:
    """Settings of groups of values; those of a JSON file of the same shape count where they stand in it.

    Raises:
        SettingsError: a name is unknown, or a value is of another kind or out of its range.
        InputError: the file cannot be read.
    """
    told: Any = {}
    if path is not None:
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}; it is JSON, as settings.json shows it") from error
        if not isinstance(told, dict) or not all(isinstance(group, dict) for group in told.values()):
            raise InputError(f"{path} holds no settings; it is an object of objects, as settings.json shows it")
    groups = {each.name: each.default_factory for each in fields(MiningSettings)}
    made: dict[str, Any] = {}
    for name, values in {**{name: {} for name in given}, **told}.items():
        if name not in groups:
            raise SettingsError(f"there are no settings {name!r}{nearest(name, groups)}")
        made[name] = _group(name, groups[name], {**given.get(name, {}), **values})
    settings = MiningSettings(**made)
    if given.get("files", {}).get("require_consent"):  # who asks for it anywhere has it
        settings = replace(settings, files=replace(settings.files, require_consent=True))
    return settings


def _group(name: str, kind: Any, values: Mapping[str, Any]) -> Any:
    known = kind()
    for key, value in values.items():
        if key not in vars(known):
            raise SettingsError(f"{name} has no setting {key!r}{nearest(key, vars(known))}")
        wanted = type(getattr(known, key))
        fits = isinstance(value, (int, float) if wanted is float else (list, tuple) if wanted is tuple else wanted)
        texts = wanted is not tuple or not fits or all(isinstance(each, str) for each in value)
        if not fits or not texts or (wanted is not bool and isinstance(value, bool)):
            told = "a list of texts" if wanted is tuple else wanted.__name__
            raise SettingsError(f"{name}.{key} is {value!r}; it must be {told}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
