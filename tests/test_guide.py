# SPDX-License-Identifier: Apache-2.0
"""Guided attention: what is asked of which token, and that its loss means what it says."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idlora.data.world.clip import FRAME_RATE, render_sound, speech_energy, spoken
from idlora.data.world.speakers import clip
from idlora.training.miniature import components
from idlora.training.miniature.diffusion import in_key_order
from idlora.training.miniature.guide import AttentionGuide, attention_loss
from idlora.training.miniature.latents import spoken_ordinals


def test_uniform_attention_costs_the_logarithm_of_the_keys() -> None:
    due, words = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 2, 2]])
    loss = attention_loss(torch.zeros(1, 3, 8), torch.randn(1, 4, 8), due, words)
    assert torch.isclose(loss, torch.tensor((math.log(4) + math.log(2)) / 2))


def test_perfect_attention_costs_nothing_and_its_opposite_much() -> None:
    due, words = torch.tensor([[1, 2]]), torch.tensor([[1, 2]])
    query, key = 40 * torch.eye(2)[None], torch.eye(2)[None]
    assert attention_loss(query, key, due, words) < 1e-6
    assert attention_loss(query, key.flip(1), due, words) > 10


def test_a_dropped_prompt_asks_for_nothing() -> None:
    query = torch.randn(2, 5, 4, requires_grad=True)
    loss = attention_loss(query, torch.randn(2, 3, 4), torch.ones(2, 5, dtype=torch.long), torch.zeros(2, 3).long())
    loss.backward()
    assert loss == 0
    assert query.grad is not None
    assert not query.grad.any()


def test_the_guide_hears_every_block_but_the_first_once() -> None:
    model = components.transformer()
    guide = AttentionGuide(model)
    for block in model.transformer_blocks:
        block.audio_attn2(torch.randn(1, 5, 192), encoder_hidden_states=torch.randn(1, 7, 192))
    assert len(guide._queries) == len(model.transformer_blocks) - 1
    loss = guide.loss(torch.ones(1, 5).long(), torch.tensor([[0, 0, 1, 1, 2, 0, 0]]))
    assert 0 < loss < 10
    assert not guide._queries
    assert not guide._keys


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 12))
@settings(max_examples=50, deadline=None)
def test_keys_stand_in_their_order_with_the_padding_behind(values: list[int], padding: int) -> None:
    tokens = torch.tensor([[99] * padding + values])
    mask = torch.tensor([[0] * padding + [1] * len(values)])
    assert in_key_order(tokens, mask)[0].tolist() == values + [99] * padding


def test_words_are_due_while_they_are_heard() -> None:
    for index in range(6):
        spec = clip("train", index)
        spans = spoken(spec)
        assert len(spans) == len(spec.words)
        energy = speech_energy(render_sound(spec).dry, 57)
        times = (np.arange(57) + 0.5) / FRAME_RATE
        ordinals = spoken_ordinals(times.astype(np.float32), spans)
        assert energy[ordinals > 0].mean() > 2 * energy[ordinals == 0].mean()
        assert set(ordinals) == {0, 1, 2, 3}
