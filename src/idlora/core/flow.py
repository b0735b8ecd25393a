# SPDX-License-Identifier: Apache-2.0
"""Rectified flow: x = (1 - sigma) x0 + sigma noise, velocity v = noise - x0 (Liu et al. 2022; Lipman et al. 2022).

Sigmas are (B,), timesteps (B, T); both in [0, 1].
"""

from __future__ import annotations

from torch import Tensor


def interpolate(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Noisy tokens (B, T, C) at per-token timesteps (B, T); timestep 0 keeps a token clean exactly."""
    t = timesteps[..., None]
    return (1 - t) * clean + t * noise


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """What the network learns: dx/dsigma = noise - clean."""
    return noise - clean


def x0_from_velocity(tokens: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
    """x0 = x - t v with the PER-TOKEN timestep (B, T), hence x0 = x exactly where t = 0."""
    return tokens - velocity * timesteps[..., None]


def masked_loss(prediction: Tensor, target: Tensor, mask: Tensor, *, per_sample: bool = False) -> Tensor:
    """Mean squared error over the tokens where the mask (B, T) is 1: mean(e^2 m) / mean(m).

    The means run over the batch, so that samples with more such tokens weigh more, as in the official training;
    `per_sample` gives every sample the same weight instead.
    """
    if per_sample:
        return sample_losses(prediction, target, mask).mean()
    error, weight = _weighted_error(prediction, target, mask)
    return error.mean() / weight.mean()


def sample_losses(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error (B,) of each sample over its tokens where the mask (B, T) is 1."""
    error, weight = _weighted_error(prediction, target, mask)
    return error.mean(1) / weight.mean(1)


def _weighted_error(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    error = (prediction - target).square().mean(-1)  # (B, T)
    weight = mask.to(error.dtype)
    return error * weight, weight
