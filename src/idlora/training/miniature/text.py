# SPDX-License-Identifier: Apache-2.0
"""Training of the miniature's text encoder: at each token, tell which spoken word it belongs to.

The real Gemma can count; a fresh one learns it within minutes when it is asked to, and hardly at all from the losses
of a diffusion model, which then never learns when to say what.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idlora.training.miniature.dataset import Pool
from idlora.training.miniature.latents import ids_and_mask
from idlora.training.miniature.loop import Losses

MAX_WORDS = 7


class WordCounter(nn.Module):
    """A text encoder with a linear reading of its last hidden state: 0 = not spoken, 1 = first word, and so on."""

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.reading = nn.Linear(text_encoder.config.hidden_size, MAX_WORDS + 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores (B, S, MAX_WORDS + 1) of token ids and mask (B, S)."""
        hidden = self.text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        scores: Tensor = self.reading(hidden[-1])
        return scores


def spoken_words(ids: Tensor, tokenizer: Any) -> Tensor:
    """Ordinals (B, S) of the spoken words that tokens belong to, counted from 1 and at most `MAX_WORDS`; else 0."""
    speech, sounds = tokenizer.convert_tokens_to_ids(["[SPEECH]", "[SOUNDS]"])
    begun, ended = (ids == speech).cumsum(1) > 0, (ids == sounds).cumsum(1) > 0
    spoken = begun & ~ended & (ids != speech)
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    starts = torch.tensor([piece.startswith("\u0120") and len(piece) > 1 for piece in pieces])
    ordinals = (starts[ids] & spoken).cumsum(1).clamp(max=MAX_WORDS)
    return torch.where(spoken, ordinals, 0)


class TextLoss:
    """Cross-entropy of the ordinals over the captions of clips."""

    def __init__(self, counter: WordCounter, tokenizer: Any, pool: Pool, seed: int = 0, batch: int = 64) -> None:
        self.counter, self.tokenizer, self.pool, self.seed, self.size = counter, tokenizer, pool, seed, batch

    def __call__(self, step: int) -> Losses:
        """Losses of a step."""
        ids, mask = self.draw(step)
        device = self.counter.reading.weight.device
        labels = spoken_words(ids, self.tokenizer).to(device)
        scores = self.counter(ids.to(device), mask.to(device))
        real = mask.to(device) > 0
        told = scores.argmax(-1)[real & (labels > 0)] == labels[real & (labels > 0)]
        return {"loss": F.cross_entropy(scores[real], labels[real]), "told": told.float().mean()}

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Token ids and mask (B, S) of a step."""
        rng = np.random.default_rng([self.seed, step])
        rows = self.pool.batch(rng.integers(len(self.pool), size=self.size))  # (B, captions, S)
        return ids_and_mask(
            rows[torch.arange(len(rows)), torch.from_numpy(rng.integers(rows.shape[1], size=len(rows)))]
        )
