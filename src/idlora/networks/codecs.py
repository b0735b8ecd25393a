# SPDX-License-Identifier: Apache-2.0
"""Between media and latent tokens: the video and audio autoencoders, and vocoders behind one interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from idlora.core.tokens import audio_to_tokens, tokens_to_audio, tokens_to_video, video_to_tokens
from idlora.errors import InputError
from idlora.networks.mel import LogMel, MelConfig, mel_filterbank

AUDIO_TOKENS_PER_SECOND = 25


@dataclass(frozen=True)
class VideoGrid:
    """Size of a video in latents: its tokens run frame by frame, row by row, column by column."""

    frames: int
    height: int
    width: int

    @classmethod
    def of(cls, num_frames: int, height: int, width: int, vae: Any) -> VideoGrid:
        """Grid of a video of `num_frames` = k * temporal ratio + 1 and sides that are multiples of the spatial ratio.

        A side has at least two latents: the decoder may pad by reflection, for which one is too few.

        Raises:
            InputError: a size is off the grid.
        """
        temporal, spatial = vae.temporal_compression_ratio, vae.spatial_compression_ratio
        if num_frames < 1 or (num_frames - 1) % temporal:
            below = max(1, (num_frames - 1) // temporal * temporal + 1)
            raise InputError(
                f"{num_frames} frames: their number must be {temporal}k + 1; use {below} or {below + temporal}"
            )
        for name, side in (("height", height), ("width", width)):
            if side < 2 * spatial or side % spatial:
                nearest = max(2, round(side / spatial)) * spatial
                raise InputError(f"{name} {side} is no multiple of {spatial} from {2 * spatial} on; use {nearest}")
        return cls((num_frames - 1) // temporal + 1, height // spatial, width // spatial)

    @property
    def num_tokens(self) -> int:
        """Number of video tokens."""
        return self.frames * self.height * self.width


class VideoCodec:
    """Frames <-> normalised video tokens through an `AutoencoderKLLTX2Video`."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """uint8 frames (B, F, H, W, 3) to tokens (B, T, C): the posterior's mean, normalised by the stored statistics.

        Raises:
            InputError: the frames do not fit the latent grid.
        """
        VideoGrid.of(frames.shape[1], frames.shape[2], frames.shape[3], self.vae)
        pixels = frames.to(self.vae.device).permute(0, 4, 1, 2, 3).to(self.vae.dtype) / 127.5 - 1.0
        latents = self.vae.encode(pixels).latent_dist.mode()  # (B, C, F', H', W')
        return self._normalised(video_to_tokens(latents))

    @torch.no_grad()
    def upscale(self, tokens: Tensor, grid: VideoGrid, upsampler: Any) -> Tensor:
        """Tokens (B, T, C) of a grid to those of the grid of twice its height and width.

        Args:
            tokens: normalised.
            grid: theirs.
            upsampler: `LTX2LatentUpsamplerModel`, which works on latents that are not normalised.
        """
        latents = upsampler(self._latents(tokens, grid).to(upsampler.dtype))
        return self._normalised(video_to_tokens(latents).to(self.vae.dtype))

    def _normalised(self, tokens: Tensor) -> Tensor:
        normalised: Tensor = (tokens - self.vae.latents_mean) * (self.vae.config.scaling_factor / self.vae.latents_std)
        return normalised

    def _latents(self, tokens: Tensor, grid: VideoGrid) -> Tensor:
        tokens = tokens.to(self.vae.dtype) * (self.vae.latents_std / self.vae.config.scaling_factor)
        return tokens_to_video(tokens + self.vae.latents_mean, (grid.frames, grid.height, grid.width))

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: VideoGrid) -> Tensor:
        """Tokens (B, T, C) of a grid to uint8 frames (B, F, H, W, 3)."""
        latents = self._latents(tokens, grid)
        pixels = self.vae.decode(latents).sample  # (B, 3, F, H, W)
        bytes_: Tensor = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return bytes_.permute(0, 2, 3, 4, 1)


class AudioCodec:
    """Waveforms -> normalised audio tokens -> log-mels, through an `AutoencoderKLLTX2Audio`.

    A token is one latent frame of 40 ms: channels x mel bins, channel-major. The stored statistics are per token
    entry; an autoencoder whose statistics are shorter than a token (diffusers sizes them by its base channels) repeats
    them along the token.
    """

    def __init__(self, vae: Any, mel: LogMel | None = None) -> None:
        self.vae = vae
        self.mel = mel or LogMel()

    @staticmethod
    def num_tokens(seconds: float) -> int:
        """Number of generated tokens of a clip; an encoded clip of that length may be one longer."""
        return round(seconds * AUDIO_TOKENS_PER_SECOND)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a token's entries, (C,) each."""
        size = self.vae.config.latent_channels * self.vae.config.mel_bins // self.vae.mel_compression_ratio
        mean, std = self.vae.latents_mean, self.vae.latents_std
        return mean.repeat(size // len(mean)), std.repeat(size // len(std))

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        """Waveform (B, 1 or 2, N) at 16 kHz to tokens (B, T, C), T = ceil((N // 160 + 1) / 4); mono is doubled."""
        return self.encode_mel(self.mel(waveform.to(self.vae.device, torch.float32).expand(-1, 2, -1)))

    @torch.no_grad()
    def encode_mel(self, mel: Tensor) -> Tensor:
        """Log-mel (B, 2, T_mel, bins) to tokens (B, T, C)."""
        latents = self.vae.encode(mel.to(self.vae.dtype)).latent_dist.mode()  # (B, channels, T, bins)
        mean, std = self.statistics()
        return (audio_to_tokens(latents) - mean) / std

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, C) to log-mel (B, 2, 4T - 3, bins)."""
        mean, std = self.statistics()
        latents = tokens_to_audio(tokens.to(self.vae.dtype) * std + mean, self.vae.config.latent_channels)
        mel: Tensor = self.vae.decode(latents).sample
        return mel


def vocoder_rate(vocoder: Any) -> int:
    """Samples a second of what a vocoder returns."""
    return int(vocoder.config.output_sampling_rate)


class GriffinLimVocoder(ModelMixin, ConfigMixin):
    """Log-mel to waveform without learned weights (Griffin and Lim 1984, with momentum after Perraudin et al. 2013).

    Takes and returns what `LTX2Vocoder` does: (B, channels, T, bins) -> (B, channels, T * hop). The first phase is
    drawn from a fixed seed, once for all rows, so the same mel gives the same samples in both channels and any batch.
    """

    @register_to_config
    def __init__(
        self,
        output_sampling_rate: int = 16_000,
        n_fft: int = 1024,
        hop_length: int = 160,
        num_bins: int = 64,
        iterations: int = 32,  # noqa: ARG002 - read from the configuration
        momentum: float = 0.99,  # noqa: ARG002 - as above
    ) -> None:
        super().__init__()
        mel = MelConfig(sample_rate=output_sampling_rate, n_fft=n_fft, hop_length=hop_length, num_bins=num_bins)
        filters = mel_filterbank(mel)  # (bins, K)
        self.register_buffer("filters", filters)
        self.register_buffer("inverse", torch.linalg.pinv(filters))
        self.register_buffer("window", torch.hann_window(n_fft))

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (B, channels, T, bins) to samples (B, channels, T * hop)."""
        magnitude = self._linear(mel.float().exp().flatten(0, 1).transpose(1, 2))  # (B * channels, K, T)
        generator = torch.Generator().manual_seed(0)
        angle = torch.rand(magnitude.shape[1:], generator=generator).to(magnitude).expand_as(magnitude) * (2 * torch.pi)
        phase, previous = torch.polar(torch.ones_like(magnitude), angle), torch.zeros((), dtype=torch.complex64)
        for _ in range(self.config.iterations):
            rebuilt = self._stft(self._istft(magnitude * phase))
            update = rebuilt - previous * (self.config.momentum / (1 + self.config.momentum))
            phase, previous = update / update.abs().clamp(min=1e-16), rebuilt
        samples: Tensor = self._istft(magnitude * phase).unflatten(0, mel.shape[:2])
        return samples

    def _linear(self, mel: Tensor) -> Tensor:
        """Non-negative linear magnitudes (N, K, T) whose mel is (N, bins, T).

        Multiplicative updates (Lee and Seung 2001) that start from the pseudo-inverse.
        """
        filters = self.filters.float()  # a model that is cast as a whole casts them too
        linear: Tensor = (self.inverse.float() @ mel).clamp(min=1e-7)
        for _ in range(12):
            linear = linear * ((filters.T @ mel) / (filters.T @ (filters @ linear)).clamp(min=1e-9))
        return linear

    def _stft(self, samples: Tensor) -> Tensor:
        return torch.stft(
            samples,
            self.config.n_fft,
            self.config.hop_length,
            window=self.window.float(),
            center=True,
            return_complex=True,
        )[..., :-1]

    def _istft(self, spectrum: Tensor) -> Tensor:
        length = spectrum.shape[-1] * self.config.hop_length
        return torch.istft(
            spectrum, self.config.n_fft, self.config.hop_length, window=self.window.float(), length=length
        )
