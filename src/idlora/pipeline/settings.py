# SPDX-License-Identifier: Apache-2.0
"""Everything that decides a generation besides prompt, picture, voice and weights."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypedDict

from idlora.core.guidance import Guidance, Term
from idlora.core.positions import ReferenceTime, Rounding
from idlora.errors import InputError, SettingsError
from idlora.networks.blocks import ReferenceAttention, ReferenceText
from idlora.pipeline.records import from_json, read_json, to_json

Sampler = Literal["euler", "res2s"]
Shift = Literal["fixed", "by-size"]
Aspect = Literal["size", "picture"]

MAX_FRAME_RATE = 240
MIN_VOICE_SECONDS = 0.5


class Options(TypedDict, total=False):
    """The fields of `Settings` as optional keyword arguments."""

    negative_prompt: str
    num_frames: int
    height: int
    width: int
    aspect: Aspect
    frame_rate: float
    num_inference_steps: int
    sigmas: tuple[float, ...]
    seed: int
    sampler: Sampler
    shift: Shift
    guidance: Guidance
    mask_reference_to_video: bool
    reference_text: ReferenceText
    reference_attention: ReferenceAttention
    positions: Rounding
    reference_time: ReferenceTime
    first_block_cache: float
    official_noise: bool
    max_voice_seconds: float
    clean_voice: bool
    distilled: float
    refine: Refinement


@dataclass(frozen=True)
class Refinement:
    """The second stage: the first one runs at half the size, its pictures are upscaled and denoised once more.

    Sound, identity adapter and reference belong to the first stage; in the second the sound is frozen.

    Attributes:
        sigmas: levels of the second stage, descending to 0; empty = there is none.
        distilled: strength of the distilled adapter there.

    Raises:
        SettingsError: the levels do not descend from at most 1 to 0.
    """

    sigmas: tuple[float, ...] = ()
    distilled: float = 0.8

    def __post_init__(self) -> None:
        check_sigmas(self.sigmas)


def check_sigmas(sigmas: tuple[float, ...]) -> None:
    """Refuse levels that do not descend from at most 1 to 0; none at all are fine (SettingsError)."""
    descending = all(high > low for high, low in pairwise(sigmas))
    if sigmas and not (len(sigmas) > 1 and sigmas[0] <= 1 and sigmas[-1] == 0 and descending):
        raise SettingsError(f"sigmas {sigmas}: they must descend from at most 1 to 0, such as 1, 0.5, 0")


@dataclass(frozen=True)
class Settings:
    """One generation; the defaults are those of the official one-stage script.

    Attributes:
        negative_prompt: what text guidance leads away from.
        num_frames: 8k + 1.
        height: pixels, a multiple of the model's latent grid (32, the miniature 24) and at least two of it.
        width: pixels, likewise.
        aspect: `size` takes height and width as they are and crops pictures to them; `picture` takes their area and the
            shape of the first frame's picture, to the nearest sides on the grid.
        frame_rate: frames a second, in (0, 240].
        num_inference_steps: at least 1.
        sigmas: levels of the first stage, descending to 0, instead of a schedule of so many steps; empty = a schedule.
        seed: in [0, 2^63).
        sampler: `euler` (order 1, one call a step) or `res2s` (order 2, two calls, fresh noise).
        shift: `fixed` takes the schedule of 4,096 video tokens at every size, `by-size` the tokens there are.
        guidance: all terms.
        mask_reference_to_video: no video token attends to the reference.
        reference_text: what the reference gets from the text: `open` attends to it, `average` takes the mean over it,
            `block` gets nothing. An adapter that says which it was trained with makes that the model's default.
        reference_attention: `alone`: the reference hears nothing but itself and is computed once a generation, for
            adapters that were trained so; `joint` is the method.
        positions: `fp32`, or rounded as the official code does (`bf16-inference`, `bf16-training`).
        reference_time: where the reference lies beside the target: `negative` is before it, the method; `adjacent` is
            without the gap, `shared` at the target's times, `far` behind: for adapters that were trained so.
        first_block_cache: a step whose first block does what it did before, but for less than this share, takes what
            the other blocks did then; an approximation, 0 = off.
        official_noise: draws reference and target in one go, as the official code does.
        max_voice_seconds: a longer voice is cut to its best window of this length; at least 0.5.
        clean_voice: takes noise out of the voice first (RNNoise, the extra `clean`).
        distilled: strength of the distilled adapter in the first stage; 0 = as if it were not there.
        refine: the second stage, off by default.

    Raises:
        InputError: a size, a number of frames, a rate or a seed that no model can use; sizes off the grid of one are
            refused when it is asked (`VideoGrid.of`).
        SettingsError: anything else out of its range.
    """

    negative_prompt: str = ""
    num_frames: int = 121
    height: int = 512
    width: int = 512
    aspect: Aspect = "size"
    frame_rate: float = 25.0
    num_inference_steps: int = 30
    sigmas: tuple[float, ...] = ()
    seed: int = 0
    sampler: Sampler = "euler"
    shift: Shift = "fixed"
    guidance: Guidance = Guidance()
    mask_reference_to_video: bool = False
    reference_text: ReferenceText = "open"
    reference_attention: ReferenceAttention = "joint"
    positions: Rounding = "fp32"
    reference_time: ReferenceTime = "negative"
    first_block_cache: float = 0.0
    official_noise: bool = False
    max_voice_seconds: float = 5.0
    clean_voice: bool = False
    distilled: float = 0.0
    refine: Refinement = Refinement()

    def __post_init__(self) -> None:
        for problem in _input_problems(self):
            raise InputError(problem)
        for problem in _setting_problems(self):
            raise SettingsError(problem)
        check_sigmas(self.sigmas)

    @property
    def seconds(self) -> float:
        """Duration of the clip."""
        return self.num_frames / self.frame_rate


def _input_problems(settings: Settings) -> Iterator[str]:
    for name in ("height", "width", "num_frames"):
        if getattr(settings, name) < 1:
            yield f"{name} {getattr(settings, name)} must be at least 1; which sizes a model can make, its grid says"
    if not 0 < settings.frame_rate <= MAX_FRAME_RATE:
        yield f"frame rate {settings.frame_rate} is outside (0, {MAX_FRAME_RATE}]; 25 is usual"
    if not 0 <= settings.seed < 2**63:
        yield f"seed {settings.seed} is outside 0 to 2^63 - 1; use one of these"


def _setting_problems(settings: Settings) -> Iterator[str]:
    if settings.num_inference_steps < 1:
        yield f"the number of steps is {settings.num_inference_steps}; it must be at least 1, and 30 is usual"
    if not 0 <= settings.first_block_cache < math.inf:
        yield f"first_block_cache {settings.first_block_cache} must be at least 0, which is off; 0.1 is usual"
    if not MIN_VOICE_SECONDS <= settings.max_voice_seconds < math.inf:
        yield f"max_voice_seconds {settings.max_voice_seconds} is below {MIN_VOICE_SECONDS}; 5 is usual"
    if not all(math.isfinite(strength) for strength in (settings.distilled, settings.refine.distilled)):
        yield "the strength of the distilled adapter is not finite; use a number from 0 to 1"
    for name, term in _terms(settings.guidance):
        if not all(math.isfinite(weight) for weight in term.weights()):
            yield f"the scale of {name} guidance is not finite; use a number such as 1 or 3"


def _terms(guidance: Guidance) -> Iterator[tuple[str, Term]]:
    for name in ("text", "identity", "stg", "modality"):
        yield name, getattr(guidance, name)


def settings_to_json(settings: Settings) -> dict[str, Any]:
    """All settings as JSON's own types."""
    return to_json(settings)


def settings_from_json(data: object, base: Settings) -> Settings:
    """Settings from JSON: those named, over those of `base`. A sidecar of a result counts as the settings in it.

    Raises:
        SettingsError, InputError: a name is unknown or a value cannot be used.
    """
    if isinstance(data, Mapping) and "ai_generated" in data and "settings" in data:
        data = data["settings"]
    return from_json(base, data, "settings")


def read_settings(path: str | os.PathLike[str], base: Settings) -> Settings:
    """Settings from a JSON file over those of `base`; raises as `settings_from_json` does."""
    return settings_from_json(read_json(path), base)


def with_options(settings: Settings, options: Options) -> Settings:
    """The settings with some replaced.

    Raises:
        SettingsError, InputError: a name is unknown or a value cannot be used.
    """
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        from_json(settings, dict.fromkeys(sorted(unknown)), "settings")
    return replace(settings, **options)
