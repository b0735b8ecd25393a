# SPDX-License-Identifier: Apache-2.0
"""One transformer block over both streams, computed with the modules of diffusers' `LTX2VideoTransformerBlock`.

Shapes: B samples, T tokens, S text tokens, D width of the stream, U modulation rows of a sample. No branch depends on
the values of a tensor, so that `block_forward` compiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from idlora.networks.attention import Rotary, attend
from idlora.networks.lean import Residual, gated_sum, is_lean, normed

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


def ada_params(table: Tensor, rows: Tensor) -> list[Tensor]:
    """Add the block's table (N, D) to rows (B, U, N * D); N tensors (B, U, D) come back."""
    return list((table[None, None] + rows.unflatten(-1, table.shape)).unbind(2))


def modulate(x: Tensor, shift: Tensor, scale: Tensor, denoise: Tensor | None = None) -> Tensor:
    """Scale and shift by rows (B, U, D): x (1 + scale) + shift."""
    return x * pick_rows(1 + scale, denoise) + pick_rows(shift, denoise)


def _modulated(norm: Any, x: Tensor, rows: Sequence[Tensor], denoise: Tensor | None) -> Tensor:
    """Norm, then scale and shift by rows (shift, scale) of (B, U, D)."""

    def then(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return modulate(x, shift, scale, denoise)

    def back(gradient: Tensor, _shift: Tensor, scale: Tensor) -> Tensor:
        return gradient * pick_rows(1 + scale, denoise)

    return normed(norm, x, rows, then, back)


def _gated(x: Tensor, added: Tensor, gate: Tensor, denoise: Tensor | None) -> Tensor:
    """The residual: x + added * gate, a row (B, U, D)."""
    return gated_sum(x, added, gate, lambda rows: pick_rows(rows, denoise))


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


def _self_attention(
    half: _Half, x: Tensor, params: list[Tensor], stream: StreamInputs, value: bool, long: bool
) -> Tensor:
    shift, scale, gate = params
    denoise = stream.modulation.denoise
    normed = _modulated(half.norm1, x, (shift, scale), denoise)
    if value:
        return _gated(x, value_passthrough(half.attn1, normed), gate, denoise)
    attended = attend(half.attn1, normed, normed, (stream.rotary, stream.rotary), stream.key_bias, long)
    return _gated(x, attended, gate, denoise)


def _text_attention(half: _Half, x: Tensor, params: list[Tensor], stream: StreamInputs, textless: int) -> Tensor:
    """Attention to the text; generations from 2.3 on modulate queries (by token) and keys (by sigma)."""
    context, denoise = stream.context, stream.modulation.denoise
    if half.prompt_table is None:
        queries = half.norm2(x)
    else:
        shift, scale = _prompt_params(half.prompt_table, stream.modulation.prompt)
        context = modulate(context, shift, scale)
        queries = _modulated(half.norm2, x, params[:2], denoise)
    attended = attend(half.attn2, queries, context, None, stream.text_bias)
    if textless:
        attended = torch.cat([torch.zeros_like(attended[:, :textless]), attended[:, textless:]], dim=1)
    return x + attended if half.prompt_table is None else _gated(x, attended, params[2], denoise)


def _prompt_params(table: Tensor, rows: Tensor | None) -> list[Tensor]:
    if rows is None:  # a generation whose prompt modulation does not depend on the noise
        return list(table[None, None].unbind(2))
    return ada_params(table, rows)


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
    v_norm, a_norm = block.audio_to_video_norm, block.video_to_audio_norm
    v_denoise, a_denoise = video.modulation.denoise, audio.modulation.denoise
    keys = _modulated(a_norm, xs[1], a_params[1::-1], a_denoise)[:, hidden_keys:]
    to_video = attend(
        block.audio_to_video_attn,
        _modulated(v_norm, xs[0], v_params[1::-1], v_denoise),
        keys,
        (video.cross_rotary, _rows_from(audio.cross_rotary, hidden_keys)),
        None if audio.key_bias is None else audio.key_bias[..., hidden_keys:],
    )
    to_audio = attend(
        block.video_to_audio_attn,
        _modulated(a_norm, xs[1], a_params[3:1:-1], a_denoise),
        _modulated(v_norm, xs[0], v_params[3:1:-1], v_denoise),
        (audio.cross_rotary, video.cross_rotary),
        video.key_bias,
        long=True,
    )
    return _gated(xs[0], to_video, v_params[4], v_denoise), _gated(xs[1], to_audio, a_params[4], a_denoise)


def _cross_params(half: _Half, stream: StreamInputs) -> list[Tensor]:
    """Scale and shift for audio to video, scale and shift for video to audio, gate."""
    modulation = stream.modulation
    scales = ada_params(half.cross_table[:4], modulation.cross)
    return scales + ada_params(half.cross_table[4:], modulation.gate)


def _rows_from(rotary: Rotary, start: int) -> Rotary:
    """Rotary tables of the tokens from `start` on; tokens are the last axis but one in both layouts."""
    return rotary[0][..., start:, :], rotary[1][..., start:, :]


def _feed_forward(half: _Half, x: Tensor, params: Sequence[Tensor], denoise: Tensor | None) -> Tensor:
    *rest, last = half.ff.net

    def hidden(x: Tensor, denoise: Tensor | None, shift: Tensor, scale: Tensor, _gate: Tensor) -> Tensor:
        x = _modulated(half.norm3, x, (shift, scale), denoise)
        for layer in rest:
            x = layer(x)
        return x

    def gate(denoise: Tensor | None, _shift: Tensor, _scale: Tensor, gate: Tensor) -> Tensor:
        return pick_rows(gate, denoise)

    rows_by_token = denoise is None and params[0].shape[1] > 1
    step = Residual(hidden, last, gate, (True, rows_by_token, rows_by_token, rows_by_token))
    return (step.lean if is_lean(x, half.norm3, half.ff, *params) else step)(x, denoise, *params)


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
    params = [ada_params(half.table, each.modulation.ada) for half, each in zip(halves, streams, strict=True)]
    textless = (0, options.textless)
    after_text = []
    for i, (half, stream) in enumerate(zip(halves, streams, strict=True)):
        x = xs[i]
        if not options.skip[i]:
            x = _self_attention(half, x, params[i][:3], stream, options.value[i], long=i == 0)
        after_text.append(_text_attention(half, x, params[i][6:], stream, textless[i]))
    video, audio = after_text
    if not options.isolated:
        video, audio = _cross_attention(block, halves, (video, audio), streams, options.hidden_keys)
    # The video's last: what is last need not be computed again (`Residual.lean`).
    audio = _feed_forward(halves[1], audio, params[1][3:6], streams[1].modulation.denoise)
    return _feed_forward(halves[0], video, params[0][3:6], streams[0].modulation.denoise), audio
