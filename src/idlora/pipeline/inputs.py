# SPDX-License-Identifier: Apache-2.0
"""What a caller hands in, and the same ready for the networks: picture fitted, voice resampled, words checked."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from idlora.core.positions import FRAMES_PER_TOKEN, SAMPLING_RATE
from idlora.data.media import (
    PreparedVoice,
    Voice,
    clean_voice,
    fit_image,
    prepare_voice,
    read_image,
    read_voice,
    to_rgb,
)
from idlora.data.media.pace import SYLLABLES_A_WORD, syllables_per_second
from idlora.data.prompt import Prompt, advice, parse_prompt
from idlora.errors import InputError, SettingsError
from idlora.files import sha256_of
from idlora.pipeline.settings import MIN_VOICE_SECONDS, Settings

Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
Recording = str | os.PathLike[str] | Voice

TOLD_CROP = 0.05  # share of a picture; less is not worth a word


@dataclass(frozen=True, eq=False)
class Keyframe:
    """A picture that some frame is to look like.

    Attributes:
        image: file, picture or (H, W, 3) uint8.
        frame: its number from 0; -1 = the last one, and so on.
        strength: in (0, 1]: 1 = given as it is, less = may be changed.

    Raises:
        SettingsError: the strength is outside its range.
    """

    image: Picture
    frame: int = 0
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise SettingsError(f"keyframe strength {self.strength}: it must be above 0 and at most 1")

    def latent_frame(self, num_frames: int) -> int:
        """Number of the latent frame that holds it: the first one holds frame 0 alone, each later one eight.

        Raises:
            InputError: the clip has no such frame.
        """
        frame = self.frame + num_frames if self.frame < 0 else self.frame
        if not 0 <= frame < num_frames:
            raise InputError(
                f"there is no frame {self.frame} in a clip of {num_frames}; the last is {num_frames - 1}, or -1"
            )
        return (frame + FRAMES_PER_TOKEN - 1) // FRAMES_PER_TOKEN


@dataclass(frozen=True, eq=False)
class Request:
    """One clip asked for.

    Attributes:
        prompt: tagged or free English; speech in `[SPEECH]` or in double quotes.
        settings: how to make it.
        image: first frame, a file, a picture or (H, W, 3) uint8; None = none.
        voice: whose voice, a sound or video file or samples; None = nobody's.
        keyframes: more pictures, for other frames or with less than full strength.
    """

    prompt: str
    settings: Settings
    image: Picture | None = None
    voice: Recording | None = None
    keyframes: tuple[Keyframe, ...] = ()


@dataclass(frozen=True, eq=False)
class Inputs:
    """A request ready for the networks.

    Attributes:
        prompt: in its three parts.
        settings: as requested.
        pictures: upright RGB in their own sizes, by latent frame, with strengths.
        voice: (2, samples) float32 at 16 kHz, or None.
        notes: what the caller should know.
        origins: of picture and voice, the file's name and SHA-256.
    """

    prompt: Prompt
    settings: Settings
    pictures: Mapping[int, tuple[Image.Image, float]]
    voice: NDArray[np.float32] | None
    notes: tuple[str, ...]
    origins: Mapping[str, Mapping[str, str]]

    def pixels(self, height: int, width: int) -> dict[int, tuple[NDArray[np.uint8], float]]:
        """The pictures fitted to a size, (height, width, 3) uint8, by latent frame, with strengths."""
        return {
            frame: (np.asarray(fit_image(picture, height, width)), strength)
            for frame, (picture, strength) in self.pictures.items()
        }


def read_inputs(request: Request, vocabulary: Sequence[str] = ()) -> Inputs:
    """Read and check everything a request names; `vocabulary` is what the model can speak (empty = any word).

    Raises:
        InputError: the prompt is empty.
        MediaError: picture or voice cannot be used; the voice is silent or shorter than half a second.
    """
    prompt, settings = parse_prompt(request.prompt), request.settings
    voice = None if request.voice is None else _prepared(request.voice, settings)
    pictures = _pictures(request)
    origins = {"image": _origin(request.image), "voice": _origin(request.voice)}
    origins |= {f"frame {keyframe.frame}": _origin(keyframe.image) for keyframe in request.keyframes}
    return Inputs(
        prompt=prompt,
        settings=settings,
        pictures=pictures,
        voice=None if voice is None else in_stereo(voice.voice.samples),
        notes=(
            *_prompt_notes(prompt, settings, voice, vocabulary),
            *_voice_notes(voice, settings),
            *_picture_notes(pictures, settings),
        ),
        origins={kind: origin for kind, origin in origins.items() if origin},
    )


def read_by_text(prompt: Prompt, settings: Settings) -> tuple[str, str | None]:
    """What a clip attends to: its prompt, and the negative one if its guidance wants it."""
    wanted = any(settings.guidance.text.weights())
    return prompt.text(), settings.negative_prompt if wanted else None


def texts_in(requests: Iterable[Request]) -> list[str]:
    """The texts that clips to come will attend to, each once; prompts that are none are passed over."""
    texts: dict[str, None] = {}
    for request in requests:
        with suppress(InputError):
            found = read_by_text(parse_prompt(request.prompt), request.settings)
            texts |= dict.fromkeys(text for text in found if text is not None)
    return list(texts)


def common_settings(requests: Sequence[Request]) -> Settings:
    """The settings that all requests of a batch share (SettingsError if they do not)."""
    if not requests:
        raise SettingsError("an empty batch of requests; give at least one")
    plain = {repr(replace(request.settings, seed=0, negative_prompt="")) for request in requests}
    if len(plain) > 1:
        raise SettingsError("the requests of a batch may differ in seed and negative prompt alone; split the batch")
    return requests[0].settings


def refuse_mixed_voices(batch: Sequence[Inputs]) -> None:
    """With the adapter off in its other pass, the identity term says something of clips without a voice as well."""
    voices = [inputs.voice is not None for inputs in batch]
    if batch[0].settings.guidance.identity.adapter_off and any(voices) and not all(voices):
        raise SettingsError("identity guidance with the adapter off: give every request of a batch a voice, or none")


def _pictures(request: Request) -> dict[int, tuple[Image.Image, float]]:
    first = () if request.image is None else (Keyframe(request.image),)
    found: dict[int, tuple[Image.Image, float]] = {}
    for keyframe in (*first, *request.keyframes):
        latent = keyframe.latent_frame(request.settings.num_frames)
        if latent in found:
            raise InputError(
                f"frame {keyframe.frame} has a neighbour with a picture of its own; frames 8k + 1 to 8k + 8 share one"
            )
        found[latent] = (_picture(keyframe.image), keyframe.strength)
    return found


def _picture(image: Picture) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise InputError(f"the picture is {image.dtype} {image.shape}; uint8 (height, width, 3) is needed")
        image = Image.fromarray(image)
    return to_rgb(image) if isinstance(image, Image.Image) else read_image(image)


def _prepared(voice: Recording, settings: Settings) -> PreparedVoice:
    recording = checked_voice(voice) if isinstance(voice, Voice) else read_voice(voice)
    if settings.clean_voice:
        recording = clean_voice(recording)
    return prepare_voice(recording, SAMPLING_RATE, settings.max_voice_seconds, MIN_VOICE_SECONDS)


def checked_voice(voice: Voice) -> Voice:
    """A recording in memory, if it is one that can be used.

    Raises:
        InputError: not (1 or 2, N) finite samples.
    """
    shape = voice.samples.shape
    if len(shape) != 2 or shape[0] not in (1, 2) or not np.isfinite(voice.samples).all():
        raise InputError(f"the voice's samples are {shape}; finite (1 or 2, N) are needed, so fold or mend them first")
    return voice


def in_stereo(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Both channels of (1 or 2, N) samples; a single one is doubled."""
    return np.repeat(samples, 2, axis=0) if samples.shape[0] == 1 else samples


