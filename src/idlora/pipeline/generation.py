# SPDX-License-Identifier: Apache-2.0
"""A generation in five verbs: prepare, noise, schedule, denoise, decode. Each works on a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idlora.core.flow import interpolate
from idlora.core.guidance import NEUTRAL
from idlora.core.noise import Generators, initial_noise, target_noise
from idlora.core.positions import (
    ReferenceTime,
    Rounding,
    audio_positions,
    reference_positions,
    round_positions,
    video_positions,
)
from idlora.core.reference import attach_reference, detach_reference
from idlora.core.samplers import Callback, sample_euler, sample_res2s
from idlora.core.schedules import DEFAULT_TOKENS, ltx2_sigmas
from idlora.core.state import AVState, LatentState, Masking
from idlora.errors import WeightsError
from idlora.networks.codecs import AudioCodec, VideoCodec, VideoGrid, vocoder_rate
from idlora.networks.denoiser import GuidedDenoiser
from idlora.networks.executor import Sharing
from idlora.networks.joint import JointModel
from idlora.networks.ranks import Ranks
from idlora.pipeline.inputs import Inputs
from idlora.pipeline.settings import Settings
from idlora.pipeline.texts import Texts

KNOWN_VOICES = 64  # that stay encoded, 65 KB each at most


@dataclass(frozen=True)
class Codecs:
    """What turns pictures and sound into tokens and back; `known_voices` are tokens by the voice's digest."""

    video: VideoCodec
    audio: AudioCodec
    vocoder: Any
    known_voices: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def grid(self, settings: Settings) -> VideoGrid:
        """The latent size of a clip."""
        return VideoGrid.of(settings.num_frames, settings.height, settings.width, self.video.vae)

    @property
    def video_channels(self) -> int:
        """Channels of a video token."""
        return int(self.video.vae.config.latent_channels)

    @property
    def audio_channels(self) -> int:
        """Channels of an audio token: latent channels x mel bins of the latent."""
        return len(self.audio.statistics()[0])


def prepare(batch: Sequence[Inputs], settings: Settings, codecs: Codecs, device: torch.device) -> AVState:
    """Both streams of a batch with everything that is given (pictures, references) in its place; no noise yet.

    The members share `settings` but for seeds and negative prompts. A shorter reference is padded in front.
    """
    num_tokens = codecs.audio.num_tokens(settings.seconds)
    audio = _join([audio_stream(torch.zeros(1, num_tokens, codecs.audio_channels, device=device))] * len(batch))
    references = [reference_tokens(inputs, codecs, device) for inputs in batch]
    video = _video(batch, settings, codecs, device)
    state = AVState(video, with_references(audio, references, settings.positions, settings.reference_time))
    return round_positions(state, settings.positions)


def _video(batch: Sequence[Inputs], settings: Settings, codecs: Codecs, device: torch.device) -> LatentState:
    grid = codecs.grid(settings)
    empty = torch.zeros(1, grid.num_tokens, codecs.video_channels, device=device)
    positions = video_positions((grid.frames, grid.height, grid.width), settings.frame_rate, device)
    return _join([video_stream(empty, positions, given_frames(inputs, settings, codecs, device)) for inputs in batch])


def given_frames(
    inputs: Inputs, settings: Settings, codecs: Codecs, device: torch.device
) -> dict[int, tuple[Tensor, float]]:
    """Tokens (1, H * W, C) and strengths of the pictures, by latent frame."""
    pictures = inputs.pixels(settings.height, settings.width)
    return {
        frame: (codecs.video.encode(torch.from_numpy(pixels.copy())[None, None].to(device)).float(), strength)
        for frame, (pixels, strength) in pictures.items()
    }


def video_stream(empty: Tensor, positions: Tensor, given: Mapping[int, tuple[Tensor, float]]) -> LatentState:
    """A stream (1, T, C) to be denoised but for some latent frames, which are `given` with strengths in (0, 1]."""
    clean, mask = empty.clone(), torch.ones_like(empty[..., :1])
    for frame, (tokens, strength) in given.items():
        rows = slice(frame * tokens.shape[1], (frame + 1) * tokens.shape[1])
        clean[:, rows], mask[:, rows] = tokens, 1 - strength
    strengths = {strength for _, strength in given.values()}
    masking: Masking = "ones" if not given else "binary" if strengths == {1.0} else "graded"
    return LatentState(clean, positions, mask, clean, masking=masking)


def audio_stream(empty: Tensor) -> LatentState:
    """A stream (1, T, C) to be denoised."""
    positions = audio_positions(empty.shape[1], empty.device)
    return LatentState(empty, positions, torch.ones_like(empty[..., :1]), empty, masking="ones")


