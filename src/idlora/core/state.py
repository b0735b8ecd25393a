# SPDX-License-Identifier: Apache-2.0
"""The record of one latent stream, and of the pair video + audio.

Shapes: B samples, T tokens, C channels, A position axes (3 for video, 1 for audio).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

# What the mask of the target holds: ones alone; zeros too; anything in [0, 1].
Masking = Literal["ones", "binary", "graded"]


def per_sample(sigma: Tensor | float, like: Tensor) -> Tensor:
    """Bring a sigma (number, 0-d or (B,)) to shape (B,), on the device of `like` (B, ...), at least float32."""
    dtype = torch.promote_types(torch.float32, like.dtype)
    return torch.as_tensor(sigma, dtype=dtype, device=like.device).expand(like.shape[0])


@dataclass(frozen=True)
class LatentState:
    """One stream on its way from noise to data.

    `timesteps` and sigmas are in [0, 1]; the networks multiply by 1,000 themselves.
    """

    tokens: Tensor  # (B, T, C) current, partly noisy
    positions: Tensor  # (B, A, T, 2) bounds [start, end): seconds (audio) or seconds, pixels, pixels (video)
    denoise_mask: Tensor  # (B, T, 1) 1 = denoise, 0 = keep clean
    clean: Tensor  # (B, T, C) tokens to keep where the mask is 0
    num_reference: int = 0  # leading tokens that are reference
    valid: Tensor | None = None  # (B, T) bool, False on padding; None = every token is real
    frozen: bool = False  # given as a whole and never denoised: its noise level is 0, whatever the other stream's
    masking: Masking | None = None  # of the target; None = whoever needs it looks, which makes a GPU wait

    def level(self, sigma: Tensor | float) -> Tensor:
        """Noise level (B,) of this stream when the sampler is at sigma."""
        level = per_sample(sigma, self.tokens)
        return torch.zeros_like(level) if self.frozen else level

    def freeze(self, clean: Tensor) -> LatentState:
        """The same stream with all of its tokens (B, T, C) given: nothing in it is denoised."""
        mask = torch.zeros_like(self.denoise_mask)
        return replace(self, tokens=clean, clean=clean, denoise_mask=mask, frozen=True, masking="binary")

    def mask_kind(self) -> Masking:
        """What the mask holds, reference included."""
        mask = self.denoise_mask
        if self.masking is not None:
            return "binary" if self.masking == "ones" and self.num_reference else self.masking
        if bool((mask == 1).all()):
            return "ones"
        return "binary" if bool(((mask == 0) | (mask == 1)).all()) else "graded"

    def timesteps(self, sigma: Tensor | float) -> Tensor:
        """Per-token timestep (B, T) = mask * sigma."""
        return self.denoise_mask.squeeze(-1) * per_sample(sigma, self.tokens)[:, None]

    def with_tokens(self, tokens: Tensor) -> LatentState:
        """The same stream with other current tokens."""
        return replace(self, tokens=tokens)

    def keep_clean(self, x0: Tensor) -> Tensor:
        """Put the clean tokens back where the mask is 0: x0 * mask + clean * (1 - mask), (B, T, C)."""
        return x0 * self.denoise_mask + self.clean * (1 - self.denoise_mask)

    def noised(self, noise: Tensor) -> LatentState:
        """The start of sampling: noise where the mask is 1, clean tokens where it is 0."""
        return self.with_tokens(self.keep_clean(noise))


@dataclass(frozen=True)
class AVState:
    """Both streams of one sample batch."""

    video: LatentState
    audio: LatentState

    def with_tokens(self, video: Tensor, audio: Tensor) -> AVState:
        """The same streams with other current tokens."""
        return AVState(self.video.with_tokens(video), self.audio.with_tokens(audio))
