# SPDX-License-Identifier: Apache-2.0
"""The one training step's mathematics: a function of (model, batch) to losses, for every stage and for parity.

Flow matching on both streams with one sigma for each sample; the reference is clean input and never predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from idlora.core.flow import interpolate, masked_loss, sample_losses, velocity_target
from idlora.core.positions import Rounding, round_positions
from idlora.core.reference import attach_reference, target_part
from idlora.core.state import AVState, LatentState, Masking
from idlora.networks.joint import PLAIN, JointModel, Pass, Prediction, TextContext


@dataclass(frozen=True)
class TrainingBatch:
    """Everything random drawn already, so that a step is a function of its batch."""

    video: Tensor  # (B, T_video, C) clean tokens
    audio: Tensor  # (B, T_audio, C) clean target tokens
    video_noise: Tensor  # (B, T_video, C)
    audio_noise: Tensor  # (B, T_audio, C)
    sigmas: Tensor  # (B,) in [0, 1]
    video_positions: Tensor  # (1 or B, 3, T_video, 2)
    audio_positions: Tensor  # (1 or B, 1, T_audio, 2)
    context: TextContext
    conditioned: Tensor | None = None  # (B, T_video) bool, True on tokens of a given first frame; None = no token
    reference: Tensor | None = None  # (B, T_reference, C) clean tokens
    reference_positions: Tensor | None = None  # (1 or B, 1, T_reference, 2) negative
    reference_valid: Tensor | None = None  # (B, T_reference) bool, False on padding in front; None = all real
    audio_valid: Tensor | None = None  # (B, T_audio) bool, False on padding behind; None = all real


class Losses(NamedTuple):
    """Losses of a step, 0-d; `total` is what is minimised."""

    total: Tensor
    video: Tensor
    audio: Tensor


class TrainingStep(NamedTuple):
    """What a step computes, with what it was computed from."""

    losses: Losses
    prediction: Prediction  # velocities; audio covers reference + target
    state: AVState  # the network's input
    by_sample: tuple[Tensor, Tensor]  # losses (B,) of video and audio, detached


@dataclass(frozen=True)
class Objective:
    """Options of the loss; masks of the reference are options of the model (`JointOptions`).

    Attributes:
        rounding: `bf16-training` reproduces the positions that the published adapters were trained with.
        audio_weight: weight of the audio loss beside the video loss.
        per_sample: give every sample of a batch the same weight (see `masked_loss`).
    """

    rounding: Rounding = "fp32"
    audio_weight: float = 1.0
    per_sample: bool = False


def training_state(batch: TrainingBatch, rounding: Rounding = "fp32") -> AVState:
    """The network's input: noisy tokens at their timesteps, the reference in front of the audio."""
    return round_positions(AVState(_video_state(batch), _audio_state(batch)), rounding)


def _video_state(batch: TrainingBatch) -> LatentState:
    masking: Masking
    mask, masking = torch.ones_like(batch.video[..., :1]), "ones"
    if batch.conditioned is not None:
        mask, masking = mask.masked_fill(batch.conditioned[..., None], 0), "binary"
    positions = _for_batch(batch.video_positions, batch.video)
    clean = LatentState(batch.video, positions, mask, batch.video, masking=masking)
    return _noisy(clean, batch.video_noise, batch.sigmas)


def _audio_state(batch: TrainingBatch) -> LatentState:
    positions = _for_batch(batch.audio_positions, batch.audio)
    mask = torch.ones_like(batch.audio[..., :1])
    clean = LatentState(batch.audio, positions, mask, batch.audio, valid=batch.audio_valid, masking="ones")
    target = _noisy(clean, batch.audio_noise, batch.sigmas)
    if batch.reference is None:
        return target
    if batch.reference_positions is None:
        raise ValueError("a batch with reference tokens needs their positions")
    positions = _for_batch(batch.reference_positions, batch.reference)
    return attach_reference(target, batch.reference, positions, batch.reference_valid)


def _noisy(clean: LatentState, noise: Tensor, sigmas: Tensor) -> LatentState:
    return clean.with_tokens(interpolate(clean.clean, noise, clean.timesteps(sigmas)))


def _for_batch(positions: Tensor, tokens: Tensor) -> Tensor:
    return positions.expand(tokens.shape[0], -1, -1, -1)


def training_step(
    model: JointModel, batch: TrainingBatch, objective: Objective = Objective(), run: Pass = PLAIN
) -> TrainingStep:
    """Predict the velocity of the noisy tokens and compare it with noise - clean.

    video loss = mean(e^2 m) / mean(m) over the tokens that were not given, audio loss = the mean over the target's
    tokens, total = video + audio_weight * audio. `run` may isolate the streams, which trains each by itself.
    """
    state = training_state(batch, objective.rounding)
    prediction = model.velocity(state, batch.sigmas, batch.context, run)
    compared = (
        (
            prediction.video,
            velocity_target(batch.video, batch.video_noise),
            state.video.denoise_mask.squeeze(-1),
        ),
        (
            target_part(prediction.audio, state.audio.num_reference),
            velocity_target(batch.audio, batch.audio_noise),
            torch.ones_like(batch.audio[..., 0]) if batch.audio_valid is None else batch.audio_valid,
        ),
    )
    video, audio = (masked_loss(*each, per_sample=objective.per_sample) for each in compared)
    losses = Losses(video + objective.audio_weight * audio, video, audio)
    with torch.no_grad():
        by_sample = sample_losses(*compared[0]), sample_losses(*compared[1])
    return TrainingStep(losses, prediction, state, by_sample)
