# SPDX-License-Identifier: Apache-2.0
"""The joint audio-video forward over the modules of diffusers' `LTX2VideoTransformer3DModel`.

Ours, because diffusers' own cannot hide the reference from the video, ignores STG in 2.0 and cannot mix passes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from idlora.core.guidance import Pass
from idlora.core.reference import on_target, reference_part, without_reference
from idlora.core.state import AVState, LatentState, per_sample
from idlora.errors import SettingsError
from idlora.networks.attention import Rotary, keeping_long
from idlora.networks.autocast import autocast_dtype
from idlora.networks.blocks import (
    BlockOptions,
    Modulation,
    Once,
    Pair,
    ReferenceAttention,
    ReferenceText,
    StreamInputs,
    Streams,
    block_forward,
    called_block,
    modulate,
    rows_from,
)
from idlora.networks.compiling import compiled_block
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


class Layout(NamedTuple):
    """What a stream's tokens bring along whatever their noise and the text: where they are and which are padding."""

    rotary: Rotary
    cross_rotary: Rotary
    key_bias: Tensor | None  # (B, 1, T)

    def rows_from(self, start: int) -> Layout:
        """The layout of the tokens from `start` on."""
        bias = None if self.key_bias is None else self.key_bias[..., start:]
        return Layout(rows_from(self.rotary, start), rows_from(self.cross_rotary, start), bias)


