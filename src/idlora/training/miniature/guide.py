# SPDX-License-Identifier: Apache-2.0
"""Guided attention: while the voice learns to speak, one head of each block is told which word is due (known here).

After Tachibana, Uenoyama and Aihara 2018, who guide towards a diagonal; the world knows the true times of its words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

HEAD = 0
FIRST_BLOCK = 1  # in the first block a query is noise and knows no time


class AttentionGuide:
    """Reads the queries and keys of the audio stream's attention to the text, and scores one head of each block."""

    def __init__(self, transformer: Any) -> None:
        self._queries: list[Tensor] = []
        self._keys: list[Tensor] = []
        for block in transformer.transformer_blocks[FIRST_BLOCK:]:
            block.audio_attn2.norm_q.register_forward_hook(self._reader(self._queries))
            block.audio_attn2.norm_k.register_forward_hook(self._reader(self._keys))
        self._heads: int = transformer.config.audio_num_attention_heads

    @staticmethod
    def _reader(into: list[Tensor]) -> Any:
        def read(_module: Any, _inputs: Any, output: Tensor) -> None:
            into.append(output)

        return read

    def loss(self, due: Tensor, words: Tensor) -> Tensor:
        """Mean of -log(attention to the tokens of the word that is due), over the blocks of the last forward pass.

        Args:
            due: ordinal of the word that each audio token is part of (B, T), 0 = none.
            words: ordinal of the word that each text token is part of (B, S), 0 = none, in the keys' order.
        """
        losses = [
            attention_loss(self._head(query), self._head(key), due, words)
            for query, key in zip(self._queries, self._keys, strict=True)
        ]
        self._queries.clear()
        self._keys.clear()
        mean: Tensor = torch.stack(losses).mean()
        return mean

    def _head(self, vectors: Tensor) -> Tensor:
        head: Tensor = vectors.unflatten(2, (self._heads, -1))[:, :, HEAD].float()
        return head


def attention_loss(query: Tensor, key: Tensor, due: Tensor, words: Tensor) -> Tensor:
    """-log of the attention (B, T, S) of queries (B, T, D) to the keys (B, S, D) whose word is due, over such queries.

    Zero where no query has such a key, as when the prompt was dropped.
    """
    scores = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).log_softmax(-1)
    wanted = (due[:, :, None] == words[:, None]) & (due > 0)[:, :, None]  # (B, T, S)
    asked = wanted.any(-1)
    found = scores.masked_fill(~wanted, -torch.inf).logsumexp(-1)
    total: Tensor = -found.masked_fill(~asked, 0.0).sum()
    return total / asked.sum().clamp(min=1)