def _join(streams: list[LatentState]) -> LatentState:
    """Streams of one sample each as one batch."""
    kinds: list[Masking] = ["graded", "binary", "ones"]
    found = {stream.mask_kind() for stream in streams}
    return LatentState(
        tokens=torch.cat([stream.tokens for stream in streams]),
        positions=torch.cat([stream.positions for stream in streams]),
        denoise_mask=torch.cat([stream.denoise_mask for stream in streams]),
        clean=torch.cat([stream.clean for stream in streams]),
        masking=next(kind for kind in kinds if kind in found),
    )


def reference_tokens(inputs: Inputs, codecs: Codecs, device: torch.device) -> Tensor:
    """Tokens (T, C) of the voice; no rows without one. A voice that was encoded before is remembered."""
    if inputs.voice is None:
        return torch.zeros(0, codecs.audio_channels, device=device)
    key = sha256(inputs.voice.tobytes()).hexdigest() + str(inputs.voice.shape)
    if key not in codecs.known_voices:
        while len(codecs.known_voices) >= KNOWN_VOICES:
            codecs.known_voices.pop(next(iter(codecs.known_voices)))
        encoded = codecs.audio.encode(torch.from_numpy(inputs.voice.copy())[None].to(device))[0].float()
        codecs.known_voices[key] = encoded
    return codecs.known_voices[key].to(device)


def with_references(
    target: LatentState,
    references: Sequence[Tensor],
    rounding: Rounding = "fp32",
    time: ReferenceTime = "negative",
) -> LatentState:
    """The audio stream with one reference (T_b, C) in front of each sample; the shorter ones are padded in front."""
    longest = max(len(reference) for reference in references)
    if longest == 0:
        return target
    tokens, positions, valid = pad_references(references, longest, rounding, time)
    return attach_reference(target, tokens, positions, None if min(map(len, references)) == longest else valid)


def pad_references(
    references: Sequence[Tensor], longest: int, rounding: Rounding = "fp32", time: ReferenceTime = "negative"
) -> tuple[Tensor, Tensor, Tensor]:
    """References (T_b, C) padded in front: tokens (B, T, C), positions (B, 1, T, 2) and valid (B, T), T = longest."""
    lengths = [len(reference) for reference in references]
    tokens = torch.stack([_padded(reference, longest, 0) for reference in references])
    bounds = [reference_positions(length, rounding, time, tokens.device)[0] for length in lengths]
    positions = torch.stack([_padded(bound, longest, 1) for bound in bounds])
    rows = torch.arange(longest, device=tokens.device)
    return tokens, positions, rows >= longest - torch.tensor(lengths, device=tokens.device)[:, None]


def _padded(rows: Tensor, length: int, axis: int) -> Tensor:
    """Zeros in front along an axis, up to a length."""
    shape = list(rows.shape)
    shape[axis] = length - shape[axis]
    return torch.cat([rows.new_zeros(shape), rows], dim=axis)


def noise(state: AVState, generators: Generators, *, official: bool = False) -> AVState:
    """The start of sampling; what is given stays clean (see `core.noise.initial_noise`)."""
    video, audio = initial_noise(state, generators, official=official)
    return AVState(state.video.noised(video), state.audio.noised(audio))


def schedule(settings: Settings, grid: VideoGrid) -> Tensor:
    """Sigmas (N + 1,) down to 0: those that the settings name, or LTX-2's for so many steps."""
    if settings.sigmas:
        return torch.tensor(settings.sigmas)
    num_tokens = grid.num_tokens if settings.shift == "by-size" else DEFAULT_TOKENS
    return ltx2_sigmas(settings.num_inference_steps, num_tokens)


@dataclass(frozen=True)
class Sampling:
    """What the sampler of the settings needs beside model and state, and how its passes go together."""

    sigmas: Tensor
    generators: Generators
    callback: Callback | None = None
    sharing: Sharing = Sharing()
    ranks: Ranks | None = None
    graphs: bool = False


def denoise(model: JointModel, state: AVState, texts: Texts, settings: Settings, sampling: Sampling) -> AVState:
    """From noise to clean tokens.

    Raises:
        Cancelled: the callback returned False.
        SettingsError: the guidance asks for something that the network does not have.
    """
    how = (sampling.sharing, sampling.ranks, settings.first_block_cache, sampling.graphs)
    guided = GuidedDenoiser(model, texts.positive, texts.negative, settings.guidance, *how)
    if settings.sampler == "euler":
        return sample_euler(guided, state, sampling.sigmas, callback=sampling.callback)
    return sample_res2s(guided, state, sampling.sigmas, generators=sampling.generators, callback=sampling.callback)


