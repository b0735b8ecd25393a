# SPDX-License-Identifier: Apache-2.0
"""One transformer block over both streams, computed with the modules of diffusers' `LTX2VideoTransformerBlock`.

Shapes: B samples, T tokens, S text tokens, D width of the stream, U modulation rows of a sample. No branch depends on
the values of a tensor, so that `block_forward` compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from idlora.networks.attention import KeysValues, Rotary, attend, joined, keys_values, projected
from idlora.networks.lean import Residual, gated_sum, is_lean, normed

Once = Callable[..., Any]  # (function, *its arguments): may give what it gave for the same arguments before
ReferenceText = Literal["open", "average", "block"]
ReferenceAttention = Literal["joint", "alone"]


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


class Rows(NamedTuple):
    """Modulation rows of a block, by their number."""

    each: list[Tensor]  # (B, U, D), or (B, T or 1, D) if they are spread over the tokens
    denoise: Tensor | None  # as in `Modulation`; None if they are spread


class StreamInputs(NamedTuple):
    """What a stream brings along unchanged through all blocks."""

    modulation: Modulation
    context: Tensor  # (B, S, D_context)
    rotary: Rotary
    cross_rotary: Rotary
    text_bias: Tensor | None  # (B, 1 or T, S) added to the text attention's scores
    key_bias: Tensor | None  # (B, 1, T) added to the scores of this stream's tokens as keys; padding
    text: KeysValues | None = None  # of the text, in one block; None = the block computes them
    before: KeysValues | None = None  # of a reference that hears itself alone, in one block
    before_bias: Tensor | None = None  # (B, 1, T_reference), as `key_bias`


Streams = tuple[StreamInputs, ...]  # video, audio; and a reference that hears itself alone, if it is computed too
Pair = tuple[Tensor, ...]  # hidden states, likewise


class BlockOptions(NamedTuple):
    """How a block departs from the plain forward."""

    skip: tuple[bool, bool] = (False, False)  # (video, audio): self-attention adds nothing
    value: tuple[bool, bool] = (False, False)  # (video, audio): self-attention passes its values through
    isolated: bool = False
    hidden_keys: int = 0  # leading audio tokens that no video query sees
    textless: int = 0  # leading audio tokens that get nothing from the text
    audio_only: bool = False  # the audio hears the video that it is given; the video does not go on


def pick_rows(rows: Tensor, denoise: Tensor | None) -> Tensor:
    """Spread modulation rows (B, U, D) over the tokens; see `Modulation`."""
    if denoise is None or rows.shape[1] == 1:
        return rows
    return torch.where(denoise, rows[:, 1:2], rows[:, 0:1])


def ada_params(table: Tensor, rows: Tensor, denoise: Tensor | None) -> Rows:
    """Add the block's table (N, D) to rows (B, U, N * D); N rows come back.

    They are spread over the tokens here, once for all who use them; in training where they are used, since the backward
    pass would keep them.
    """
    each = (table[None, None] + rows.unflatten(-1, table.shape)).unbind(2)
    if torch.is_grad_enabled():
        return Rows(list(each), denoise)
    return Rows([pick_rows(row, denoise) for row in each], None)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, denoise: Tensor | None = None) -> Tensor:
    """Scale and shift by rows (B, U, D): x (1 + scale) + shift."""
    return torch.addcmul(pick_rows(shift, denoise), x, pick_rows(1 + scale, denoise))


class _Normed(NamedTuple):
    """A norm of hidden states, computed already unless a gradient is wanted."""

    norm: Any
    x: Tensor
    made: Tensor | None


def _normed(norm: Any, x: Tensor) -> _Normed:
    return _Normed(norm, x, None if is_lean(x, norm) else norm(x))


def _modulated(source: _Normed, rows: Rows, shift: int, scale: int) -> Tensor:
    """Scaled and shifted by the rows of these numbers."""
    pair, denoise = (rows.each[shift], rows.each[scale]), rows.denoise
    if source.made is not None:
        return modulate(source.made, *pair, denoise)

    def then(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return modulate(x, shift, scale, denoise)

    def back(gradient: Tensor, _shift: Tensor, scale: Tensor) -> Tensor:
        return gradient * pick_rows(1 + scale, denoise)

    return normed(source.norm, source.x, pair, then, back)


def _gated(x: Tensor, added: Tensor, rows: Rows, gate: int) -> Tensor:
    """The residual: x + added * gate, the row of that number."""
    return gated_sum(x, added, rows.each[gate], lambda row: pick_rows(row, rows.denoise))


def value_passthrough(attention: Any, x: Tensor) -> Tensor:
    """Attention whose weights are the identity: the values, then gate and output projection, (B, T, D)."""
    return projected(attention, x, attention.to_v(x).unflatten(2, (attention.heads, -1)))


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


def _self_attention(half: _Half, x: Tensor, rows: Rows, stream: StreamInputs, value: bool, long: bool) -> Tensor:
    normed = _modulated(_normed(half.norm1, x), rows, 0, 1)
    if value:
        return _gated(x, value_passthrough(half.attn1, normed), rows, 2)
    memory = keys_values(half.attn1, normed, stream.rotary)
    bias = stream.key_bias
    if stream.before is not None:
        bias = _joined_bias(stream.before_bias, bias, stream.before.key.shape[1], memory.key.shape[1])
        memory = joined(stream.before, memory)
    return _gated(x, attend(half.attn1, normed, memory, bias, stream.rotary, long), rows, 2)


def _joined_bias(first: Tensor | None, second: Tensor | None, *lengths: int) -> Tensor | None:
    """Biases (B, 1, S) of two parts of the keys as one; a part without one has zeros."""
    known = first if second is None else second
    if known is None:
        return None
    parts = zip((first, second), lengths, strict=True)
    return torch.cat([known.new_zeros(*known.shape[:2], n) if each is None else each for each, n in parts], dim=-1)


def reference_forward(block: Any, x: Tensor, stream: StreamInputs) -> tuple[Tensor, KeysValues]:
    """One block of a reference that hears nothing but itself, and what the target hears of it.

    The target attends to it in the audio's self-attention; no text, no video and no noise level comes in, so that it is
    the same in every step and pass.

    Args:
        block: a `LTX2VideoTransformerBlock`.
        x: (B, T_reference, D_audio) hidden states.
        stream: what the reference brings along.
    """
    half = _half(block, "audio_")
    rows = ada_params(half.table, stream.modulation.ada, stream.modulation.denoise)
    normed = _modulated(_normed(half.norm1, x), rows, 0, 1)
    memory = keys_values(half.attn1, normed, stream.rotary)
    x = _gated(x, attend(half.attn1, normed, memory, stream.key_bias, stream.rotary), rows, 2)
    return _feed_forward(half, x, rows), memory


def _text_attention(half: _Half, x: Tensor, rows: Rows, stream: StreamInputs, textless: int) -> Tensor:
    """Attention to the text; generations from 2.3 on modulate queries (by token) and keys (by sigma)."""
    modulated = half.prompt_table is not None
    queries = _modulated(_normed(half.norm2, x), rows, 6, 7) if modulated else half.norm2(x)
    memory = stream.text or _text_memory(half, stream.context, stream.modulation.prompt)
    attended = attend(half.attn2, queries, memory, stream.text_bias)
    if textless:
        attended = torch.cat([torch.zeros_like(attended[:, :textless]), attended[:, textless:]], dim=1)
    return _gated(x, attended, rows, 8) if modulated else x + attended


def _text_memory(half: _Half, context: Tensor, prompt: Tensor | None) -> KeysValues:
    if half.prompt_table is not None:
        shift, scale = _prompt_params(half.prompt_table, prompt)
        context = modulate(context, shift, scale)
    return keys_values(half.attn2, context)


def text_memory(block: Any, prefix: str, context: Tensor, prompt: Tensor | None) -> KeysValues:
    """Keys and values of the text (B, S, D_context) for the stream whose modules begin with `prefix`."""
    return _text_memory(_half(block, prefix), context, prompt)


def _prompt_params(table: Tensor, rows: Tensor | None) -> list[Tensor]:
    if rows is None:  # a generation whose prompt modulation does not depend on the noise
        return list(table[None, None].unbind(2))
    return ada_params(table, rows, None).each


def _to_video(
    block: Any, sources: tuple[_Normed, _Normed], rows: tuple[Rows, Rows], streams: Streams, hidden: int
) -> Tensor:
    """What the video hears."""
    video, audio = streams
    attention = block.audio_to_video_attn
    keys = _modulated(sources[1], rows[1], 1, 0)[:, hidden:]
    memory = keys_values(attention, keys, rows_from(audio.cross_rotary, hidden))
    bias = None if audio.key_bias is None else audio.key_bias[..., hidden:]
    return attend(attention, _modulated(sources[0], rows[0], 1, 0), memory, bias, video.cross_rotary)


def _to_audio(block: Any, source: _Normed, rows: Rows, memory: KeysValues, streams: Streams) -> Tensor:
    """What the audio sees."""
    video, audio = streams
    queries = _modulated(source, rows, 3, 2)
    return attend(block.video_to_audio_attn, queries, memory, video.key_bias, audio.cross_rotary, long=True)


def _seen(block: Any, source: _Normed, rows: Rows, rotary: Rotary) -> KeysValues:
    """Keys and values of the video for the audio."""
    return keys_values(block.video_to_audio_attn, _modulated(source, rows, 3, 2), rotary)


def _cross_attention(
    block: Any, halves: tuple[_Half, _Half], xs: Pair, streams: Streams, options: BlockOptions, once: Once
) -> Pair:
    """Audio to video and video to audio, both from the states before either."""
    v_rows, a_rows = (
        once(_cross_params, half.cross_table, m.cross, m.gate, m.denoise)
        for half, m in ((half, stream.modulation) for half, stream in zip(halves, streams, strict=True))
    )
    v, a = once(_normed, block.audio_to_video_norm, xs[0]), _normed(block.video_to_audio_norm, xs[1])
    seen = once(_seen, block, v, v_rows, streams[0].cross_rotary)
    audio = _gated(xs[1], _to_audio(block, a, a_rows, seen, streams), a_rows, 4)
    if options.audio_only:
        return xs[0], audio
    heard = _to_video(block, (v, a), (v_rows, a_rows), streams, options.hidden_keys)
    return _gated(xs[0], heard, v_rows, 4), audio


def _cross_params(table: Tensor, cross: Tensor, gate: Tensor, denoise: Tensor | None) -> Rows:
    """Scale and shift for audio to video, scale and shift for video to audio, gate."""
    scales, gates = ada_params(table[:4], cross, denoise), ada_params(table[4:], gate, denoise)
    return Rows(scales.each + gates.each, scales.denoise)


def rows_from(rotary: Rotary, start: int) -> Rotary:
    """Rotary tables of the tokens from `start` on; tokens are the last axis but one in both layouts."""
    return rotary[0][..., start:, :], rotary[1][..., start:, :]


def _feed_forward(half: _Half, x: Tensor, rows: Rows) -> Tensor:
    *rest, last = half.ff.net
    params = rows.each[3:6]

    def hidden(x: Tensor, denoise: Tensor | None, shift: Tensor, scale: Tensor, _gate: Tensor) -> Tensor:
        x = _modulated(_normed(half.norm3, x), Rows([shift, scale], denoise), 0, 1)
        for layer in rest:
            x = layer(x)
        return x

    def gate(denoise: Tensor | None, _shift: Tensor, _scale: Tensor, gate: Tensor) -> Tensor:
        return pick_rows(gate, denoise)

    by_token = rows.denoise is None and params[0].shape[1] > 1
    step = Residual(hidden, last, gate, (True, by_token, by_token, by_token))
    return (step.lean if is_lean(x, half.norm3, half.ff, *params) else step)(x, rows.denoise, *params)


def _plainly(function: Callable[..., Any], *inputs: Any) -> Any:
    return function(*inputs)


def block_forward(block: Any, xs: Pair, streams: Streams, options: BlockOptions, once: Once = _plainly) -> Pair:
    """One block: self-attention, text attention, audio-video attention, feed-forward.

    Args:
        block: a `LTX2VideoTransformerBlock`.
        xs: video (B, T_video, D_video) and audio (B, T_audio, D_audio) hidden states; and those of a reference that
            hears itself alone, if it is computed beside them.
        streams: what each of them brings along.
        options: departures from the plain forward.
        once: shares what several calls on the same block have in common.
    """
    if len(xs) == 3:
        after, before = reference_forward(block, xs[2], streams[2])
        hearing = streams[1]._replace(before=before, before_bias=streams[2].key_bias)
        return (*block_forward(block, xs[:2], (streams[0], hearing), options, once), after)
    halves = once(_half, block, ""), once(_half, block, "audio_")
    rows = [
        once(ada_params, half.table, stream.modulation.ada, stream.modulation.denoise)
        for half, stream in zip(halves, streams, strict=True)
    ]
    textless = (0, options.textless)
    after_text = []
    for i, (half, stream) in enumerate(zip(halves, streams, strict=True)):
        x = xs[i]
        if not options.skip[i]:
            x = once(_self_attention, half, x, rows[i], stream, options.value[i], i == 0)
        after_text.append(once(_text_attention, half, x, rows[i], stream, textless[i]))
    video, audio = after_text
    if not options.isolated:
        video, audio = _cross_attention(block, halves, (video, audio), streams, options, once)
    # The video's last: what is last need not be computed again (`Residual.lean`).
    audio = _feed_forward(halves[1], audio, rows[1])
    return (xs[0] if options.audio_only else _feed_forward(halves[0], video, rows[0])), audio


def called_block(block: Any, *inputs: Any) -> Pair:
    """The block as the module that it is, whose forward is `block_forward`."""
    out: Pair = block(*inputs)
    return out