@dataclass(frozen=True)
class JointOptions:
    """How the reference meets the rest of the network.

    Attributes:
        mask_reference_to_video: no video query sees the reference (on in training and for the miniature; the official
            inference leaves it off).
        reference_text: what reference tokens get from the text: `open` attends; `average` is the official training
            mask, whose rows are all masked, so that softmax gives every text token (padding too) the same weight;
            `block` gives nothing.
        reference_attention: `alone`: the reference hears nothing but itself, neither target, text nor video, and no
            video query sees it, whatever the options above. Then it is the same in every step and every pass, and is
            computed once a generation. It takes an adapter that was trained so.
    """

    mask_reference_to_video: bool = False
    reference_text: ReferenceText = "open"
    reference_attention: ReferenceAttention = "joint"

    @classmethod
    def of(cls, said: Any) -> Self:
        """Those that the settings of a clip or the options of a training name, by the same attributes."""
        return cls(said.mask_reference_to_video, said.reference_text, said.reference_attention)


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
        self._block: Callable[..., Pair] = block_forward
        self._compiled = False

    def compile_blocks(self, **settings: Any) -> None:
        """Compile the block function once for all blocks, when they first run; `settings` go to `torch.compile`.

        Running them raises SettingsError where there is no compiler.
        """
        self._block, self._compiled = compiled_block(settings), True

    def call_blocks(self) -> None:
        """Run each block as the module that it is, so that what is hooked to its call (FSDP) takes place."""
        for block in self.transformer.transformer_blocks:
            block.forward = MethodType(block_forward, block)
        self._block = called_block

    def with_options(self, options: JointOptions) -> JointModel:
        """The same network under other options."""
        other = JointModel(self.transformer, options, self.generation, self.without_adapter, self.around_block)
        other._block, other._compiled = self._block, self._compiled
        other.recomputed, other.keeps_attention = self.recomputed, self.keeps_attention
        return other

    def velocity(self, state: AVState, sigma: Tensor | float, context: TextContext, run: Pass = PLAIN) -> Prediction:
        """One pass; differentiable.

        Args:
            state: both streams, the audio with its reference in front if it has one.
            sigma: noise level in [0, 1], a number or (B,).
            context: the text of this pass.
            run: which blocks are perturbed and whether the streams are isolated. Text, reference and adapter are the
                caller's here, and both streams are computed: only the executor reads those fields.

        Returns:
            Velocities in the dtype of the state's tokens; inside, the network's own dtype is used.

        Raises:
            SettingsError: a perturbed block that the network does not have.
        """
        net = self.transformer
        self.check_blocks(run)
        xs, streams = self._inputs(state, per_sample(sigma, state.video.tokens), context)
        kept: dict[str, Any] = {"context_fn": keeping_long} if self.keeps_attention else {}
        for index, block in enumerate(net.transformer_blocks):
            again = torch.is_grad_enabled() and (net.gradient_checkpointing or index < self.recomputed)
            work = partial(checkpoint, self._block, use_reentrant=False, **kept) if again else self._block
            with self.around_block(block):
                xs = work(block, xs, streams, self.block_options(state.audio, run, index))
        return self.leave(state, xs, streams)

    def is_apart(self, state: AVState) -> bool:
        """Whether there is a reference that hears itself alone."""
        return self.options.reference_attention == "alone" and state.audio.num_reference > 0

    def enter_reference(self, state: AVState) -> Tensor:
        """Hidden states (B, T_reference, D) of the reference alone, before the first block."""
        return self.enter(reference_part(state.audio), "audio_")

    def reference_inputs(self, state: AVState) -> StreamInputs:
        """What the reference alone brings along; no text."""
        reference = reference_part(state.audio)
        level = reference.level(0.0)
        modulation = self.modulation(reference, level, level, "audio_")
        layout = self._layout(reference, self._audio_rotary(reference))
        return inputs_of(modulation, None, reference.tokens[:, :0], layout, None)

    def run_block(self, block: Any, xs: Pair, streams: Streams, options: BlockOptions, once: Once) -> Pair:
        """One block for one of several branches; those in the compiled form share nothing inside of it."""
        if self._compiled:
            return self._block(block, xs, streams, options)
        return self._block(block, xs, streams, options, once)

    def enter(self, stream: LatentState, prefix: str) -> Tensor:
        """Hidden states (B, T, D) of a stream before the first block; its modules' names begin with `prefix`."""
        hidden: Tensor = getattr(self.transformer, prefix + "proj_in")(stream.tokens.to(self._dtype))
        return hidden

    def leave(self, state: AVState, xs: Pair, streams: Streams) -> Prediction:
        """Velocities from the hidden states after the last block; 0 for a reference that is not among them."""
        video = self._leave(state.video, xs[0], streams[0], "")
        audio = self._leave(state.audio, xs[1], streams[1], "audio_")
        missing = state.audio.tokens.shape[1] - audio.shape[1]
        return Prediction(video, on_target(audio, missing) if missing else audio)

    def _leave(self, stream: LatentState, x: Tensor, inputs: StreamInputs, prefix: str) -> Tensor:
        layers = (getattr(self.transformer, prefix + name) for name in ("scale_shift_table", "norm_out", "proj_out"))
        return _output(x, inputs.modulation, tuple(layers)).to(stream.tokens.dtype)

    def rotary_tables(self, state: AVState) -> tuple[tuple[Rotary, Rotary], tuple[Rotary, Rotary]]:
        """Cosines and sines (B, heads, T, D_head / 2) for video and for audio: own attention, audio-video attention.

        Audio-video attention rotates by time alone. Positions in bf16 make the coordinates bf16 (see
        `positions.round_positions`).
        """
        net, video = self.transformer, state.video.positions
        return (net.rope(video), net.cross_attn_rope(video[:, :1])), self._audio_rotary(state.audio)

    def _audio_rotary(self, audio: LatentState) -> tuple[Rotary, Rotary]:
        net, positions = self.transformer, audio.positions
        return net.audio_rope(positions), net.cross_attn_audio_rope(positions[:, :1])

    def layouts(self, state: AVState) -> tuple[Layout, Layout]:
        """What does not change while the tokens of both streams stay where they are."""
        video, audio = self.rotary_tables(state)
        return self._layout(state.video, video), self._layout(state.audio, audio)

    def _layout(self, stream: LatentState, rotary: tuple[Rotary, Rotary]) -> Layout:
        return Layout(*rotary, _key_bias(stream.valid, self._compute_dtype(stream.tokens.device)))

    def check_blocks(self, run: Pass) -> None:
        """Refuse a pass that perturbs a block which the network does not have (SettingsError)."""
        count = len(self.transformer.transformer_blocks)
        wrong = [index for index in run.perturbed_blocks if not 0 <= index < count]
        if wrong:
            raise SettingsError(f"STG block {wrong[0]} does not exist: this model has blocks 0 to {count - 1}")

    @property
    def _dtype(self) -> torch.dtype:
        # The network's own property looks through all of its modules, which costs more than a pass of a small network.
        dtype: torch.dtype = self.transformer.proj_in.weight.dtype
        return dtype

    def _compute_dtype(self, device: torch.device) -> torch.dtype:
        """The dtype attention runs in, whose lowest finite number masks a key."""
        return autocast_dtype(device.type) or self._dtype

    def block_options(self, audio: LatentState, run: Pass, index: int) -> BlockOptions:
        """How a pass departs from the plain forward in the block of that number."""
        reference = audio.num_reference if self.options.reference_attention == "joint" else 0
        plain = BlockOptions(
            isolated=run.isolated,
            hidden_keys=reference if self.options.mask_reference_to_video else 0,
            textless=reference if self.options.reference_text == "block" else 0,
        )
        if index not in run.perturbed_blocks:
            return plain
        chosen = ("video" in run.perturbed_streams, "audio" in run.perturbed_streams)
        if self.generation.stg == "skip":
            return plain._replace(skip=chosen)
        return plain._replace(value=chosen)

    def _inputs(self, state: AVState, sigma: Tensor, context: TextContext) -> tuple[Pair, Streams]:
        """What the first block is given; a reference that hears itself alone is third."""
        apart = self.is_apart(state)
        seen = without_reference(state) if apart else state
        xs: Pair = (self.enter(seen.video, ""), self.enter(seen.audio, "audio_"))
        streams = self._streams(seen, sigma, context)
        return (
            ((*xs, self.enter_reference(state)), (*streams, self.reference_inputs(state))) if apart else (xs, streams)
        )

    def _streams(self, state: AVState, sigma: Tensor, context: TextContext) -> Streams:
        levels = state.video.level(sigma), state.audio.level(sigma)
        contexts, layouts = self.contexts(context), self.layouts(state)
        modulations = (
            self.modulation(state.video, levels[0], levels[1], ""),
            self.modulation(state.audio, levels[1], levels[0], "audio_"),
        )
        prompts = self.prompt_modulation(levels[0], ""), self.prompt_modulation(levels[1], "audio_")
        biases = self.text_bias(context), self.audio_text_bias(state.audio, context)
        made = zip(modulations, prompts, contexts, layouts, biases, strict=True)
        video, audio = (inputs_of(*parts) for parts in made)
        return video, audio

    def contexts(self, context: TextContext) -> tuple[Tensor, Tensor]:
        """What the video and the audio attend to, (B, S, D_context) each."""
        net = self.transformer
        video, audio = context.video.to(self._dtype), context.audio.to(self._dtype)
        if not net.config.use_prompt_embeddings:
            return video, audio
        return net.caption_projection(video), net.audio_caption_projection(audio)

    def text_bias(self, context: TextContext) -> Tensor | None:
        """What is added to the scores of the text's keys, (B, 1, S)."""
        return _key_bias(context.mask, self._compute_dtype(context.video.device))

    def audio_text_bias(self, audio: LatentState, context: TextContext) -> Tensor | None:
        """The same for the audio's queries, (B, 1 or T, S): the reference may get an average of the text."""
        text = self.text_bias(context)
        if self.options.reference_text != "average" or audio.num_reference == 0:
            return text
        batch, length, _ = audio.tokens.shape
        dtype = self._compute_dtype(audio.tokens.device)
        bias = torch.zeros(batch, length, context.audio.shape[1], dtype=dtype, device=audio.tokens.device)
        if text is not None:
            bias = bias + text
        # So large that every score is absorbed: softmax becomes uniform over all text tokens. Not the lowest number,
        # which GPU kernels scale to -inf: such rows get nothing there (benchmarks/blocked_rows.py).
        bias[:, : audio.num_reference] = torch.finfo(bias.dtype).min / 4
        return bias

    def modulation(self, stream: LatentState, level: Tensor, other_level: Tensor, prefix: str) -> Modulation:
        """Embed the distinct timesteps of a stream, all but the text's; the levels are its own and the other stream's.

        `prefix` names its modules. From 2.3 on audio-video attention goes by the other stream's level.
        """
        net, dtype = self.transformer, self._dtype
        rows, denoise = _distinct_timesteps(stream, level)
        scale = float(net.config.timestep_scale_multiplier)
        rows, other = rows * scale, other_level[:, None] * scale
        kind, gate = ("audio", "audio_v2a_gate") if prefix else ("video", "video_a2v_gate")
        cross = other if self.generation.cross_timestep else rows
        gate_scale = net.config.cross_attn_timestep_scale_multiplier / net.config.timestep_scale_multiplier
        ada, out = _embed(getattr(net, prefix + "time_embed"), rows, dtype)
        return Modulation(
            ada=ada,
            cross=_embed(getattr(net, f"av_cross_attn_{kind}_scale_shift"), cross, dtype)[0],
            gate=_embed(getattr(net, f"av_cross_attn_{gate}"), cross * gate_scale, dtype)[0],
            out=out,
            prompt=None,
            denoise=denoise,
        )

    def prompt_modulation(self, level: Tensor, prefix: str) -> Tensor | None:
        """Embed a stream's noise level for its text, (B, 1, 2 D); None where the text does not depend on it."""
        prompt = getattr(self.transformer, prefix + "prompt_adaln", None)
        scale = float(self.transformer.config.timestep_scale_multiplier)
        return None if prompt is None else _embed(prompt, level[:, None] * scale, self._dtype)[0]


def inputs_of(
    modulation: Modulation, prompt: Tensor | None, context: Tensor, layout: Layout, text_bias: Tensor | None
) -> StreamInputs:
    """A stream's inputs to every block; `prompt` is the text's modulation."""
    modulation = modulation._replace(prompt=prompt)
    return StreamInputs(modulation, context, layout.rotary, layout.cross_rotary, text_bias, layout.key_bias)


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


def _output(x: Tensor, modulation: Modulation, layers: tuple[Any, ...]) -> Tensor:
    """Final norm, modulation by the embedded timestep, projection to channels."""
    table, norm, project = layers
    shift, scale = (row + modulation.out for row in table)
    projected: Tensor = project(modulate(norm(x), shift, scale, modulation.denoise))
    return projected