def stages(settings: Settings) -> tuple[Settings, ...]:
    """The settings of each stage: one, or half the size and then the whole size with positive text alone."""
    refine = settings.refine
    if not refine.sigmas:
        return (settings,)
    half = replace(settings, height=settings.height // 2, width=settings.width // 2)
    return half, replace(settings, sigmas=refine.sigmas, distilled=refine.distilled, guidance=NEUTRAL)


def grid_step(settings: Settings, codecs: Codecs) -> int:
    """Pixels that a side must be a multiple of: a latent cell, or two if the first stage is half the size."""
    return int(codecs.video.vae.spatial_compression_ratio) * len(stages(settings))


def upscale(
    state: AVState, batch: Sequence[Inputs], settings: Sequence[Settings], codecs: Codecs, upsampler: Any
) -> AVState:
    """The second stage's streams from what the first one made: pictures of twice the size, the sound frozen; no noise.

    Given frames are encoded anew at the larger size; the reference stays behind.
    """
    first, second = settings
    device = state.video.tokens.device
    tokens = codecs.video.upscale(state.video.tokens, codecs.grid(first), upsampler).float()
    video = _video(batch, second, codecs, device)
    sound = detach_reference(state.audio)
    larger = AVState(video.with_tokens(video.keep_clean(tokens)), sound.freeze(sound.tokens))
    return round_positions(larger, second.positions)


def renoise(state: AVState, sigma: float, generators: Generators) -> AVState:
    """Noise the pictures up to sigma; what is given, the sound too, stays clean."""
    video = state.video
    noisy = interpolate(video.tokens, target_noise(video, generators), video.timesteps(sigma))
    return AVState(video.with_tokens(noisy), state.audio)


@dataclass(frozen=True, eq=False)
class Media:
    """A decoded batch."""

    video: NDArray[np.uint8]  # (B, F, H, W, 3)
    audio: NDArray[np.float32]  # (B, channels, samples)
    sample_rate: int


def decode(state: AVState, codecs: Codecs, settings: Settings) -> Media:
    """Pictures and sound, the sound exactly as long as the pictures.

    Raises:
        WeightsError: there is nothing to decode but numbers that are not finite.
    """
    for stream in (state.video, state.audio):
        if not bool(torch.isfinite(stream.tokens).all()):
            raise WeightsError("the result is not finite: the weights are damaged, or float16 overflowed; use bfloat16")
    video, waveform = decoded(state, codecs, settings)
    return Media(video.cpu().numpy(), waveform.cpu().numpy(), vocoder_rate(codecs.vocoder))


def decoded(state: AVState, codecs: Codecs, settings: Settings) -> tuple[Tensor, Tensor]:
    """Frames (B, F, H, W, 3) uint8 and samples (B, channels, N), where the state is; both are decoded at once.

    On the meta device one after the other, since what counts there counts a thread.
    """
    if state.audio.tokens.is_meta:
        return codecs.video.decode(state.video.tokens, codecs.grid(settings)), decoded_sound(state, codecs, settings)
    with ThreadPoolExecutor(1) as beside:
        sound = beside.submit(_sound_beside, state, codecs, settings)
        return codecs.video.decode(state.video.tokens, codecs.grid(settings)), sound.result()


@cache  # each new one would come with memory of its own, which PyTorch keeps
def _side_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)


@torch.no_grad()  # which a thread does not inherit
def _sound_beside(state: AVState, codecs: Codecs, settings: Settings) -> Tensor:
    """The sound, decoded while another thread decodes the pictures; on a GPU in a stream of its own."""
    device = state.audio.tokens.device
    if device.type != "cuda":
        return decoded_sound(state, codecs, settings)
    stream = _side_stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(stream):
        sound = decoded_sound(state, codecs, settings)
    stream.synchronize()
    return sound


def decoded_sound(state: AVState, codecs: Codecs, settings: Settings) -> Tensor:
    """The sound alone, (B, channels, N), as long as the pictures would be."""
    mel = codecs.audio.decode(detach_reference(state.audio).tokens)
    # One by one, since a vocoder may draw its start for the whole batch (Griffin-Lim does).
    waveform = torch.cat([codecs.vocoder(each).float() for each in mel.to(codecs.vocoder.dtype).split(1)])
    return fit_length(waveform, round(settings.seconds * vocoder_rate(codecs.vocoder)))


def fit_length(waveform: Tensor, num_samples: int) -> Tensor:
    """Cut (..., N) at the end, or pad it there with silence."""
    missing = num_samples - waveform.shape[-1]
    return torch.nn.functional.pad(waveform, (0, missing))  # a negative pad cuts
