# SPDX-License-Identifier: Apache-2.0
"""The published sizes: class and configuration of every component of LTX-2.0, 2.3 and 2.5.

Only what differs from the defaults of diffusers' classes, which are those of 2.0, is written down.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from idlora.networks.classes import class_of
from idlora.networks.generations import GENERATIONS

_SPLIT = {"rope_type": "split"}
_VIDEO_VAE = {"decoder_causal": False, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
_VIDEO_VAE_2_3 = {
    **_VIDEO_VAE,
    "block_out_channels": (256, 512, 1024, 1024),
    "layers_per_block": (4, 6, 4, 2, 2),
    "decoder_block_out_channels": (256, 512, 512, 1024),
    "decoder_layers_per_block": (4, 6, 4, 2, 2),
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "decoder_spatial_padding_mode": "zeros",
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (False,) * 4,
    "upsample_factor": (2, 2, 1, 2),
}
_CONNECTORS_2_3 = {
    **_SPLIT,
    "per_modality_projections": True,
    "proj_bias": True,
    "video_connector_num_attention_heads": 32,
    "video_connector_num_layers": 8,
    "video_gated_attn": True,
    "audio_connector_num_attention_heads": 32,
    "audio_connector_attention_head_dim": 64,
    "audio_connector_num_layers": 8,
    "audio_gated_attn": True,
}


@dataclass(frozen=True)
class Blueprint:
    """One component without weights."""

    component: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """The network as its class starts it."""
        found = class_of(self.component, self.kind)
        if self.component == "text_encoder":  # transformers' classes take a record
            return found(found.config_class(**self.config))
        return found(**self.config)

    def full_config(self) -> Mapping[str, Any]:
        """The configuration with its class's defaults, for classes of diffusers."""
        parameters = inspect.signature(class_of(self.component, self.kind)).parameters.values()
        return {each.name: each.default for each in parameters if each.default is not each.empty} | dict(self.config)

    def on_meta(self) -> Any:
        """The network with shapes and no memory behind them."""
        with torch.device("meta"):
            return self.build()


_GEMMA_3_12B = {
    "text_config": {
        "hidden_size": 3840,
        "num_hidden_layers": 48,
        "intermediate_size": 15360,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "vocab_size": 262_208,
        "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152,
        "num_hidden_layers": 27,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
    },
}


def _transformer(generation: str) -> Blueprint:
    config = {**_SPLIT, **GENERATIONS[generation].config}
    return Blueprint("transformer", "LTX2VideoTransformer3DModel", config)


def _codecs(video: Mapping[str, Any], vocoder: str) -> tuple[Blueprint, ...]:
    return (
        Blueprint("vae", "AutoencoderKLLTX2Video", video),
        Blueprint("audio_vae", "AutoencoderKLLTX2Audio"),
        Blueprint("vocoder", vocoder),
    )


def _by_name(*blueprints: Blueprint) -> Mapping[str, Blueprint]:
    return MappingProxyType({blueprint.component: blueprint for blueprint in blueprints})


# The connectors and the upscaler of 2.5 are in diffusers' layout only, which brings their configurations along.
PUBLISHED: Mapping[str, Mapping[str, Blueprint]] = MappingProxyType(
    {
        "2.0": _by_name(
            _transformer("2.0"),
            Blueprint("connectors", "LTX2TextConnectors", _SPLIT),
            *_codecs(_VIDEO_VAE, "LTX2Vocoder"),
            Blueprint("latent_upsampler", "LTX2LatentUpsamplerModel"),
        ),
        "2.3": _by_name(
            _transformer("2.3"),
            Blueprint("connectors", "LTX2TextConnectors", _CONNECTORS_2_3),
            *_codecs(_VIDEO_VAE_2_3, "LTX2VocoderWithBWE"),
            Blueprint("latent_upsampler", "LTX2LatentUpsamplerModel", {"use_rational_resampler": False}),
        ),
        "2.5": _by_name(_transformer("2.5"), *_codecs(_VIDEO_VAE_2_3, "LTX2VocoderWithBWE")),
    }
)

# Not in any list that this package was checked against: taken to be as in 2.3.
ASSUMED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"2.0": (), "2.3": (), "2.5": ("connectors", "latent_upsampler", "text_encoder")}
)


def all_sizes(generation: str) -> Mapping[str, Blueprint]:
    """Every component of a generation, the text encoder too; those in `ASSUMED` are those of 2.3."""
    encoder = Blueprint("text_encoder", "Gemma3ForConditionalGeneration", _GEMMA_3_12B)
    return MappingProxyType({**PUBLISHED["2.3"], **PUBLISHED[generation], "text_encoder": encoder})
