# SPDX-License-Identifier: Apache-2.0
"""Loss and guided step as a user would write them with diffusers' own forward, which has no masks for the reference."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from idlora.core.flow import interpolate, masked_loss, velocity_target
from idlora.core.guidance import Pass
from idlora.core.reference import without_reference
from idlora.core.state import AVState
from idlora.networks.generations import GENERATIONS
from idlora.networks.joint import Prediction, TextContext
from idlora.training.objective import TrainingBatch

ATTENTIONS = ("attn1", "audio_attn1")


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


class Plain:
    """A guided step by diffusers' own forward, its passes one after the other."""

    def __init__(
        self, generation: str, net: Any, texts: tuple[TextContext, TextContext], dtype: torch.dtype, sigma: float
    ) -> None:
        self.generation, self.net, self.texts = GENERATIONS[generation], net, texts
        self.dtype, self.sigma = dtype, sigma

    def step(self, state: AVState, plan: Sequence[Pass]) -> dict[str, Prediction]:
        """All passes, one after the other."""
        return {run.name: self.run(state if run.reference else without_reference(state), run) for run in plan}

    def run(self, state: AVState, run: Pass) -> Prediction:
        """One pass."""
        if not run.perturbed_blocks or self.generation.stg == "value":
            return self._forward(state, run)
        mine = threading.get_ident()

        def nothing(_module: Any, _inputs: Any, out: Tensor) -> Tensor:
            return torch.zeros_like(out) if threading.get_ident() == mine else out

        attentions = [
            getattr(self.net.transformer_blocks[i], name) for i in run.perturbed_blocks for name in ATTENTIONS
        ]
        handles = [each.register_forward_hook(nothing) for each in attentions]
        try:
            return self._forward(state, run)
        finally:
            for handle in handles:
                handle.remove()

    def _forward(self, state: AVState, run: Pass) -> Prediction:
        context = self.texts[run.negative_text]
        sigma = torch.full((1,), self.sigma * 1000, device=state.video.tokens.device)
        video, audio = self.net(
            hidden_states=state.video.tokens.to(self.dtype),
            audio_hidden_states=state.audio.tokens.to(self.dtype),
            encoder_hidden_states=context.video,
            audio_encoder_hidden_states=context.audio,
            timestep=state.video.timesteps(self.sigma) * 1000,
            audio_timestep=state.audio.timesteps(self.sigma) * 1000,
            sigma=sigma,
            audio_sigma=sigma,
            video_coords=state.video.positions,
            audio_coords=state.audio.positions,
            isolate_modalities=run.isolated,
            spatio_temporal_guidance_blocks=list(run.perturbed_blocks),
            use_cross_timestep=self.generation.cross_timestep,
            return_dict=False,
        )
        return Prediction(video.float(), audio.float())