def _prompt_notes(
    prompt: Prompt, settings: Settings, voice: PreparedVoice | None, vocabulary: Sequence[str]
) -> tuple[str, ...]:
    if vocabulary:  # a model of few words has its own rules
        return vocabulary_notes(prompt, vocabulary)
    pace = None if voice is None else syllables_per_second(voice.voice) / SYLLABLES_A_WORD
    return advice(prompt, settings.seconds, pace)


def _voice_notes(voice: PreparedVoice | None, settings: Settings) -> tuple[str, ...]:
    if voice is None:
        return ()
    notes = ["noise was taken out of the voice before anything else"] if settings.clean_voice else []
    if voice.shortened:
        end = voice.start + voice.voice.seconds
        notes.append(f"the voice is {voice.total:.1f} s long: its best part, {voice.start:.1f} to {end:.1f} s, is used")
    return tuple(notes)


def _picture_notes(pictures: Mapping[int, tuple[Image.Image, float]], settings: Settings) -> Iterator[str]:
    height, width = settings.height, settings.width
    if settings.aspect == "picture":
        yield f"the clip is {width} x {height} pixels, by the first picture's shape"
    for picture, _ in pictures.values():
        shape = picture.width / picture.height * height / width
        lost = 1 - min(shape, 1 / shape)
        if lost > TOLD_CROP:
            sides = "left and right" if shape > 1 else "top and bottom"
            yield (
                f"{lost:.0%} of a picture of {picture.width} x {picture.height} is cut off at {sides} for {width} x "
                f"{height}" + ("" if settings.aspect == "picture" else ", which the aspect `picture` avoids")
            )


def sized_by_picture(request: Request, step: int) -> Request:
    """The request with the height and width that its settings' aspect means, on a grid of `step` pixels.

    Raises:
        InputError: there is no first picture whose shape could be taken.
    """
    settings = request.settings
    if settings.aspect == "size":
        return request
    if request.image is None:
        raise InputError("the aspect `picture` needs a picture for the first frame; give one, or say `size`")
    picture = _picture(request.image)
    height, width = nearest_size(picture.height / picture.width, settings.height * settings.width, step)
    return replace(request, settings=replace(settings, height=height, width=width))


def nearest_size(shape: float, area: int, step: int) -> tuple[int, int]:
    """Height and width of a shape (height / width) and an area in pixels, each to the nearest multiple of `step`."""
    sides = math.sqrt(area * shape), math.sqrt(area / shape)
    height, width = (max(2, round(side / step)) * step for side in sides)
    return height, width


def vocabulary_notes(prompt: Prompt, vocabulary: Sequence[str]) -> tuple[str, ...]:
    """A sentence that names the spoken words outside the vocabulary and lists it; nothing if there are none."""
    spoken = re.findall(r"[\w']+", prompt.speech.lower())
    unknown = [word for word in dict.fromkeys(spoken) if word not in vocabulary]
    if not vocabulary or not unknown:
        return ()
    known = ", ".join(vocabulary)
    return (f"this model never learned to say {', '.join(unknown)}, and will mumble there; it knows: {known}",)


def _origin(source: Picture | Recording | None) -> dict[str, str]:
    if source is None:
        return {}
    if isinstance(source, str | os.PathLike):
        return {"name": Path(source).name, "sha256": sha256_of(source)}
    data = source.samples if isinstance(source, Voice) else np.asarray(source)
    return {"sha256": hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()}
