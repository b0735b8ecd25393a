# SPDX-License-Identifier: Apache-2.0
"""The labels and batches from which the miniature's text encoder learns which spoken word is which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from idlora.data.world.captions import caption
from idlora.data.world.speakers import clip
from idlora.networks.text import PromptEncoder
from idlora.training.miniature import components
from idlora.training.miniature.latents import NUM_CAPTIONS, caption_pool
from idlora.training.miniature.text import MAX_WORDS, TextLoss, WordCounter, spoken_words


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return components.tokenizer([caption(clip("train", index)) for index in range(200)])


def ordinals(tokenizer: Any, text: str) -> list[tuple[int, str]]:
    """Ordinal and text of each spoken word, its pieces joined."""
    ids = torch.tensor([tokenizer(text).input_ids])
    labels = spoken_words(ids, tokenizer)[0]
    words = sorted({int(label) for label in labels if label > 0})
    return [(word, tokenizer.decode(ids[0][labels == word]).strip()) for word in words]


def test_words_are_counted_between_their_tags(tokenizer: Any) -> None:
    text = "[VISUAL] a person in a hall [SPEECH] nine happy seven [SOUNDS] one bell rings"
    assert ordinals(tokenizer, text) == [(1, "nine"), (2, "happy"), (3, "seven")]
    assert ordinals(tokenizer, "[SPEECH] nine [SOUNDS] rain") == [(1, "nine")]
    assert ordinals(tokenizer, "[VISUAL] nine people [SOUNDS] rain") == []


def test_a_word_in_pieces_counts_once_and_late_words_share_the_last_number(tokenizer: Any) -> None:
    assert ordinals(tokenizer, "[SPEECH] quixotic nine") == [(1, "quixotic"), (2, "nine")]
    many = ordinals(tokenizer, "[SPEECH] " + " ".join(["nine"] * 9))
    assert [word for word, _ in many] == list(range(1, MAX_WORDS + 1))
    assert many[-1][1] == "nine nine nine"


def test_batches_follow_from_seed_and_step_and_the_loss_has_a_floor(tokenizer: Any, tmp_path: Path) -> None:
    prompts = PromptEncoder(tokenizer, None, None, components.TEXT_LENGTH)
    pool = caption_pool(tmp_path, "train", prompts, 8)
    assert pool[0].shape == (NUM_CAPTIONS, components.TEXT_LENGTH)
    torch.manual_seed(0)
    counter = WordCounter(components.text_encoder(len(tokenizer)))
    loss = TextLoss(counter, tokenizer, pool, seed=1, batch=4)
    assert torch.equal(loss.draw(3)[0], TextLoss(counter, tokenizer, pool, seed=1, batch=4).draw(3)[0])
    assert not torch.equal(loss.draw(3)[0], loss.draw(4)[0])
    losses = loss(0)
    assert losses["loss"] > 0
    losses["loss"].backward()
    assert all(p.grad is not None for p in counter.text_encoder.model.layers.parameters())
