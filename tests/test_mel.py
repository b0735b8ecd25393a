# SPDX-License-Identifier: Apache-2.0
"""The log-mel front end: equal to librosa's, and the laws that hold without it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from librosa.feature import melspectrogram
from librosa.filters import mel as librosa_filters

from idlora.errors import InputError, SettingsError
from idlora.networks.mel import LogMel, MelConfig, hz_to_mel, mel_filterbank, mel_to_hz

CONFIGS = [
    MelConfig(),
    MelConfig(num_bins=80, max_hz=7600.0, min_hz=40.0),
    MelConfig(sample_rate=24_000, n_fft=512, hop_length=128, num_bins=40),
]


def waveform(config: MelConfig, seconds: float = 0.7) -> torch.Tensor:
    """Return a chirp in noise and a decaying one, (2, 2, N), loud and near silence."""
    time = torch.arange(int(seconds * config.sample_rate), dtype=torch.float64) / config.sample_rate
    noise = torch.randn(2, 2, len(time), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    chirp = torch.sin(2 * math.pi * (150 + 2500 * time) * time)
    gains = torch.tensor([[0.6, 0.01], [1e-4, 0.0]], dtype=torch.float64)[..., None]
    return (gains * (chirp + 0.1 * noise)).float()


@pytest.mark.parametrize("config", CONFIGS)
def test_filterbank_equals_librosa(config: MelConfig) -> None:
    theirs = librosa_filters(
        sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.num_bins, fmin=config.min_hz, fmax=config.max_hz,
        htk=False, norm="slaney",
    )  # fmt: skip
    assert np.abs(mel_filterbank(config).numpy() - theirs).max() <= 1e-6 * theirs.max()


@pytest.mark.parametrize("config", CONFIGS)
def test_spectrogram_equals_librosa(config: MelConfig) -> None:
    sound = waveform(config)
    theirs = melspectrogram(
        y=sound.numpy(), sr=config.sample_rate, n_fft=config.n_fft, hop_length=config.hop_length, window="hann",
        center=True, pad_mode="reflect", power=1.0, n_mels=config.num_bins, fmin=config.min_hz, fmax=config.max_hz,
        htk=False, norm="slaney",
    )  # fmt: skip
    expected = np.log(np.maximum(theirs, config.floor)).swapaxes(-1, -2)
    assert np.abs(LogMel(config)(sound).numpy() - expected).max() <= 1e-4


@given(num_samples=st.integers(513, 4000), batch=st.integers(1, 3), channels=st.integers(1, 2))
def test_shape_is_one_frame_a_hop_and_one_more(num_samples: int, batch: int, channels: int) -> None:
    mel = LogMel()(torch.zeros(batch, channels, num_samples))
    assert mel.shape == (batch, channels, num_samples // 160 + 1, 64)
    assert torch.all(mel == math.log(1e-5) * torch.ones_like(mel))


@given(gain=st.floats(0.5, 8.0))
def test_a_gain_adds_its_logarithm(gain: float) -> None:
    sound = waveform(MelConfig())[:1, :1]
    difference = LogMel()(gain * sound) - LogMel()(sound)
    torch.testing.assert_close(difference, torch.full_like(difference, math.log(gain)), atol=2e-4, rtol=0)


def test_a_shift_by_one_hop_shifts_the_inner_frames() -> None:
    sound = waveform(MelConfig())[:1, :1]
    shifted = torch.roll(sound, 160, dims=-1)
    mel, moved = LogMel()(sound), LogMel()(shifted)
    torch.testing.assert_close(moved[:, :, 6:-5], mel[:, :, 5:-6], atol=1e-4, rtol=0)


@pytest.mark.parametrize("frequency", [200.0, 1000.0, 3000.0, 6000.0])
def test_a_tone_is_loudest_in_the_band_of_its_mel(frequency: float) -> None:
    config = MelConfig()
    tone = torch.sin(2 * math.pi * frequency * torch.arange(8000) / config.sample_rate)[None, None]
    top = hz_to_mel(torch.tensor(config.top_hz)).item()
    expected = hz_to_mel(torch.tensor(frequency)).item() / top * (config.num_bins + 1) - 1
    assert abs(LogMel(config)(tone)[0, 0, 20].argmax().item() - expected) <= 1


@given(hz=st.floats(0.0, 20_000.0))
def test_mel_and_hz_invert_each_other(hz: float) -> None:
    exact = torch.tensor(hz, dtype=torch.float64)
    torch.testing.assert_close(mel_to_hz(hz_to_mel(exact)), exact, rtol=1e-12, atol=1e-9)


def test_the_transform_is_differentiable_and_holds_no_weights() -> None:
    front_end = LogMel()
    sound = waveform(MelConfig())[:1].requires_grad_()
    front_end(sound).sum().backward()
    assert sound.grad is not None
    assert torch.isfinite(sound.grad).all()
    assert sound.grad.abs().sum() > 0
    assert front_end.state_dict() == {}


def test_half_precision_is_computed_in_full() -> None:
    sound = waveform(MelConfig()).bfloat16()
    torch.testing.assert_close(LogMel().to(torch.bfloat16)(sound), LogMel()(sound.float()), atol=0, rtol=0)


def test_too_short_a_waveform_is_refused() -> None:
    with pytest.raises(InputError, match=r"512 samples are too few.*more than 512"):
        LogMel()(torch.zeros(1, 1, 512))


@pytest.mark.parametrize("edges", [(0.0, 9000.0), (4000.0, 4000.0), (-1.0, 8000.0)])
def test_bands_outside_the_spectrum_are_refused(edges: tuple[float, float]) -> None:
    with pytest.raises(SettingsError, match="must lie within"):
        MelConfig(min_hz=edges[0], max_hz=edges[1])
