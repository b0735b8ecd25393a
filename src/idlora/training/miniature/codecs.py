# SPDX-License-Identifier: Apache-2.0
"""Training of the miniature's video and audio autoencoders."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from idlora.training.miniature.dataset import Pool
from idlora.training.miniature.loop import Losses

KL_WEIGHT = 1e-4
DECODER_NOISE = 0.1  # added to latents of deviation 1: generated ones are not exact either
LIPS_WEIGHT = 20.0  # of the colour that tells the inside of a mouth; one value tried
VIDEO_DECODER_NOISE = 0.05  # the same for pictures, whose least components are small


def _rows(pool: Pool, seed: int, step: int, size: int) -> tuple[Tensor, np.random.Generator]:
    rng = np.random.default_rng([seed, step])
    return pool.batch(rng.integers(len(pool), size=size)), rng


def _variational(vae: Any, target: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction from a sample of the posterior, and its KL divergence a latent value."""
    posterior = vae.encode(target).latent_dist
    reconstruction = vae.decode(posterior.sample()).sample
    return reconstruction, posterior.kl().mean() / posterior.mean[0].numel()


class AudioLoss:
    """L1 + L2 of the log-mel reconstruction of 1.13 s crops, plus KL."""

    def __init__(self, vae: Any, pool: Pool, seed: int = 0, batch: int = 8) -> None:
        self.vae, self.pool, self.seed, self.size = vae, pool, seed, batch

    def __call__(self, step: int) -> Losses:
        """Losses of a step."""
        target = self.draw(step)
        output, kl = _variational(self.vae, target)
        error = output - target
        absolute, squared = error.abs().mean(), error.square().mean()
        return {"loss": absolute + 0.5 * squared + KL_WEIGHT * kl, "l1": absolute, "mse": squared, "kl": kl}

    def draw(self, step: int) -> Tensor:
        """The step's batch (B, 2, 113, 64)."""
        mel, rng = _rows(self.pool, self.seed, step, self.size)  # (B, T, 64)
        start = int(rng.integers(mel.shape[1] - 113))
        return mel[:, None, start : start + 113].expand(-1, 2, -1, -1).to(self.vae.device)


class AudioDecoderLoss(AudioLoss):
    """L1 + L2 of what the decoder makes of the tokens themselves; the encoder rests, so the tokens stay what they are.

    Runs after the tokens were normalised, which gave the decoder's zero padding another meaning.
    """

    def __call__(self, step: int) -> Losses:
        """Losses of a step."""
        target = self.draw(step)
        with torch.no_grad():
            latents = self.vae.encode(target).latent_dist.mode()
        error = self.vae.decode(latents + DECODER_NOISE * torch.randn_like(latents)).sample - target
        absolute, squared = error.abs().mean(), error.square().mean()
        return {"loss": absolute + 0.5 * squared, "l1": absolute, "mse": squared}


class VideoDecoderLoss:
    """L1 + L2 of windows of 17 frames, the place of the mouth weighted up; the encoder rests."""

    frames = 17

    def __init__(self, vae: Any, pool: Pool, seed: int = 0, batch: int = 8) -> None:
        self.vae, self.pool, self.seed, self.size = vae, pool, seed, batch
        self.weight = mouth_weight(self.pool[0].shape[1])

    def __call__(self, step: int) -> Losses:
        """Losses of a step."""
        target, weight = self.draw(step).to(self.vae.device), self.weight.to(self.vae.device)
        with torch.no_grad():
            latents = self.vae.encode(target).latent_dist.mode().float()
        noise = VIDEO_DECODER_NOISE * self.vae.latents_std[0] * torch.randn_like(latents)
        error = self.vae.decode(latents + noise).sample.float() - target
        absolute = (error.abs() * weight).mean()
        squared = (error.square() * weight).mean()
        purple = ((error[:, 0] + error[:, 2]) / 2 - error[:, 1])[:, None]  # what the inside of mouths is told by
        lips = (purple.square() * weight).mean()
        psnr = 10 * torch.log10(4.0 / error.square().mean())
        return {"loss": absolute + 4.0 * squared + LIPS_WEIGHT * lips, "l1": absolute, "lips": lips, "psnr": psnr}

    def draw(self, step: int) -> Tensor:
        """The step's batch (B, 3, F, H, W) in -1..1: windows of random clips at random times."""
        rng = np.random.default_rng([self.seed, step])
        clips = rng.integers(len(self.pool), size=self.size)
        starts = rng.integers(self.pool[0].shape[0] - self.frames + 1, size=self.size)
        rows = [self.pool[int(clip)][start : start + self.frames] for clip, start in zip(clips, starts, strict=True)]
        return to_model(torch.from_numpy(np.stack(rows)))


def to_model(frames: Tensor) -> Tensor:
    """uint8 frames (B, F, H, W, 3) as (B, 3, F, H, W) in -1..1."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def mouth_weight(size: int) -> Tensor:
    """Weights (1, 1, 1, size, size): 1, and up to 12 where mouths move."""
    from idlora.data.world.reader import mouth_box

    weight = torch.ones(1, 1, 1, size, size)
    weight[..., *mouth_box(size)] = 12.0
    flat = weight.view(1, 1, size, size)
    return F.avg_pool2d(flat, 5, 1, 2, count_include_pad=False).view(1, 1, 1, size, size)
