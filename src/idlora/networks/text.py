# SPDX-License-Identifier: Apache-2.0
"""Prompts to what the transformer attends to: tokenizer, Gemma and the LTX-2 connectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idlora.networks.joint import TextContext
from idlora.networks.kernels import proven_kernels


@dataclass(frozen=True)
class TextFeatures:
    """What the connectors make of Gemma's hidden states before they attend: what is worth storing of a caption."""

    video: Tensor  # (B, S, D_video)
    audio: Tensor  # (B, S, D_audio); of 2.0 the same tensor


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

    Args:
        tokenizer, text_encoder, connectors: the networks; those whose methods are not called may be None.
        max_length: prompts are padded to it.
        device: where the text encoder works; by default where its first weights are.
    """

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        connectors: Any,
        max_length: int = 1024,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.text_encoder, self.connectors, self.device = text_encoder, connectors, device

    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Features before the connectors: (B, S, hidden, layers + 1)."""
        # The backbone: what a language model's head would say of every token is not wanted.
        device = self.device or self.text_encoder.device
        output = self.text_encoder.base_model(
            input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True
        )
        return torch.stack(output.hidden_states, dim=-1)

    def context(self, ids: Tensor, mask: Tensor) -> TextContext:
        """Text context of token ids and mask (B, S)."""
        return self.connected(self.hidden_states(ids, mask), mask)

    def features(self, hidden: Tensor, mask: Tensor) -> TextFeatures:
        """Features of hidden states (B, S, hidden, layers + 1) and mask (B, S), padding in front.

        One projection of the states normalised by layer (2.0), or one for each stream, normalised by token (from 2.3).
        """
        from diffusers.pipelines.ltx2.connectors import per_layer_masked_mean_norm, per_token_rms_norm

        net, mask = self.connectors, mask.to(hidden.device)
        if not net.config.per_modality_projections:
            lengths = mask.sum(-1)
            normed = per_layer_masked_mean_norm(hidden, lengths, hidden.device, padding_side="left")
            projected = net.text_proj_in(normed)
            return TextFeatures(projected, projected)
        normed = per_token_rms_norm(hidden).flatten(2, 3) * mask[..., None]
        widths = (net.config.video_hidden_dim, net.config.audio_hidden_dim)
        scales = [math.sqrt(width / net.config.caption_channels) for width in widths]
        return TextFeatures(net.video_text_proj_in(normed * scales[0]), net.audio_text_proj_in(normed * scales[1]))

    def attended(self, features: TextFeatures, mask: Tensor) -> TextContext:
        """Text context of features and mask (B, S), padding in front; what the features of padding are is no matter."""
        dtype = self.connectors.dtype
        bias = (mask.to(features.video.device, dtype)[:, None, None] - 1) * torch.finfo(dtype).max
        with proven_kernels(features.video.device):
            video, left = self.connectors.video_connector(features.video.to(dtype), bias)
            audio, _ = self.connectors.audio_connector(features.audio.to(dtype), bias)
        valid = (left < 1e-6).to(torch.int64).reshape(video.shape[:2])
        return TextContext(video * valid[..., None], audio, valid if bool((valid == 0).any()) else None)

    def connected(self, hidden: Tensor, mask: Tensor) -> TextContext:
        """Text context of hidden states (B, S, hidden, layers + 1) and mask (B, S)."""
        return self.attended(self.features(hidden, mask), mask.to(hidden.device))

    def __call__(self, prompts: Sequence[str]) -> TextContext:
        """Text context of texts."""
        return self.context(*self.tokens(prompts))
