# SPDX-License-Identifier: Apache-2.0
"""Attach and detach of reference tokens: the only place that knows where they sit (in front of the target)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from idlora.core.state import AVState, LatentState


def attach_reference(
    target: LatentState, tokens: Tensor, positions: Tensor, valid: Tensor | None = None
) -> LatentState:
    """Put clean reference tokens in front of a stream: denoise mask 0, hence timestep 0 and no noise.

    Args:
        target: a stream without reference.
        tokens: (B, T_ref, C); T_ref may be 0.
        positions: (B, A, T_ref, 2), negative in time (`positions.reference_positions`).
        valid: (B, T_ref) bool, False where a shorter reference was padded (at the front).

    Raises:
        ValueError: the stream has a reference already.
    """
    if target.num_reference:
        raise ValueError(f"the stream has a reference of {target.num_reference} tokens already; detach it first")
    zeros = target.denoise_mask.new_zeros(tokens.shape[0], tokens.shape[1], 1)
    return replace(
        target,
        tokens=torch.cat([tokens, target.tokens], dim=1),
        positions=torch.cat([positions, target.positions], dim=2),
        denoise_mask=torch.cat([zeros, target.denoise_mask], dim=1),
        clean=torch.cat([tokens, target.clean], dim=1),
        num_reference=tokens.shape[1],
        valid=_join_valid(target, tokens, valid),
    )


def _join_valid(target: LatentState, tokens: Tensor, valid: Tensor | None) -> Tensor | None:
    if valid is None and target.valid is None:
        return None
    everything = torch.ones(target.tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    reference = everything.new_ones(tokens.shape[:2]) if valid is None else valid
    return torch.cat([reference, everything if target.valid is None else target.valid], dim=1)


def detach_reference(state: LatentState) -> LatentState:
    """The stream without its reference; the inverse of `attach_reference`. One that has none is given back."""
    start = state.num_reference
    if start == 0:
        return state
    return replace(
        state,
        tokens=state.tokens[:, start:],
        positions=state.positions[:, :, start:],
        denoise_mask=state.denoise_mask[:, start:],
        clean=state.clean[:, start:],
        num_reference=0,
        valid=None if state.valid is None else state.valid[:, start:],
    )


def reference_part(state: LatentState) -> LatentState:
    """The reference as a stream of its own, which is given as a whole; the other part of `detach_reference`."""
    end = state.num_reference
    return replace(
        state,
        tokens=state.clean[:, :end],
        positions=state.positions[:, :, :end],
        denoise_mask=torch.ones_like(state.denoise_mask[:, :end]),
        clean=state.clean[:, :end],
        num_reference=0,
        valid=None if state.valid is None else state.valid[:, :end],
        frozen=True,
        masking="ones",
    )


def without_reference(state: AVState) -> AVState:
    """Both streams, the audio without its reference: the input of the identity pass."""
    return AVState(detach_reference(state.video), detach_reference(state.audio))


def target_part(tokens: Tensor, num_reference: int) -> Tensor:
    """The target's rows of something laid out along a stream, (B, T_ref + T, ...) -> (B, T, ...)."""
    return tokens[:, num_reference:]


def on_target(delta: Tensor, num_reference: int) -> Tensor:
    """Lay a change of the target out along the whole stream: zero on the reference rows."""
    return torch.cat([delta.new_zeros(delta.shape[0], num_reference, *delta.shape[2:]), delta], dim=1)
