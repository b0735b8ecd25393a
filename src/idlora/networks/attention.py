# SPDX-License-Identifier: Apache-2.0
"""Attention in two halves, so that keys and values can serve many queries; modules and kernels are diffusers' own."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_ltx2 import apply_interleaved_rotary_emb, apply_split_rotary_emb
from torch import Tensor

Rotary = tuple[Tensor, Tensor]
KeysValues = tuple[Tensor, Tensor]  # both (B, S, D)


def keys_values(attention: Any, context: Tensor, rotary: Rotary | None = None) -> KeysValues:
    """Keys, normed and rotated, and values of a `LTX2Attention` for a context (B, S, D_context)."""
    return _rotated(attention, attention.norm_k(attention.to_k(context)), rotary), attention.to_v(context)


def attend(
    attention: Any, x: Tensor, memory: KeysValues, bias: Tensor | None = None, rotary: Rotary | None = None
) -> Tensor:
    """What a `LTX2Attention` makes of queries x (B, T, D) with keys and values that are there already, (B, T, D).

    `bias` (B, 1 or T, S) is added to the scores; `rotary` turns the queries.
    """
    query = _rotated(attention, attention.norm_q(attention.to_q(x)), rotary)
    query, key, value = (each.unflatten(2, (attention.heads, -1)) for each in (query, *memory))
    processor = attention.processor
    attended = dispatch_attention_fn(
        query,
        key,
        value,
        attn_mask=None if bias is None else bias[:, None],
        backend=processor._attention_backend,
        parallel_config=processor._parallel_config,
    )
    return projected(attention, x, attended.to(query.dtype))


def projected(attention: Any, x: Tensor, attended: Tensor) -> Tensor:
    """Gate by the queries' input x, if the generation has gates, and output projection of heads (B, T, H, D_head)."""
    if attention.to_gate_logits is not None:
        attended = attended * (2 * torch.sigmoid(attention.to_gate_logits(x)))[..., None]
    out: Tensor = attention.to_out[0](attended.flatten(2))
    return out


def _rotated(attention: Any, x: Tensor, rotary: Rotary | None) -> Tensor:
    if rotary is None:
        return x
    split = attention.rope_type == "split"
    rotated: Tensor = (apply_split_rotary_emb if split else apply_interleaved_rotary_emb)(x, rotary)
    return rotated
