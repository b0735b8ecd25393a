# SPDX-License-Identifier: Apache-2.0
"""The generations of LTX-2 as table rows: how they differ in configuration, in meaning and in defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

STGMeaning = Literal["skip", "value"]


@dataclass(frozen=True)
class Generation:
    """What a network of this generation means and how it is configured.

    Attributes:
        stg: what a perturbed self-attention is: `skip` adds nothing, `value` passes the values through.
        cross_timestep: whether audio-video attention is modulated by the other stream's sigma (else by own timesteps).
        stg_block: the block that Lightricks perturbs.
        official_stg_block: the one that ID-LoRA's one-stage script perturbs; for 2.5, which it does not know, the same.
        config: diffusers' transformer settings in which the generations differ.
    """

    name: str
    stg: STGMeaning
    cross_timestep: bool
    stg_block: int
    official_stg_block: int
    config: Mapping[str, Any]


_SINCE_2_3 = ("gated_attn", "audio_gated_attn", "cross_attn_mod", "audio_cross_attn_mod", "perturbed_attn")
_OLD = {**dict.fromkeys(_SINCE_2_3, False), "use_prompt_embeddings": True}
_NEW = {**dict.fromkeys(_SINCE_2_3, True), "use_prompt_embeddings": False}

GENERATIONS: Mapping[str, Generation] = MappingProxyType(
    {
        row.name: row
        for row in (
            Generation("2.0", stg="skip", cross_timestep=False, stg_block=29, official_stg_block=29, config=_OLD),
            Generation("2.3", stg="value", cross_timestep=True, stg_block=28, official_stg_block=29, config=_NEW),
            Generation(
                "2.5",
                stg="value",
                cross_timestep=True,
                stg_block=28,
                official_stg_block=28,
                config={**_NEW, "ff_bias": False, "use_keyframes_abs_pos_embedding": True},
            ),
        )
    }
)


def generation_of(config: Mapping[str, Any]) -> Generation:
    """The generation of a diffusers transformer configuration, told by its modulation of the text and its biases."""
    if not config["cross_attn_mod"]:
        return GENERATIONS["2.0"]
    return GENERATIONS["2.3" if config.get("ff_bias", True) else "2.5"]
