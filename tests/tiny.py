# SPDX-License-Identifier: Apache-2.0
"""Tiny transformers of every generation with random weights, and inputs for them."""

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor

from idlora.core.positions import audio_positions, reference_positions, video_positions
from idlora.core.reference import attach_reference
from idlora.core.state import AVState, LatentState
from idlora.networks.generations import GENERATIONS
from idlora.networks.joint import TextContext

CHANNELS, TEXT = 6, 5
SIZE = (2, 2, 2)


@cache
def transformer(generation: str, num_layers: int = 2) -> Any:
    """A network whose every weight matters; shared between tests, which must leave it as it is."""
    from diffusers import LTX2VideoTransformer3DModel

    torch.manual_seed(4)
    model = LTX2VideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        audio_in_channels=CHANNELS,
        audio_out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        caption_channels=10,
        num_layers=num_layers,
        rope_type="split",
        **GENERATIONS[generation].config,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def fresh_transformer(generation: str) -> Any:
    """The same network for a test that changes it."""
    return deepcopy(transformer(generation))


def normal(*shape: int, seed: int) -> Tensor:
    """Reproducible Gaussian numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def state(num_reference: int = 3, batch: int = 2) -> AVState:
    """Both streams, the first latent frame given, sigma to be chosen."""
    video, audio = normal(batch, 8, CHANNELS, seed=1), normal(batch, 5, CHANNELS, seed=2)
    mask = torch.ones(batch, 8, 1)
    mask[:, :4] = 0
    v = LatentState(video, video_positions(SIZE, 25.0).expand(batch, -1, -1, -1), mask, video)
    a = LatentState(audio, audio_positions(5).expand(batch, -1, -1, -1), torch.ones(batch, 5, 1), audio)
    if num_reference:
        tokens = normal(batch, num_reference, CHANNELS, seed=3)
        a = attach_reference(a, tokens, reference_positions(num_reference).expand(batch, -1, -1, -1))
    return AVState(v, a)


def context(generation: str, batch: int = 2, seed: int = 5) -> TextContext:
    """Text features of the widths that the generation takes."""
    video, audio = (10, 10) if generation == "2.0" else (24, 16)
    return TextContext(normal(batch, TEXT, video, seed=seed), normal(batch, TEXT, audio, seed=seed + 1))


def rows(made: AVState, index: slice) -> AVState:
    """Some samples of a batch."""

    def part(stream: LatentState) -> LatentState:
        return LatentState(
            stream.tokens[index],
            stream.positions[index],
            stream.denoise_mask[index],
            stream.clean[index],
            stream.num_reference,
            None if stream.valid is None else stream.valid[index],
        )

    return AVState(part(made.video), part(made.audio))


def text_rows(made: TextContext, index: slice) -> TextContext:
    """The text of some samples of a batch."""
    return TextContext(made.video[index], made.audio[index], None if made.mask is None else made.mask[index])
