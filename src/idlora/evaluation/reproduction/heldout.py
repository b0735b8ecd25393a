# SPDX-License-Identifier: Apache-2.0
"""The training objective on clips of validation speakers, with the right reference and with another speaker's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from idlora.core.guidance import NEUTRAL
from idlora.core.positions import audio_positions, reference_positions, video_positions
from idlora.data.media import Voice
from idlora.data.world.captions import caption
from idlora.data.world.clip import FRAME_RATE, NUM_FRAMES, draw_reference, render_picture, render_sound
from idlora.data.world.speakers import NUM_SPEAKERS, clip, speaker
from idlora.data.world.voice import SAMPLE_RATE
from idlora.evaluation.store import Values
from idlora.networks.joint import JointModel, JointOptions
from idlora.pipeline import IDLoraPipeline, Request, Settings
from idlora.pipeline.generation import reference_tokens
from idlora.pipeline.inputs import read_inputs
from idlora.pipeline.meter import Meter
from idlora.training.objective import TrainingBatch, training_step

SIGMAS = (0.4, 0.6, 0.8, 0.95)
_SECONDS = 3.0


@torch.no_grad()
def heldout_losses(pipe: IDLoraPipeline, who: int, settings: Settings) -> Values:
    """Mean loss of the sound of validation speaker `who`, 0 to 39, over the noise levels: `right` and `wrong`.

    Clip, caption, noise and first frame are the same for both; the wrong reference is that of the speaker half the
    split further on, of the same length and likewise drawn.
    """
    settings = replace(settings, guidance=NEUTRAL)
    others = (who, (who + NUM_SPEAKERS["validation"] // 2) % NUM_SPEAKERS["validation"])
    spec = clip("validation", who)
    batch = [read_inputs(Request(caption(spec), settings, None, _voice(each, who))) for each in others]
    context = pipe.texts(batch, Meter(pipe.device)).positive
    references = torch.stack([reference_tokens(inputs, pipe.codecs, pipe.device) for inputs in batch])
    video, audio = _encoded(pipe, who)
    grid = pipe.codecs.grid(settings)
    options = JointOptions.of(settings)
    model = JointModel(pipe.components.transformer, options, around_block=pipe.residence.around_block)
    generator = torch.Generator().manual_seed(who)
    given = torch.zeros(2, grid.num_tokens, dtype=torch.bool, device=pipe.device)
    given[:, : grid.height * grid.width] = True
    losses = []
    for sigma in SIGMAS:
        step = TrainingBatch(
            video=video.expand(2, -1, -1),
            audio=audio.expand(2, -1, -1),
            video_noise=_same_noise(video, generator),
            audio_noise=_same_noise(audio, generator),
            sigmas=torch.full((2,), sigma, device=pipe.device),
            video_positions=video_positions((grid.frames, grid.height, grid.width), settings.frame_rate, pipe.device),
            audio_positions=audio_positions(audio.shape[1], pipe.device),
            context=context,
            conditioned=given,
            reference=references,
            reference_positions=reference_positions(
                references.shape[1], settings.positions, settings.reference_time, pipe.device
            ),
        )
        losses.append(training_step(model, step).by_sample[1])
    right, wrong = torch.stack(losses).mean(0).tolist()
    return {"right": right, "wrong": wrong}


def _same_noise(clean: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(clean.shape, generator=generator).to(clean.device).expand(2, -1, -1)


def _voice(whose: int, asked: int) -> Voice:
    rng = np.random.default_rng([whose, asked, 13])
    spec = draw_reference(rng, speaker("validation", whose), _SECONDS, clip("validation", asked).words)
    sound = render_sound(spec, round(_SECONDS * SAMPLE_RATE)).samples.astype(np.float32)
    return Voice(sound[None], SAMPLE_RATE)


def _encoded(pipe: IDLoraPipeline, who: int) -> tuple[Tensor, Tensor]:
    """Tokens (1, T, C) of the true picture and sound, as many as a generated clip has."""
    spec = clip("validation", who)
    sound = render_sound(spec)
    frames = torch.from_numpy(render_picture(spec, sound))[None].to(pipe.device)
    samples = torch.from_numpy(sound.samples.astype(np.float32))[None, None].to(pipe.device)
    tokens = pipe.codecs.audio.encode(samples).float()
    wanted = pipe.codecs.audio.num_tokens(NUM_FRAMES / FRAME_RATE)
    return pipe.codecs.video.encode(frames).float(), tokens[:, :wanted]
