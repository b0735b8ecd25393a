# SPDX-License-Identifier: Apache-2.0
"""Where every token stands: bounds [start, end) in seconds (audio; video axis 0) and in pixels (video axes 1 and 2).

The rotary embedding uses the midpoints. Reference tokens stand before time zero; other places are there to compare.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from idlora.core.state import AVState

Rounding = Literal["fp32", "bf16-inference", "bf16-training"]
ReferenceTime = Literal["negative", "adjacent", "shared", "far"]

HOP_LENGTH = 160  # samples from one mel frame to the next
SAMPLING_RATE = 16_000
MELS_PER_TOKEN = 4
REFERENCE_GAP = 0.04  # seconds between the reference's end and the target's start; one token
FAR = 20.0  # seconds; the rotary embedding counts in units of these, and no target reaches so far
PIXELS_PER_TOKEN = 32
FRAMES_PER_TOKEN = 8
_CPU = torch.device("cpu")  # where all are computed: a GPU rounds bfloat16 otherwise, which moves rounded positions


def audio_positions(num_tokens: int, device: torch.device | None = None) -> Tensor:
    """Bounds (1, 1, T, 2) in seconds: token i covers mel frames [4i - 3, 4i + 1), cut at zero (causal first token)."""
    edges = torch.arange(num_tokens + 1, dtype=torch.float32, device=_CPU) * MELS_PER_TOKEN
    edges = (edges + 1 - MELS_PER_TOKEN).clamp(min=0) * HOP_LENGTH / SAMPLING_RATE
    return _at(torch.stack([edges[:-1], edges[1:]], dim=-1)[None, None], device)


def video_positions(latent_size: tuple[int, int, int], frame_rate: float, device: torch.device | None = None) -> Tensor:
    """Bounds (1, 3, F * H * W, 2) of a grid of F x H x W tokens, frame-major: seconds, pixels, pixels.

    Token frame f covers pictures [8f - 7, 8f + 1), cut at zero: the first token frame is one picture. A token counts
    as 32 pixels wide and high whatever it covers (in the miniature 24), as the networks were trained.
    """
    edges = _video_edges(latent_size)
    edges[0] = edges[0] / frame_rate
    return _at(_grid_bounds(edges), device)


def _at(positions: Tensor, device: torch.device | None) -> Tensor:
    """On a device; None = PyTorch's default one."""
    return positions.to(torch.get_default_device() if device is None else device)


def _video_edges(latent_size: tuple[int, int, int]) -> list[Tensor]:
    """Edges of the tokens along each axis, in pictures and pixels."""
    frames, rows, columns = (torch.arange(n + 1, dtype=torch.float32, device=_CPU) for n in latent_size)
    pictures = (frames * FRAMES_PER_TOKEN + 1 - FRAMES_PER_TOKEN).clamp(min=0)
    return [pictures, rows * PIXELS_PER_TOKEN, columns * PIXELS_PER_TOKEN]


def _grid_bounds(edges: list[Tensor]) -> Tensor:
    """All combinations of the axes' intervals, the last axis fastest: (1, A, T, 2)."""
    starts = torch.meshgrid(*(edge[:-1] for edge in edges), indexing="ij")
    ends = torch.meshgrid(*(edge[1:] for edge in edges), indexing="ij")
    return torch.stack([torch.stack(starts), torch.stack(ends)], dim=-1).flatten(1, 3)[None]


def before_target(positions: Tensor, gap: float = REFERENCE_GAP) -> Tensor:
    """Negative positions p - D - gap of a reference whose own bounds p end at D: its last token ends at -gap.

    Computed in the dtype of `positions`, (B, 1, T, 2).
    """
    if positions.shape[2] == 0:
        return positions
    return positions - positions[:, :, -1:, 1:] - gap


def place_reference(positions: Tensor, time: ReferenceTime) -> Tensor:
    """A reference's own bounds p, (B, 1, T, 2) from 0 to D, as they lie beside the target's, which begin at 0.

    `negative` is the method: p - D - gap. The others are what it is compared with: `adjacent` p - D, `shared` p, where
    reference and target meet, and `far` p + 20 s.
    """
    if time == "shared":
        return positions
    if time == "far":
        return positions + FAR
    return before_target(positions, REFERENCE_GAP if time == "negative" else 0.0)


def reference_positions(
    num_tokens: int,
    rounding: Rounding = "fp32",
    time: ReferenceTime = "negative",
    device: torch.device | None = None,
) -> Tensor:
    """Bounds (1, 1, T, 2) of a reference beside the target; under either rounding the shift is made in bf16."""
    bounds = audio_positions(num_tokens, _CPU)
    return _at(place_reference(bounds if rounding == "fp32" else bounds.to(torch.bfloat16), time), device)


def round_positions(state: AVState, rounding: Rounding) -> AVState:
    """Reproduce the two roundings of the official code (they cost up to one token of accuracy; default off).

    `bf16-inference` rounds the video and the reference, `bf16-training` the audio target as well, and makes the
    rotary embedding compute its coordinates in bf16. The reference's positions must come from `reference_positions`
    under the same rounding, since the shift itself is made in bf16.
    """
    if rounding == "fp32":
        return state
    video = replace(state.video, positions=state.video.positions.to(torch.bfloat16))
    if rounding == "bf16-inference":
        return AVState(video, state.audio)
    return AVState(video, replace(state.audio, positions=state.audio.positions.to(torch.bfloat16)))
