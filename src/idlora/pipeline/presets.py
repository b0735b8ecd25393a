# SPDX-License-Identifier: Apache-2.0
"""Named ways to generate, as one flat table; what a preset does not name stays as the model wants it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from idlora.core.guidance import Guidance, IdentityGuidance, ModalityGuidance, Rescale, STGuidance, TextGuidance
from idlora.errors import SettingsError
from idlora.networks.generations import Generation
from idlora.pipeline.settings import Refinement, Settings

# Levels that the distilled models were trained at (Lightricks' `DISTILLED_SIGMA_VALUES` and the stage-2 part of them).
DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
REFINE_SIGMAS = (0.909375, 0.725, 0.421875, 0.0)
RESCALE = Rescale(0.7, 0.7)
OFFICIAL_SEED = 42


def _guided(generation: Generation) -> Guidance:
    stg = STGuidance(blocks=(generation.stg_block,))
    return Guidance(TextGuidance(3.0, 7.0), IdentityGuidance(3.0), stg, ModalityGuidance(3.0, 3.0), RESCALE)


def _one_stage(base: Settings, generation: Generation) -> Settings:
    """30 Euler steps, all four guidance terms, the spread pulled back by 0.7."""
    plain = replace(base, sampler="euler", shift="fixed", num_inference_steps=30, sigmas=())
    plain = replace(plain, positions="fp32", official_noise=False, distilled=0.0, refine=Refinement())
    return replace(plain, guidance=_guided(generation))


def _two_stage(base: Settings, generation: Generation) -> Settings:
    """One stage at half the size, upscaled, then three distilled steps."""
    return replace(_one_stage(base, generation), refine=Refinement(REFINE_SIGMAS, distilled=0.8))


def _hq(base: Settings, generation: Generation) -> Settings:
    """15 res_2s steps at half the size, upscaled, then three more."""
    settings = replace(_one_stage(base, generation), sampler="res2s", num_inference_steps=15, shift="by-size")
    guidance = replace(
        settings.guidance, text=TextGuidance(3.0, 7.0, star=True), stg=STGuidance(0.0, 0.0), rescale=Rescale()
    )
    return replace(settings, guidance=guidance, distilled=0.25, refine=Refinement(REFINE_SIGMAS, distilled=0.5))


def _distilled(base: Settings, generation: Generation) -> Settings:
    """Eight steps without text guidance, by distilled weights or their adapter."""
    guidance = Guidance(TextGuidance(1.0, 1.0), IdentityGuidance(1.0), STGuidance(0.0, 0.0), ModalityGuidance(1.0, 1.0))
    settings = replace(_one_stage(base, generation), guidance=guidance, distilled=1.0)
    return replace(settings, sigmas=DISTILLED_SIGMAS)


def _fast(base: Settings, generation: Generation) -> Settings:
    """One stage with approximations that change little: identity on the audio alone, two terms in every other step."""
    settings = _one_stage(base, generation)
    terms = settings.guidance
    guidance = replace(
        terms,
        identity=replace(terms.identity, audio_only=True),
        stg=replace(terms.stg, every=2),
        modality=replace(terms.modality, every=2),
    )
    return replace(settings, guidance=guidance)


def _official(base: Settings, generation: Generation) -> Settings:
    """Scales, schedule, positions, noise and seed of the official one-stage script, for comparison."""
    guidance = Guidance(stg=STGuidance(blocks=(generation.official_stg_block,)))
    settings = replace(_one_stage(base, generation), guidance=guidance, positions="bf16-inference")
    settings = replace(settings, mask_reference_to_video=False, reference_text="open", reference_time="negative")
    settings = replace(settings, reference_attention="joint", first_block_cache=0.0)
    return replace(settings, official_noise=True, seed=OFFICIAL_SEED)


# From the settings that a model has by default to those of the preset.
PRESETS: Mapping[str, Callable[[Settings, Generation], Settings]] = MappingProxyType(
    {
        "one-stage": _one_stage,
        "fast": _fast,
        "two-stage": _two_stage,
        "hq": _hq,
        "distilled": _distilled,
        "official": _official,
    }
)


def preset_settings(name: str, base: Settings, generation: Generation) -> Settings:
    """The settings of a preset, over those that a model has by default.

    Raises:
        SettingsError: there is no such preset.
    """
    if name not in PRESETS:
        raise SettingsError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name](base, generation)
