# SPDX-License-Identifier: Apache-2.0
"""The joint audio-video forward over the modules of diffusers' `LTX2VideoTransformer3DModel`.

Ours, because diffusers' own cannot hide the reference from the video, ignores STG in 2.0 and cannot mix passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from idlora.core.guidance import Pass
from idlora.core.reference import without_reference
from idlora.core.state import AVState, LatentState, per_sample
from idlora.errors import SettingsError
from idlora.networks.attention import Rotary, keeping_long
from idlora.networks.blocks import (
    BlockOptions,
    Modulation,
    ReferenceText,
    StreamInputs,
    block_forward,
    modulate,
)
from idlora.networks.generations import Generation, generation_of

__all__ = ["JointModel", "JointOptions", "Pass", "Prediction", "TextContext"]

PLAIN = Pass("positive")


@dataclass(frozen=True)
class TextContext:
    """What both streams attend to: features of the connectors (2.0: before the caption projections)."""

    video: Tensor  # (B, S, D_video)
    audio: Tensor  # (B, S, D_audio)
    mask: Tensor | None = None  # (B, S), 1 = text, 0 = padding; None = all text


@dataclass(frozen=True)
class Prediction:
    """Velocity = noise - clean, of both streams; `audio` covers reference + target if the pass has the reference."""

    video: Tensor  # (B, T_video, C)
    audio: Tensor  # (B, T_audio, C)


@dataclass(frozen=True)
class JointOptions:
    """How the reference meets the rest of the network.

    Attributes:
        mask_reference_to_video: no video query sees the reference (on in training and for the miniature; the official
            inference leaves it off).
        reference_text: what reference tokens get from the text: `open` attends; `average` is the official training
            mask, whose rows are all masked, so that softmax gives every text token (padding too) the same weight;
            `block` gives nothing.
    """

    mask_reference_to_video: bool = False
    reference_text: ReferenceText = "open"


class JointModel:
    """A diffusers LTX-2 transformer behind the interface of this package.

    Args:
        transformer: `LTX2VideoTransformer3DModel`; its parameters stay its own.
        options: see `JointOptions`.
        generation: read from the transformer's configuration if not given.
        without_adapter: makes a context in which an injected adapter is switched off (`Adapter.disabled`).
        around_block: makes the context in which a block can run (`BlockStream.at`).

    Attributes:
        recomputed: so many blocks, the first ones, keep only what they are given and compute the rest again in the
            backward pass; the transformer's own gradient checkpointing does so to all.
        keeps_attention: they keep as well what attention to the video's tokens gave, which takes the longest.
    """

    def __init__(
        self,
        transformer: Any,
        options: JointOptions = JointOptions(),
        generation: Generation | None = None,
        without_adapter: Callable[[], AbstractContextManager[None]] = nullcontext,
        around_block: Callable[[Any], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.transformer = transformer
        self.options = options
        self.generation = generation or generation_of(transformer.config)
        self.without_adapter = without_adapter
        self.around_block = around_block
        self.recomputed = 0
        self.keeps_attention = False
        self._block: Callable[..., tuple[Tensor, Tensor]] = block_forward

    def compile_blocks(self, **settings: Any) -> None:
        """Compile the block function once for all blocks; `settings` go to `torch.compile`."""
        self._block = torch.compile(block_forward, **settings)

    def call_blocks(self) -> None:
        """Run each block as the module that it is, so that what is hooked to its call (FSDP) takes place."""
        for block in self.transformer.transformer_blocks:
            block.forward = MethodType(block_forward, block)
        self._block = _called

    def with_options(self, options: JointOptions) -> JointModel:
        """The same network under other options."""
        other = JointModel(self.transformer, options, self.generation, self.without_adapter, self.around_block)
        other._block, other.recomputed, other.keeps_attention = self._block, self.recomputed, self.keeps_attention
        return other

    def velocity(self, state: AVState, sigma: Tensor | float, context: TextContext, run: Pass = PLAIN) -> Prediction:
        """One pass; differentiable.

        Args:
            state: both streams, the audio with its reference in front if it has one.
            sigma: noise level in [0, 1], a number or (B,).
            context: the text of this pass.
            run: which blocks are perturbed and whether the streams are isolated. Text, reference and adapter are the
                caller's here: only `__call__` reads those fields.

        Returns:
            Velocities in the dtype of the state's tokens; inside, the network's own dtype is used.

        Raises:
            SettingsError: a perturbed block that the network does not have.
        """
        net = self.transformer
        self._check_blocks(run.perturbed_blocks)
        video = net.proj_in(state.video.tokens.to(self._dtype))
        audio = net.audio_proj_in(state.audio.tokens.to(self._dtype))
        streams = self._streams(state, per_sample(sigma, state.video.tokens), context)
        plain, perturbed = self._block_options(state, run)
        kept: dict[str, Any] = {"context_fn": keeping_long} if self.keeps_attention else {}
        for index, block in enumerate(net.transformer_blocks):
            chosen = perturbed if index in run.perturbed_blocks else plain
            again = torch.is_grad_enabled() and (net.gradient_checkpointing or index < self.recomputed)
            work = partial(checkpoint, self._block, use_reentrant=False, **kept) if again else self._block
            with self.around_block(block):
                video, audio = work(block, (video, audio), streams, chosen)
        video_layers = (net.scale_shift_table, net.norm_out, net.proj_out)
        audio_layers = (net.audio_scale_shift_table, net.audio_norm_out, net.audio_proj_out)
        return Prediction(
            _output(video, streams[0].modulation, video_layers).to(state.video.tokens.dtype),
            _output(audio, streams[1].modulation, audio_layers).to(state.audio.tokens.dtype),
        )

    def __call__(
        self,
        state: AVState,
        sigma: Tensor | float,
        positive: TextContext,
        negative: TextContext | None,
        plan: Sequence[Pass],
    ) -> dict[str, Prediction]:
        """Run every pass of the plan; predictions come back by the names of the passes."""
        return {run.name: self._planned(state, sigma, _chosen_text(run, positive, negative), run) for run in plan}

    def rotary_tables(self, state: AVState) -> tuple[tuple[Rotary, Rotary], tuple[Rotary, Rotary]]:
        """Cosines and sines (B, heads, T, D_head / 2) for video and for audio: own attention, audio-video attention.

        Audio-video attention rotates by time alone. Positions in bf16 make the coordinates bf16 (see
        `positions.round_positions`).
        """
        net, video, audio = self.transformer, state.video.positions, state.audio.positions
        return (net.rope(video), net.cross_attn_rope(video[:, :1])), (
            net.audio_rope(audio),
            net.cross_attn_audio_rope(audio[:, :1]),
        )

    def _planned(self, state: AVState, sigma: Tensor | float, context: TextContext, run: Pass) -> Prediction:
        seen = state if run.reference else without_reference(state)
        with nullcontext() if run.adapter else self.without_adapter():
            return self.velocity(seen, sigma, context, run)

    def _check_blocks(self, perturbed: tuple[int, ...]) -> None:
        count = len(self.transformer.transformer_blocks)
        wrong = [index for index in perturbed if not 0 <= index < count]
        if wrong:
            raise SettingsError(f"STG block {wrong[0]} does not exist: this model has blocks 0 to {count - 1}")

    @property
    def _dtype(self) -> torch.dtype:
        # The network's own property looks through all of its modules, which costs more than a pass of a small network.
        dtype: torch.dtype = self.transformer.proj_in.weight.dtype
        return dtype

    def _compute_dtype(self, device: torch.device) -> torch.dtype:
        """The dtype attention runs in, whose lowest finite number masks a key."""
        if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self._dtype

    def _block_options(self, state: AVState, run: Pass) -> tuple[BlockOptions, BlockOptions]:
        """Options of an ordinary block and of a perturbed one."""
        reference = state.audio.num_reference
        plain = BlockOptions(
            isolated=run.isolated,
            hidden_keys=reference if self.options.mask_reference_to_video else 0,
            textless=reference if self.options.reference_text == "block" else 0,
        )
        chosen = ("video" in run.perturbed_streams, "audio" in run.perturbed_streams)
        if self.generation.stg == "skip":
            return plain, plain._replace(skip=chosen)
        return plain, plain._replace(value=chosen)

    def _streams(self, state: AVState, sigma: Tensor, context: TextContext) -> tuple[StreamInputs, StreamInputs]:
        contexts, dtype = self._contexts(context), self._compute_dtype(sigma.device)
        video_rotary, audio_rotary = self.rotary_tables(state)
        levels = state.video.level(sigma), state.audio.level(sigma)
        video = StreamInputs(
            modulation=self._modulation(state.video, levels, ""),
            context=contexts[0],
            rotary=video_rotary[0],
            cross_rotary=video_rotary[1],
            text_bias=_key_bias(context.mask, dtype),
            key_bias=_key_bias(state.video.valid, dtype),
        )
        audio = StreamInputs(
            modulation=self._modulation(state.audio, levels[::-1], "audio_"),
            context=contexts[1],
            rotary=audio_rotary[0],
            cross_rotary=audio_rotary[1],
            text_bias=self._audio_text_bias(state.audio, context, dtype),
            key_bias=_key_bias(state.audio.valid, dtype),
        )
        return video, audio

    def _contexts(self, context: TextContext) -> tuple[Tensor, Tensor]:
        net = self.transformer
        video, audio = context.video.to(self._dtype), context.audio.to(self._dtype)
        if not net.config.use_prompt_embeddings:
            return video, audio
        return net.caption_projection(video), net.audio_caption_projection(audio)

    def _audio_text_bias(self, audio: LatentState, context: TextContext, dtype: torch.dtype) -> Tensor | None:
        text = _key_bias(context.mask, dtype)
        if self.options.reference_text != "average" or audio.num_reference == 0:
            return text
        batch, length, _ = audio.tokens.shape
        bias = torch.zeros(batch, length, context.audio.shape[1], dtype=dtype, device=audio.tokens.device)
        if text is not None:
            bias = bias + text
        # Finite, and so large that every score is absorbed: softmax becomes uniform over all text tokens.
        bias[:, : audio.num_reference] = torch.finfo(bias.dtype).min
        return bias

    def _modulation(self, stream: LatentState, levels: tuple[Tensor, Tensor], prefix: str) -> Modulation:
        """Embed the distinct timesteps of a stream; `levels` are its own noise level and the other stream's.

        `prefix` names its modules. From 2.3 on audio-video attention goes by the other stream's level.
        """
        net, dtype = self.transformer, self._dtype
        rows, denoise = _distinct_timesteps(stream, levels[0])
        scale = float(net.config.timestep_scale_multiplier)
        rows, (own, other) = rows * scale, (level[:, None] * scale for level in levels)
        kind, gate = ("audio", "audio_v2a_gate") if prefix else ("video", "video_a2v_gate")
        cross = other if self.generation.cross_timestep else rows
        gate_scale = net.config.cross_attn_timestep_scale_multiplier / net.config.timestep_scale_multiplier
        ada, out = _embed(getattr(net, prefix + "time_embed"), rows, dtype)
        prompt = getattr(net, prefix + "prompt_adaln", None)
        return Modulation(
            ada=ada,
            cross=_embed(getattr(net, f"av_cross_attn_{kind}_scale_shift"), cross, dtype)[0],
            gate=_embed(getattr(net, f"av_cross_attn_{gate}"), cross * gate_scale, dtype)[0],
            out=out,
            prompt=None if prompt is None else _embed(prompt, own, dtype)[0],
            denoise=denoise,
        )


def _called(block: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = block(*inputs)
    return out


def _chosen_text(run: Pass, positive: TextContext, negative: TextContext | None) -> TextContext:
    if not run.negative_text:
        return positive
    if negative is None:
        raise SettingsError(f"the pass {run.name!r} needs a negative text; give one, or set the text guidance to 1")
    return negative


def _distinct_timesteps(stream: LatentState, sigma: Tensor) -> tuple[Tensor, Tensor | None]:
    """Timesteps (B, U) worth embedding, and the choice (B, T, 1) between 0 and sigma if there are just these two."""
    match stream.mask_kind():
        case "ones":
            return sigma[:, None], None
        case "binary":
            return torch.stack([torch.zeros_like(sigma), sigma], dim=1), stream.denoise_mask == 1
        case "graded":
            return stream.timesteps(sigma), None


def _embed(embedder: Any, timesteps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Modulation rows (B, U, N * D) and embedded timesteps (B, U, D) of timesteps (B, U)."""
    rows, embedded = embedder(timesteps.flatten(), batch_size=timesteps.shape[0], hidden_dtype=dtype)
    return rows.unflatten(0, timesteps.shape), embedded.unflatten(0, timesteps.shape)


def _key_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Additive bias (B, 1, S) of a mask (B, S): 0 on real keys, the lowest finite number on padding."""
    if mask is None:
        return None
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask == 0, torch.finfo(dtype).min)
    return bias[:, None]


def _output(x: Tensor, modulation: Modulation, layers: tuple[Tensor, Any, Any]) -> Tensor:
    """Final norm, modulation by the embedded timestep, projection to channels."""
    table, norm, project = layers
    shift, scale = (row + modulation.out for row in table)
    projected: Tensor = project(modulate(norm(x), shift, scale, modulation.denoise))
    return projected
