# SPDX-License-Identifier: Apache-2.0
"""Prompts to what the transformer attends to: tokenizer, Gemma and the LTX-2 connectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from idlora.networks.joint import TextContext


class PromptTokens:
    """Texts to token ids, padded on the left to `max_length`."""

    def __init__(self, tokenizer: Any, max_length: int = 1024) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.tokenizer.padding_side = "left"

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask of texts, (B, max_length) each; longer texts lose their end."""
        encoded = self.tokenizer(
            [prompt.strip() for prompt in prompts],
            padding="max_length",
            max_length=self.max_length,
            truncation=True,
            return_tensors="pt",
        )
        return encoded.input_ids, encoded.attention_mask

    def num_tokens(self, prompt: str) -> int:
        """Length of a text in tokens, before any cut."""
        return len(self.tokenizer(prompt.strip()).input_ids)


class PromptEncoder(PromptTokens):
    """Texts to `TextContext`, differentiable through Gemma and the connectors.

    All hidden states of Gemma (embedding and every layer) go to the connectors, which put learned registers in the
    place of the padding.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, connectors: Any, max_length: int = 1024) -> None:
        super().__init__(tokenizer, max_length)
        self.text_encoder, self.connectors = text_encoder, connectors

    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Features before the connectors: (B, S, hidden, layers + 1)."""
        # The backbone: what a language model's head would say of every token is not wanted.
        output = self.text_encoder.base_model(
            input_ids=ids.to(self.text_encoder.device),
            attention_mask=mask.to(self.text_encoder.device),
            output_hidden_states=True,
        )
        return torch.stack(output.hidden_states, dim=-1)

    def context(self, ids: Tensor, mask: Tensor) -> TextContext:
        """Text context of token ids and mask (B, S)."""
        return self.connected(self.hidden_states(ids, mask), mask)

    def connected(self, features: Tensor, mask: Tensor) -> TextContext:
        """Text context of features (B, S, hidden, layers + 1) and mask (B, S)."""
        video, audio, valid = self.connectors(features, mask.to(features.device), padding_side="left")
        return TextContext(video, audio, valid if bool((valid == 0).any()) else None)

    def __call__(self, prompts: Sequence[str]) -> TextContext:
        """Text context of texts."""
        return self.context(*self.tokens(prompts))
