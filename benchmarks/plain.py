# SPDX-License-Identifier: Apache-2.0
"""The training loss as a user would write it with diffusers' own forward, which has no masks for the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from idlora.core.flow import interpolate, masked_loss, velocity_target
from idlora.training.objective import TrainingBatch


def plain_loss(transformer: Any, batch: TrainingBatch, dtype: torch.dtype) -> Tensor:
    """The batch's loss, multiplied in a dtype: by autocast where that is not the weights' own."""
    assert batch.conditioned is not None
    assert batch.reference is not None
    assert batch.reference_positions is not None
    size, wanted, heard = len(batch.sigmas), ~batch.conditioned, batch.audio.shape[1]
    timesteps, noisy = wanted * batch.sigmas[:, None], batch.sigmas[:, None].expand(-1, heard)
    clean = torch.zeros_like(batch.reference[..., 0])
    audio = torch.cat([batch.reference, interpolate(batch.audio, batch.audio_noise, noisy)], dim=1)
    coordinates = torch.cat([batch.reference_positions, batch.audio_positions], dim=2)
    with torch.autocast(batch.video.device.type, dtype, enabled=dtype != torch.float32):
        video_made, audio_made = transformer(
            hidden_states=interpolate(batch.video, batch.video_noise, timesteps).to(dtype),
            audio_hidden_states=audio.to(dtype),
            encoder_hidden_states=batch.context.video.to(dtype),
            audio_encoder_hidden_states=batch.context.audio.to(dtype),
            timestep=timesteps * 1000,
            audio_timestep=torch.cat([clean, noisy], dim=1) * 1000,
            sigma=batch.sigmas * 1000,
            audio_sigma=batch.sigmas * 1000,
            video_coords=batch.video_positions.expand(size, -1, -1, -1),
            audio_coords=coordinates.expand(size, -1, -1, -1),
            use_cross_timestep=True,
            return_dict=False,
        )
        video_loss = masked_loss(video_made, velocity_target(batch.video, batch.video_noise), wanted)
        target = velocity_target(batch.audio, batch.audio_noise)
        return video_loss + masked_loss(audio_made[:, clean.shape[1] :], target, torch.ones_like(noisy))
