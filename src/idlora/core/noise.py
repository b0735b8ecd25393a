# SPDX-License-Identifier: Apache-2.0
"""Random draws for sampling: one generator for each sample, so that a batch equals its members."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idlora.core.reference import on_target
from idlora.core.state import AVState, LatentState

Generators = Sequence[torch.Generator]


def generators_for(seeds: Sequence[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One seeded generator for each sample. On the CPU (default) a seed means the same on every machine."""
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def draw_noise(shape: tuple[int, ...], generators: Generators, like: Tensor) -> Tensor:
    """Gaussian noise (B, *shape), sample b from generator b.

    Drawn in float32 on the generator's device, then moved to the device and dtype of `like`.
    """
    draws = [torch.randn(shape, generator=g, device=g.device, dtype=torch.float32) for g in generators]
    return torch.stack(draws).to(device=like.device, dtype=like.dtype)


def target_noise(stream: LatentState, generators: Generators) -> Tensor:
    """Noise of a stream's target, (B, T_target, C); its values do not depend on the reference."""
    _, length, channels = stream.tokens.shape
    return draw_noise((length - stream.num_reference, channels), generators, stream.tokens)


def initial_noise(state: AVState, generators: Generators, *, official: bool = False) -> tuple[Tensor, Tensor]:
    """Noise (B, T, C) for video and for audio, drawn in this order; reference rows are never used.

    `official` draws reference and target in one go, as the official scripts do: then the target's noise changes with
    the reference's length. By default it does not.
    """
    video = target_noise(state.video, generators)
    if official:
        return video, draw_noise(tuple(state.audio.tokens.shape[1:]), generators, state.audio.tokens)
    return video, on_target(target_noise(state.audio, generators), state.audio.num_reference)
