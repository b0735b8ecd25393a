# SPDX-License-Identifier: Apache-2.0
"""Samplers as plain functions of a callable `model(state, sigma) -> x0 of both streams`.

Sigmas are (N + 1,) descending; both samplers return the state at the last one. Tokens whose denoise mask is 0 (the
reference, a given first frame) come out exactly as they went in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from idlora.core.noise import Generators, target_noise
from idlora.core.reference import on_target
from idlora.core.state import AVState, LatentState
from idlora.errors import Cancelled

Model = Callable[[AVState, float], AVState]


class Step(NamedTuple):
    """What a callback learns before each step."""

    number: int  # from 0
    num_steps: int
    sigma: float
    state: AVState
    x0: AVState | None = None  # what the step before believed the clean streams to be


Callback = Callable[[Step], bool | None]


def _announce(callback: Callback | None, step: Step) -> None:
    if callback is not None and callback(step) is False:
        raise Cancelled(f"cancelled at step {step.number + 1} of {step.num_steps}")


def _denoised(model: Model, state: AVState, sigma: float) -> AVState:
    x0 = model(state, sigma)
    return state.with_tokens(state.video.keep_clean(x0.video.tokens), state.audio.keep_clean(x0.audio.tokens))


def sample_euler(model: Model, state: AVState, sigmas: Tensor, *, callback: Callback | None = None) -> AVState:
    """Euler on dx/dsigma = (x - x0) / sigma, order 1; one call of the model for each step.

    Raises:
        Cancelled: the callback returned False.
    """
    levels, x0 = sigmas.tolist(), None
    for index, (sigma, following) in enumerate(pairwise(levels)):
        _announce(callback, Step(index, len(levels) - 1, sigma, state, x0))
        x0 = _denoised(model, state, sigma)
        state = state.with_tokens(
            _euler_step(state.video.tokens, x0.video.tokens, sigma, following),
            _euler_step(state.audio.tokens, x0.audio.tokens, sigma, following),
        )
    return state


def _euler_step(x: Tensor, x0: Tensor, sigma: float, following: float) -> Tensor:
    return x + (x - x0) / sigma * (following - sigma)


LAST_SIGMA = 0.0011  # res_2s works in log sigma and cannot reach 0: it stops here and denoises once more
REFINE_BELOW_H = 0.5
REFINE_ABOVE_SIGMA = 0.03
NOISE_SHARE = 0.5  # share of a level's sigma that is fresh noise


def sample_res2s(
    model: Model,
    state: AVState,
    sigmas: Tensor,
    *,
    generators: Generators | None = None,
    callback: Callback | None = None,
) -> AVState:
    """Second-order exponential sampler with fresh noise at every half step and step (res_2s; RES, Zhang et al. 2023).

    Two calls of the model for each step, and one at the end if the last sigma is 0. The state is kept in float64.

    Args:
        model: gets states in the dtype of `state`.
        state: both streams at the first sigma.
        sigmas: (N + 1,) descending, at least two.
        callback: called before each step; False cancels.
        generators: one for each sample, the source of the fresh noise; None = no noise, then of order 2.

    Raises:
        Cancelled: the callback returned False.
    """
    dtype, levels = state.video.tokens.dtype, sigmas.tolist()
    finish = levels[-1] == 0
    if finish:
        levels[-1] = LAST_SIGMA
    state, believed = _cast(state, torch.float64), None

    def in_double(current: AVState, sigma: float) -> AVState:
        nonlocal believed
        believed = _cast(_denoised(model, _cast(current, dtype), sigma), torch.float64)
        return believed

    for index, (sigma, following) in enumerate(pairwise(levels)):
        _announce(callback, Step(index, len(levels) - 1, sigma, state, believed))
        state = _res2s_step(in_double, state, (sigma, following), generators)
    return _cast(in_double(state, LAST_SIGMA) if finish else state, dtype)


def _cast(state: AVState, dtype: torch.dtype) -> AVState:
    return state.with_tokens(state.video.tokens.to(dtype), state.audio.tokens.to(dtype))


def _each(formula: Callable[..., Tensor], state: AVState, *others: AVState) -> AVState:
    """Apply a formula to the tokens of the states, stream by stream; clean tokens stay as they are."""
    states = (state, *others)
    video = formula(*(each.video.tokens for each in states))
    audio = formula(*(each.audio.tokens for each in states))
    return state.with_tokens(state.video.keep_clean(video), state.audio.keep_clean(audio))


def _res2s_step(model: Model, state: AVState, span: tuple[float, float], generators: Generators | None) -> AVState:
    """From span[0] to span[1] by way of their geometric mean."""
    sigma, following = span
    h, middle = math.log(sigma / following), math.sqrt(sigma * following)
    decay = math.exp(-h / 2)
    first = model(state, sigma)
    halfway = _each(lambda x, x0: decay * x + (1 - decay) * x0, state, first)
    if generators is not None:
        halfway = _renoised(state, halfway, (sigma, middle), generators)
        if h < REFINE_BELOW_H and sigma > REFINE_ABOVE_SIGMA:
            # The start that would have led here without noise. The official code reaches this fixed point by a
            # hundred iterations; it has this closed form.
            state = _each(lambda x, x0: (x - (1 - decay) * x0) / decay, halfway, first)
    second = model(halfway, middle)
    b1, b2 = res2s_weights(h)
    arrived = _each(lambda x, a, b: x + b1 * (a - x) + b2 * (b - x), state, first, second)
    return arrived if generators is None else _renoised(state, arrived, span, generators)


def res2s_weights(h: float) -> tuple[float, float]:
    """Weights of both denoised states over a step of h in log sigma: h (phi1(-h) - 2 phi2(-h)) and 2 h phi2(-h)."""
    phi1 = -math.expm1(-h) / h
    phi2 = (math.expm1(-h) + h) / h**2
    return h * (phi1 - 2 * phi2), 2 * h * phi2


def _renoised(start: AVState, arrived: AVState, span: tuple[float, float], generators: Generators) -> AVState:
    """Replace a share of the noise at span[1] by fresh noise, the variance preserved.

    On the straight line through both states the point at a lower level is taken, scaled so that the signal has its
    weight 1 - sigma, and noise added up to sigma.
    """
    sigma, following = span
    fresh = NOISE_SHARE * following
    kept = math.sqrt(following**2 - fresh**2)
    scale = 1 - following + kept
    lower = kept / scale

    def mix(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        slope = (x - y) / (sigma - following)
        return scale * (x + (lower - sigma) * slope) + fresh * noise

    video, audio = (_normal_noise(stream, generators) for stream in (start.video, start.audio))
    return _each(mix, start, arrived, start.with_tokens(video, audio))


def _normal_noise(stream: LatentState, generators: Generators) -> Tensor:
    """Noise of exactly zero mean and unit variance in each sample, (B, T, C); zero on the reference."""
    noise = target_noise(stream, generators)
    mean, std = noise.mean((1, 2), keepdim=True), noise.std((1, 2), keepdim=True)
    return on_target((noise - mean) / std, stream.num_reference)
