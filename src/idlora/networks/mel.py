# SPDX-License-Identifier: Apache-2.0
"""The log-mel spectrogram that the audio VAE reads: magnitude, Slaney's mel scale and area normalisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from idlora.errors import InputError, SettingsError

# Slaney's Auditory Toolbox scale: linear below 1 kHz (3 mel in 200 Hz), above it 27 mel in a factor of 6.4.
_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27.0


@dataclass(frozen=True)
class MelConfig:
    """Sizes of the transform.

    Attributes:
        sample_rate: Hz of the waveform.
        n_fft: samples of the periodic Hann window and of the Fourier transform.
        hop_length: samples between frames.
        num_bins: mel bands.
        min_hz: lower edge of the first band.
        max_hz: upper edge of the last band; None is half the sample rate.
        floor: magnitudes below it are raised to it before the logarithm.
    """

    sample_rate: int = 16_000
    n_fft: int = 1024
    hop_length: int = 160
    num_bins: int = 64
    min_hz: float = 0.0
    max_hz: float | None = None
    floor: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse bands that do not lie between 0 Hz and half the sample rate."""
        if not 0.0 <= self.min_hz < self.top_hz <= self.sample_rate / 2:
            raise SettingsError(
                f"mel bands from {self.min_hz} to {self.top_hz} Hz must lie within 0..{self.sample_rate / 2} Hz"
            )

    @property
    def top_hz(self) -> float:
        """Upper edge of the last band in Hz."""
        return self.sample_rate / 2 if self.max_hz is None else self.max_hz


def hz_to_mel(hz: Tensor) -> Tensor:
    """Map Hz to Slaney's mel scale; `mel_to_hz` is its inverse."""
    above = _BREAK_MEL + torch.log(hz.clamp(min=_BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return torch.where(hz < _BREAK_HZ, hz / _HZ_PER_MEL, above)


def mel_to_hz(mel: Tensor) -> Tensor:
    """Map Slaney's mel scale to Hz."""
    above = _BREAK_HZ * torch.exp(_LOG_STEP * (mel - _BREAK_MEL).clamp(min=0.0))
    return torch.where(mel < _BREAK_MEL, mel * _HZ_PER_MEL, above)


def mel_filterbank(config: MelConfig) -> Tensor:
    """Return triangular filters (num_bins, n_fft // 2 + 1) float32.

    Their corners are evenly spaced in mel, and each is scaled by 2 / width in Hz, so that all have the same area.
    """
    exact: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}  # also where a network is built without weights
    lowest, highest = hz_to_mel(torch.tensor([config.min_hz, config.top_hz], **exact)).tolist()
    corners = mel_to_hz(torch.linspace(lowest, highest, config.num_bins + 2, **exact))  # (M + 2,)
    bins = torch.linspace(0.0, config.sample_rate / 2, config.n_fft // 2 + 1, **exact)  # (K,)
    left, centre, right = (edge[:, None] for edge in (corners[:-2], corners[1:-1], corners[2:]))  # (M, 1)
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    triangles = torch.minimum(rising, falling).clamp(min=0.0)
    return (triangles * (2.0 / (right - left))).float()


class LogMel(nn.Module):
    """Waveform to log-mel spectrogram: ln(max(filterbank @ |STFT|, floor)).

    Frames are centred with reflected edges. The arithmetic is float32 whatever the input's type, and the result is
    differentiable.
    """

    def __init__(self, config: MelConfig | None = None) -> None:
        super().__init__()
        self.config = config or MelConfig()

    def forward(self, waveform: Tensor) -> Tensor:
        """Map (B, C, N) samples to (B, C, N // hop_length + 1, num_bins).

        Raises:
            InputError: the waveform is not longer than half a window, so its edges cannot be reflected.
        """
        if waveform.shape[-1] <= self.config.n_fft // 2:
            raise InputError(
                f"{waveform.shape[-1]} samples are too few for a spectrogram; more than {self.config.n_fft // 2} are "
                "needed"
            )
        window, filters = self.tables(waveform.device)
        spectrum = torch.stft(
            waveform.float().flatten(0, 1),  # (B * C, N)
            self.config.n_fft,
            hop_length=self.config.hop_length,
            window=window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        mel: Tensor = (filters @ spectrum.abs()).unflatten(0, waveform.shape[:2]).mT  # (B, C, T, M)
        return mel.clamp(min=self.config.floor).log()

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Window (n_fft,) and filters (num_bins, n_fft // 2 + 1) on a device, which the process keeps."""
        return _tables(self.config, device)


# Not buffers of the module, which a model cast to half precision would round.
@lru_cache(maxsize=8)
def _tables(config: MelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.hann_window(config.n_fft, periodic=True).to(device), mel_filterbank(config).to(device)
