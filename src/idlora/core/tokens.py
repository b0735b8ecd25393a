# SPDX-License-Identifier: Apache-2.0
"""Latents of the codecs to tokens of the transformer and back; both are exact rearrangements."""

from __future__ import annotations

from torch import Tensor


def video_to_tokens(latent: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B, F * H * W, C): frame-major, then row, then column."""
    return latent.flatten(2).transpose(1, 2)


def tokens_to_video(tokens: Tensor, latent_size: tuple[int, int, int]) -> Tensor:
    """(B, F * H * W, C) -> (B, C, F, H, W); the inverse of `video_to_tokens`."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *latent_size)


def audio_to_tokens(latent: Tensor) -> Tensor:
    """(B, C, T, M) of C channels and M mel bins -> (B, T, C * M): channel-major."""
    return latent.transpose(1, 2).flatten(2)


def tokens_to_audio(tokens: Tensor, num_channels: int = 8) -> Tensor:
    """(B, T, C * M) -> (B, C, T, M); the inverse of `audio_to_tokens`."""
    return tokens.reshape(*tokens.shape[:2], num_channels, -1).transpose(1, 2)
