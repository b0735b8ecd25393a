# SPDX-License-Identifier: Apache-2.0
"""Noise levels: the shifted schedule of LTX-2 for sampling, and both generations' draws for training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from idlora.errors import SettingsError

DEFAULT_TOKENS = 4096  # what the official one-stage pipeline assumes at every resolution
TERMINAL_SIGMA = 0.1


def shift_mu(num_tokens: int) -> float:
    """Log of the shift: 0.95 at 1,024 video tokens, 2.05 at 4,096, linear beyond both."""
    return 0.95 + (num_tokens - 1024) * (2.05 - 0.95) / 3072


def ltx2_sigmas(num_steps: int, num_tokens: int = DEFAULT_TOKENS) -> Tensor:
    """Sigmas (num_steps + 1,) from 1 to 0, shifted by the number of video tokens, fp32.

    sigma(u) = e^mu / (e^mu + 1/u - 1) for u from 1 to 0, then 1 - sigma stretched so that the last level above
    zero is 0.1 (LTX-2). With one step the only level above zero is 1, and nothing is stretched.

    Raises:
        SettingsError: fewer than one step.
    """
    if num_steps < 1:
        raise SettingsError(f"the number of steps is {num_steps}; it must be at least 1, and 30 is usual")
    u = torch.linspace(1.0, 0.0, num_steps + 1)[:-1]
    exp_mu = math.exp(shift_mu(num_tokens))
    sigmas = exp_mu / (exp_mu + (1 / u - 1))
    if num_steps > 1:
        sigmas = 1 - (1 - sigmas) / ((1 - sigmas[-1]) / (1 - TERMINAL_SIGMA))
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def logit_normal_sigmas(num_samples: int, mean: float, generator: torch.Generator, deviation: float = 1.0) -> Tensor:
    """Training sigmas of LTX-2.0, (num_samples,): sigmoid of N(mean, deviation^2).

    LTX-2 takes the mean `shift_mu(number of video tokens)` and the deviation 1.
    """
    return torch.sigmoid(torch.randn(num_samples, generator=generator) * deviation + mean)


# Percentiles 99.9 and 0.5 of the standard normal distribution, between which 2.3 stretches its draws.
_UPPER_Z, _LOWER_Z = 3.0902, -2.5758
_EPSILON = 1e-3
_UNIFORM_SHARE = 0.1


def stretched_logit_normal_sigmas(
    num_samples: int, mean: float, generator: torch.Generator, deviation: float = 1.0
) -> Tensor:
    """Training sigmas of LTX-2.3, (num_samples,): the 2.0 draw stretched to [0, 1], one in ten replaced by a uniform.

    Draws below 1e-3 after stretching are reflected above it; uniform ones lie in [1e-3, 1].
    """
    drawn = logit_normal_sigmas(num_samples, mean, generator, deviation)
    upper, lower = (torch.sigmoid(torch.tensor(mean + z * deviation)) for z in (_UPPER_Z, _LOWER_Z))
    stretched = (drawn - lower) / (upper - lower)
    stretched = torch.where(stretched < _EPSILON, 2 * _EPSILON - stretched, stretched).clamp(0, 1)
    uniform = _EPSILON + (1 - _EPSILON) * torch.rand(num_samples, generator=generator)
    chosen = torch.rand(num_samples, generator=generator) < _UNIFORM_SHARE
    return torch.where(chosen, uniform, stretched)
