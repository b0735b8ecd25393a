# SPDX-License-Identifier: Apache-2.0
"""What some weights cannot do, refused before any work."""

from __future__ import annotations

import torch

from idlora.errors import InputError, SettingsError
from idlora.networks.adapter import IDENTITY
from idlora.networks.ranks import Ranks
from idlora.networks.stack import DISTILLED, AdapterStack
from idlora.pipeline.generation import Codecs, grid_step, stages
from idlora.pipeline.placement import Placement
from idlora.pipeline.settings import Settings


def check_size(settings: Settings, codecs: Codecs) -> None:
    """Refuse a size that the model, or the half-size first stage, cannot make (InputError)."""
    ratio = grid_step(settings, codecs)
    for name in ("height", "width"):
        side = getattr(settings, name)
        if settings.refine.sigmas and (side % ratio or side < 2 * ratio):
            nearest = max(2, round(side / ratio)) * ratio
            raise InputError(f"{name} {side}: in two stages it must be a multiple of {ratio}; use {nearest}")
    codecs.grid(settings)


def check_upscaler(settings: Settings, *, there: bool) -> None:
    """Refuse two stages without the spatial upscaler (SettingsError)."""
    if settings.refine.sigmas and not there:
        raise SettingsError("two stages need the spatial upscaler: give its file (--upsampler), or use one stage")


def check_graphs(settings: Settings, placement: Placement, device: torch.device, *, wanted: bool) -> None:
    """Refuse recorded steps, if they are wanted, where there are none or steps are not alike (SettingsError)."""
    if not wanted:
        return
    if device.type != "cuda":
        raise SettingsError(f"--graphs needs an NVIDIA GPU, and this runs on {device}; leave it out")
    if placement.where == "stream":
        raise SettingsError(
            "recorded steps need all blocks on the GPU, and the placement is stream: leave --graphs out, or make room "
            "for --placement offload (--storage, a smaller clip)"
        )
    if settings.first_block_cache:
        raise SettingsError("recorded steps cannot leave blocks out: --first-block-cache 0, or no --graphs")


def check_ranks(settings: Settings, ranks: Ranks | None) -> None:
    """Refuse first-block caching by several processes (SettingsError).

    Each would go by the passes it runs, and a pass may change hands between steps: the clip would be another one for
    every number of processes.
    """
    if ranks is not None and settings.first_block_cache:
        raise SettingsError(
            f"first_block_cache {settings.first_block_cache:g} goes by all passes of a step, and "
            f"{ranks.size} processes share them out; use --first-block-cache 0, or one process"
        )


def check_adapters(settings: Settings, adapters: AdapterStack, *, distilled_weights: bool) -> None:
    """Refuse strengths that the adapters there cannot have (SettingsError)."""
    plans = stages(settings)
    wanted = next((stage.distilled for stage in plans if stage.distilled), 0.0)
    if wanted and DISTILLED not in adapters.strengths and not distilled_weights:
        raise SettingsError(
            f"distilled strength {wanted:g} needs the distilled adapter: give its file (--distilled), or set the "
            "strength to 0 if the weights themselves are distilled"
        )
    if IDENTITY in adapters.fused and (len(plans) > 1 or settings.guidance.identity.adapter_off):
        why = "a second stage works" if len(plans) > 1 else "the pass without reference is to be"
        raise SettingsError(f"{why} without the identity adapter, which is fused into the weights; keep it apart")
