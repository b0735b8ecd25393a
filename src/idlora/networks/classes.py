# SPDX-License-Identifier: Apache-2.0
"""The classes that components may be of: nothing else is ever built from a file's say."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from idlora.errors import WeightsError

# Component -> module of its classes -> the classes that may be loaded.
HOMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "transformer": {"diffusers": ("LTX2VideoTransformer3DModel",)},
    "vae": {"diffusers": ("AutoencoderKLLTX2Video",)},
    "audio_vae": {"diffusers": ("AutoencoderKLLTX2Audio",)},
    "connectors": {"diffusers.pipelines.ltx2.connectors": ("LTX2TextConnectors",)},
    "vocoder": {
        "diffusers.pipelines.ltx2.vocoder": ("LTX2Vocoder", "LTX2VocoderWithBWE"),
        "idlora.networks.codecs": ("GriffinLimVocoder",),
    },
    "text_encoder": {
        "transformers": (
            "Gemma3TextModel",
            "Gemma3Model",
            "Gemma3ForCausalLM",
            "Gemma3ForConditionalGeneration",
            "Gemma4UnifiedForConditionalGeneration",
        )
    },
    "latent_upsampler": {"diffusers.pipelines.ltx2.latent_upsampler": ("LTX2LatentUpsamplerModel",)},
}
# What diffusers writes into `model_index.json` for classes that live beside its pipelines.
_LIBRARY = {
    "diffusers.pipelines.ltx2.connectors": "ltx2",
    "diffusers.pipelines.ltx2.vocoder": "ltx2",
    "diffusers.pipelines.ltx2.latent_upsampler": "ltx2",
}


def class_of(component: str, name: str) -> Any:
    """The class of that name.

    Raises:
        WeightsError: the component cannot be of such a class.
    """
    for module, classes in HOMES[component].items():
        if name in classes:
            return getattr(import_module(module), name)
    known = ", ".join(known for classes in HOMES[component].values() for known in classes)
    raise WeightsError(f"the {component} is a {name}; LTX-2 needs one of {known}")


def library_of(component: str, name: str) -> str:
    """The library that `model_index.json` names beside a class."""
    home = next(home for home, classes in HOMES[component].items() if name in classes)
    return _LIBRARY.get(home, home)
