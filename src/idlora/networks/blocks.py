# SPDX-License-Identifier: Apache-2.0
"""One transformer block over both streams, computed with the modules of diffusers' `LTX2VideoTransformerBlock`.

Shapes: B samples, T tokens, S text tokens, D width of the stream, U modulation rows of a sample. No branch depends on
the values of a tensor, so that `block_forward` compiles.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor]
ReferenceText = Literal["open", "average", "block"]


class Modulation(NamedTuple):
    """Timestep embeddings of one stream, once for every DISTINCT timestep.

    If `denoise` is given, row 0 belongs to timestep 0 and row 1 to sigma, and `denoise` picks one for each token.
    Otherwise there is one row for every token, or one row for all.
    """

    ada: Tensor  # (B, U, 6 D or 9 D) self-attention, feed-forward, text queries
    cross: Tensor  # (B, U or 1, 4 D) audio-video attention, scale and shift
    gate: Tensor  # (B, U or 1, D) audio-video attention, gate
    out: Tensor  # (B, U, D) output layer
    prompt: Tensor | None  # (B, 1, 2 D) text keys and values
    denoise: Tensor | None  # (B, T, 1) bool


class StreamInputs(NamedTuple):
    """What a stream brings along unchanged through all blocks."""

    modulation: Modulation
    context: Tensor  # (B, S, D_context)
    rotary: Rotary
    cross_rotary: Rotary
    text_bias: Tensor | None  # (B, 1 or T, S) added to the text attention's scores
    key_bias: Tensor | None  # (B, 1, T) added to the scores of this stream's tokens as keys; padding


class BlockOptions(NamedTuple):
    """How a block departs from the plain forward."""

    skip: tuple[bool, bool] = (False, False)  # (video, audio): self-attention adds nothing
    value: tuple[bool, bool] = (False, False)  # (video, audio): self-attention passes its values through
    isolated: bool = False
    hidden_keys: int = 0  # leading audio tokens that no video query sees
    textless: int = 0  # leading audio tokens that get nothing from the text


def pick_rows(rows: Tensor, denoise: Tensor | None) -> Tensor:
    """Spread modulation rows (B, U, D) over the tokens; see `Modulation`."""
    if denoise is None or rows.shape[1] == 1:
        return rows
    return torch.where(denoise, rows[:, 1:2], rows[:, 0:1])


def ada_params(table: Tensor, rows: Tensor, denoise: Tensor | None) -> list[Tensor]:
    """Add the block's table (N, D) to rows (B, U, N * D); N tensors (B, T or 1, D) come back."""
    values = table[None, None] + rows.unflatten(-1, table.shape)
    return [pick_rows(value, denoise) for value in values.unbind(2)]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift: x (1 + scale) + shift."""
    return x * (1 + scale) + shift


def value_passthrough(attention: Any, x: Tensor) -> Tensor:
    """Attention whose weights are the identity: the values, then gate and output projection, (B, T, D)."""
    values = attention.to_v(x)
    if attention.to_gate_logits is not None:
        gates = 2 * torch.sigmoid(attention.to_gate_logits(x))
        values = (values.unflatten(2, (attention.heads, -1)) * gates[..., None]).flatten(2)
    projected: Tensor = attention.to_out[0](values)
    return projected


class _Half(NamedTuple):
    """The modules of one stream inside a block, by role."""

    norm1: Any
    attn1: Any
    norm2: Any
    attn2: Any
    norm3: Any
    ff: Any
    table: Tensor
    prompt_table: Tensor | None
    cross_table: Tensor


def _half(block: Any, prefix: str) -> _Half:
    return _Half(
        norm1=getattr(block, prefix + "norm1"),
        attn1=getattr(block, prefix + "attn1"),
        norm2=getattr(block, prefix + "norm2"),
        attn2=getattr(block, prefix + "attn2"),
        norm3=getattr(block, prefix + "norm3"),
        ff=getattr(block, prefix + "ff"),
        table=getattr(block, prefix + "scale_shift_table"),
        prompt_table=getattr(block, prefix + "prompt_scale_shift_table", None),
        cross_table=getattr(block, f"{prefix or 'video_'}a2v_cross_attn_scale_shift_table"),
    )


def _self_attention(half: _Half, x: Tensor, params: list[Tensor], stream: StreamInputs, value: bool) -> Tensor:
    shift, scale, gate = params
    normed = modulate(half.norm1(x), shift, scale)
    if value:
        return x + value_passthrough(half.attn1, normed) * gate
    attended: Tensor = half.attn1(normed, query_rotary_emb=stream.rotary, attention_mask=stream.key_bias)
    return x + attended * gate


def _text_attention(half: _Half, x: Tensor, params: list[Tensor], stream: StreamInputs, textless: int) -> Tensor:
    """Attention to the text; generations from 2.3 on modulate queries (by token) and keys (by sigma)."""
    queries, context = half.norm2(x), stream.context
    if half.prompt_table is not None:
        shift, scale = _prompt_params(half.prompt_table, stream.modulation.prompt)
        context = modulate(context, shift, scale)
        queries = modulate(queries, params[0], params[1])
    attended: Tensor = half.attn2(queries, encoder_hidden_states=context, attention_mask=stream.text_bias)
    if half.prompt_table is not None:
        attended = attended * params[2]
    if textless:
        attended = torch.cat([torch.zeros_like(attended[:, :textless]), attended[:, textless:]], dim=1)
    return x + attended


def _prompt_params(table: Tensor, rows: Tensor | None) -> list[Tensor]:
    if rows is None:  # a generation whose prompt modulation does not depend on the noise
        return list(table[None, None].unbind(2))
    return ada_params(table, rows, None)


def _cross_attention(
    block: Any,
    halves: tuple[_Half, _Half],
    xs: tuple[Tensor, Tensor],
    streams: tuple[StreamInputs, StreamInputs],
    hidden_keys: int,
) -> tuple[Tensor, Tensor]:
    """Audio to video and video to audio, both from the states before either."""
    video, audio = streams
    v_params = _cross_params(halves[0], video)
    a_params = _cross_params(halves[1], audio)
    v, a = block.audio_to_video_norm(xs[0]), block.video_to_audio_norm(xs[1])
    keys = modulate(a, a_params[1], a_params[0])[:, hidden_keys:]
    to_video = block.audio_to_video_attn(
        modulate(v, v_params[1], v_params[0]),
        encoder_hidden_states=keys,
        query_rotary_emb=video.cross_rotary,
        key_rotary_emb=_rows_from(audio.cross_rotary, hidden_keys),
        attention_mask=None if audio.key_bias is None else audio.key_bias[..., hidden_keys:],
    )
    to_audio = block.video_to_audio_attn(
        modulate(a, a_params[3], a_params[2]),
        encoder_hidden_states=modulate(v, v_params[3], v_params[2]),
        query_rotary_emb=audio.cross_rotary,
        key_rotary_emb=video.cross_rotary,
        attention_mask=video.key_bias,
    )
    return xs[0] + v_params[4] * to_video, xs[1] + a_params[4] * to_audio


def _cross_params(half: _Half, stream: StreamInputs) -> list[Tensor]:
    """Scale and shift for audio to video, scale and shift for video to audio, gate."""
    modulation = stream.modulation
    scales = ada_params(half.cross_table[:4], modulation.cross, modulation.denoise)
    return scales + ada_params(half.cross_table[4:], modulation.gate, modulation.denoise)


def _rows_from(rotary: Rotary, start: int) -> Rotary:
    """Rotary tables of the tokens from `start` on; tokens are the last axis but one in both layouts."""
    return rotary[0][..., start:, :], rotary[1][..., start:, :]


def _feed_forward(half: _Half, x: Tensor, params: list[Tensor]) -> Tensor:
    shift, scale, gate = params
    fed: Tensor = half.ff(modulate(half.norm3(x), shift, scale))
    return x + fed * gate


def block_forward(
    block: Any, xs: tuple[Tensor, Tensor], streams: tuple[StreamInputs, StreamInputs], options: BlockOptions
) -> tuple[Tensor, Tensor]:
    """One block: self-attention, text attention, audio-video attention, feed-forward.

    Args:
        block: a `LTX2VideoTransformerBlock`.
        xs: video (B, T_video, D_video) and audio (B, T_audio, D_audio) hidden states.
        streams: what both streams bring along.
        options: departures from the plain forward.
    """
    halves = (_half(block, ""), _half(block, "audio_"))
    params = [ada_params(h.table, s.modulation.ada, s.modulation.denoise) for h, s in zip(halves, streams, strict=True)]
    textless = (0, options.textless)
    after_text = []
    for i, (half, stream) in enumerate(zip(halves, streams, strict=True)):
        x = xs[i]
        if not options.skip[i]:
            x = _self_attention(half, x, params[i][:3], stream, options.value[i])
        after_text.append(_text_attention(half, x, params[i][6:], stream, textless[i]))
    video, audio = after_text
    if not options.isolated:
        video, audio = _cross_attention(block, halves, (video, audio), streams, options.hidden_keys)
    return _feed_forward(halves[0], video, params[0][3:6]), _feed_forward(halves[1], audio, params[1][3:6])
