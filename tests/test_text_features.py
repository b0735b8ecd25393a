# SPDX-License-Identifier: Apache-2.0
"""A caption's stored features lead to the context that diffusers' connectors make, whatever stands on its padding."""

from dataclasses import replace

import pytest
import torch

import tiny_pipeline
from idlora.networks.generations import GENERATIONS
from idlora.networks.text import PromptEncoder

PROMPTS = ["a man says river garden", "coffee", ""]


@pytest.mark.parametrize("generation", GENERATIONS)
@torch.no_grad()
def test_the_two_halves_are_the_connectors(generation: str) -> None:
    made = tiny_pipeline.components(generation)
    encoder = PromptEncoder(made.tokenizer, made.text_encoder, made.connectors, tiny_pipeline.MAX_TOKENS)
    ids, mask = encoder.tokens(PROMPTS)
    hidden = encoder.hidden_states(ids, mask)
    video, audio, valid = made.connectors(hidden, mask, padding_side="left")
    context = encoder.context(ids, mask)
    assert torch.equal(context.video, video)
    assert torch.equal(context.audio, audio)
    assert bool((valid == 1).all()) == (context.mask is None)
    features = encoder.features(hidden, mask)
    spoilt = (torch.where(mask[..., None] == 1, part, 7.0) for part in (features.video, features.audio))
    again = encoder.attended(replace(features, **dict(zip(("video", "audio"), spoilt, strict=True))), mask)
    assert torch.equal(again.video, context.video)
    assert torch.equal(again.audio, context.audio)
