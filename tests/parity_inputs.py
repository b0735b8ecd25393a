# SPDX-License-Identifier: Apache-2.0
"""Inputs of the golden cases, made by the package wherever it makes them itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from idlora.core.positions import Rounding, audio_positions, reference_positions, round_positions, video_positions
from idlora.core.reference import attach_reference
from idlora.core.state import AVState, LatentState
from idlora.core.tokens import audio_to_tokens, video_to_tokens
from idlora.networks.adapter import AdapterWeights, read_adapter
from idlora.networks.checkpoints import load_official_transformer
from idlora.networks.joint import JointModel, TextContext
from idlora.training.objective import TrainingBatch


class Stored(Protocol):
    """The part of `parity.Vectors` that the cases use."""

    name: str
    meta: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def __getitem__(self, key: str) -> Tensor: ...
    def __contains__(self, key: str) -> bool: ...
    def optional(self, key: str) -> Tensor | None: ...
    def compare(self, case: str, key: str, actual: Tensor, kind: str = "fp32") -> None: ...
    def against(
        self, case: str, key: str, actual: Tensor, expected: Tensor, kind: str, scale: float | None = None
    ) -> None: ...


@dataclass(frozen=True)
class Generation:
    """One subfolder: a tiny network of one generation and its adapter."""

    folder: Path
    read: Callable[[Path, str, Mapping[str, Any]], Stored] = field(repr=False)

    def transformer(self, dtype: torch.dtype = torch.float32) -> Any:
        """A fresh network, from the official single file."""
        found = load_official_transformer(self.folder / "model_official.safetensors", dtype)
        return found.to(torch.get_default_device())

    def model(self) -> JointModel:
        """The joint model without masks, as the official inference has it."""
        return JointModel(self.transformer())

    def adapter(self, name: str = "lora.safetensors") -> AdapterWeights:
        """The adapter of this folder."""
        return read_adapter(self.folder / name)

    def inputs_of(self, stored: Stored) -> Stored:
        """The file that holds the inputs of a file of outputs."""
        return self.read(self.folder, str(stored.meta["inputs"]), {})


@dataclass(frozen=True)
class Shape:
    """Sizes of a case, from its metadata."""

    latent: tuple[int, int, int]
    frame_rate: float

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Shape:
        """Latent sizes as stored, or derived from the picture's."""
        if "latent_frames" in meta:
            latent = (int(meta["latent_frames"]), int(meta["latent_h"]), int(meta["latent_w"]))
        else:
            latent = ((int(meta["frames"]) - 1) // 8 + 1, int(meta["height"]) // 32, int(meta["width"]) // 32)
        return cls(latent, float(meta["fps"]))


def stg_blocks(meta: Mapping[str, Any]) -> tuple[int, ...]:
    """The perturbed blocks: one number, or a list of them."""
    value = meta["stg_block"] if "stg_block" in meta else meta["stg_blocks"]
    return tuple(int(number) for number in re.findall(r"\d+", str(value)))


def positions_for(
    shape: Shape, num_target: int, num_reference: int, batch: int, rounding: Rounding = "fp32"
) -> AVState:
    """Both streams' positions for a batch, with tokens of no channels."""
    video = _empty(video_positions(shape.latent, shape.frame_rate), batch)
    audio = _empty(audio_positions(num_target), batch)
    if num_reference:
        reference = _empty(reference_positions(num_reference, rounding), batch)
        audio = attach_reference(audio, reference.tokens, reference.positions)
    return round_positions(AVState(video, audio), rounding)


def _empty(positions: Tensor, batch: int) -> LatentState:
    tokens = torch.zeros(batch, positions.shape[2], 0)
    return LatentState(tokens, positions.expand(batch, -1, -1, -1), torch.ones(batch, positions.shape[2], 1), tokens)


def forward_state(stored: Stored, rounding: Rounding = "fp32") -> AVState:
    """The input of a forward case with the package's own positions and audio mask."""
    video, audio = stored["in.video_latent"], stored["in.audio_latent"]
    num_reference = _num_reference(stored)
    num_target = audio.shape[1] - num_reference
    made = positions_for(Shape.of(stored.meta), num_target, num_reference, video.shape[0], rounding)
    return AVState(
        replace(made.video, tokens=video, clean=video, denoise_mask=stored["in.video_denoise_mask"]),
        replace(made.audio, tokens=audio, clean=audio),
    )


def _num_reference(stored: Stored) -> int:
    if "in.audio_denoise_mask" not in stored:
        return 0
    return int((stored["in.audio_denoise_mask"][0, :, 0] == 0).sum())


def context_of(stored: Stored) -> TextContext:
    """The text of a case, its padding mask if it has one."""
    return TextContext(
        stored["in.video_context"], stored["in.audio_context"], stored.optional("in.prompt_attention_mask")
    )


def training_batch(stored: Stored) -> TrainingBatch:
    """The batch of a training case; which first frames were given was drawn, and is read from the loss mask."""
    reference = audio_to_tokens(stored["in.ref_audio_latents_4d"])
    audio = audio_to_tokens(stored["in.audio_latents_4d"])
    shape = Shape.of(stored.meta)
    return TrainingBatch(
        video=video_to_tokens(stored["in.video_latents_5d"]),
        audio=audio,
        video_noise=stored["in.video_noise"],
        audio_noise=stored["in.audio_noise"],
        sigmas=stored["mid.sigmas"],
        video_positions=video_positions(shape.latent, shape.frame_rate),
        audio_positions=audio_positions(audio.shape[1]),
        context=context_of(stored),
        conditioned=~stored["mid.video_loss_mask"],
        reference=reference,
        reference_positions=reference_positions(reference.shape[1]),
    )


def trajectory_state(stored: Stored) -> AVState:
    """The start of a trajectory: first frame and reference clean, the rest noise."""
    video_noise, audio_noise = stored["in.video_noise"], stored["in.audio_noise"]
    reference = audio_to_tokens(stored["in.ref_audio_latent_4d"])
    batch, num_target = audio_noise.shape[0], audio_noise.shape[1] - reference.shape[1]
    made = positions_for(Shape.of(stored.meta), num_target, 0, batch)
    clean, mask = torch.zeros_like(video_noise), torch.ones_like(video_noise[..., :1])
    if "in.first_frame_latent_5d" in stored:
        first = video_to_tokens(stored["in.first_frame_latent_5d"])
        clean[:, : first.shape[1]], mask[:, : first.shape[1]] = first, 0
    nothing = torch.zeros_like(audio_noise[:, :num_target])
    positions = reference_positions(reference.shape[1]).expand(batch, -1, -1, -1)
    audio = attach_reference(replace(made.audio, tokens=nothing, clean=nothing), reference, positions)
    video = replace(made.video, tokens=clean, clean=clean, denoise_mask=mask)
    return AVState(video.noised(video_noise), audio.noised(audio_noise))
