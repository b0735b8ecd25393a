# SPDX-License-Identifier: Apache-2.0
"""Codecs: grids and their faults, normalisation that cancels, mono as stereo, and Griffin-Lim against true spectra."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from idlora.errors import InputError
from idlora.networks.codecs import AudioCodec, GriffinLimVocoder, VideoCodec, VideoGrid, vocoder_rate
from idlora.networks.mel import LogMel
from idlora.training.miniature import components
from idlora.training.miniature.codecs import to_model
from idlora.training.miniature.stages import _normalise_audio, _normalise_video


@pytest.fixture(scope="module")
def video_vae() -> Any:
    torch.manual_seed(0)
    return components.video_vae().eval()


@pytest.fixture
def audio_vae() -> Any:
    torch.manual_seed(0)
    return components.audio_vae().eval()


def tones(seconds: float = 0.5) -> torch.Tensor:
    time = torch.arange(int(16_000 * seconds)) / 16_000
    return (0.3 * torch.sin(2 * torch.pi * 220 * time) + 0.1 * torch.sin(2 * torch.pi * 1870 * time))[None, None]


def test_grid_counts_the_tokens_that_the_autoencoder_makes(video_vae: Any) -> None:
    grid = VideoGrid.of(17, 48, 72, video_vae)
    tokens = VideoCodec(video_vae).encode(torch.zeros(1, 17, 48, 72, 3, dtype=torch.uint8))
    assert (grid.frames, grid.height, grid.width) == (3, 2, 3)
    assert tokens.shape == (1, grid.num_tokens, components.VIDEO_LATENT_CHANNELS)


@pytest.mark.parametrize(
    ("size", "remedy"),
    [
        ((16, 48, 48), "use 9 or 17"),
        ((17, 60, 48), "use 48"),
        ((17, 48, 1), "use 48"),
        ((0, 48, 48), "use 1"),
        ((9, 24, 48), "use 48"),
    ],
)
def test_sizes_off_the_grid_name_the_remedy(video_vae: Any, size: tuple[int, int, int], remedy: str) -> None:
    with pytest.raises(InputError, match=remedy):
        VideoGrid.of(*size, video_vae)


def test_video_comes_back_in_its_own_size_whatever_the_statistics(video_vae: Any) -> None:
    frames = torch.randint(0, 256, (1, 9, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    codec, grid = VideoCodec(video_vae), VideoGrid.of(9, 48, 48, video_vae)
    before = codec.decode(codec.encode(frames), grid)
    _normalise_video(video_vae, to_model(frames))
    tokens = codec.encode(frames)
    after = codec.decode(tokens, grid)
    assert after.shape == frames.shape
    assert (before.int() - after.int()).abs().max() <= 1
    torch.testing.assert_close(tokens.mean((0, 1)), torch.zeros(tokens.shape[-1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.std((0, 1)).square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_normalising_the_audio_autoencoder_is_an_affine_change_that_its_decoder_undoes(audio_vae: Any) -> None:
    codec, wave = AudioCodec(audio_vae), tones()
    before = codec.encode(wave).unflatten(2, (8, 16)).transpose(1, 2)  # (B, channels, T, bins): raw latents
    first = audio_vae.decoder.conv_in
    heard = first(before)
    _normalise_audio(audio_vae, codec.mel(wave)[:, 0])
    tokens = codec.encode(wave)
    latents = tokens.unflatten(2, (8, 16)).transpose(1, 2) * audio_vae.latents_std + audio_vae.latents_mean
    scale = (before.amax((0, 2, 3)) - before.amin((0, 2, 3))) / (latents.amax((0, 2, 3)) - latents.amin((0, 2, 3)))
    shift = before.mean((0, 2, 3)) - scale * latents.mean((0, 2, 3))
    torch.testing.assert_close(latents * scale[:, None, None] + shift[:, None, None], before, atol=1e-4, rtol=0)
    # Away from the border, where the padding is zero in other units than before.
    torch.testing.assert_close(first(latents)[..., 2:, 1:-1], heard[..., 2:, 1:-1], atol=1e-3, rtol=0)
    by_bin = tokens.unflatten(2, (8, 16))
    torch.testing.assert_close(by_bin.mean((0, 1, 2)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(by_bin.std((0, 1, 2)), torch.ones(16), atol=1e-3, rtol=0)


def test_mono_is_heard_as_stereo_of_two_like_channels(audio_vae: Any) -> None:
    codec, wave = AudioCodec(audio_vae), tones()
    torch.testing.assert_close(codec.encode(wave), codec.encode(wave.repeat(1, 2, 1)), atol=0, rtol=0)


def test_tokens_of_a_clip_count_its_latent_frames(audio_vae: Any) -> None:
    codec = AudioCodec(audio_vae)
    assert codec.num_tokens(2.28) == 57
    tokens = codec.encode(torch.zeros(1, 1, 36_480))
    assert tokens.shape == (1, 58, 128)
    assert codec.decode(tokens[:, :57]).shape == (1, 2, 57 * 4 - 3, 64)


def test_statistics_of_a_full_token_are_taken_as_they_are(audio_vae: Any) -> None:
    audio_vae.latents_mean = torch.arange(128.0)
    mean, _ = AudioCodec(audio_vae).statistics()
    torch.testing.assert_close(mean, torch.arange(128.0))


def test_griffin_lim_returns_sound_of_the_same_spectrum() -> None:
    mel, vocoder = LogMel()(tones()), GriffinLimVocoder()
    wave = vocoder(mel)
    assert wave.shape == (1, 1, mel.shape[2] * 160)
    again = LogMel()(wave)[:, :, : mel.shape[2]]
    inner = slice(5, -5)
    loud = mel[:, :, inner] > mel.max() - 5
    assert (again[:, :, inner] - mel[:, :, inner])[loud].abs().mean() < 0.5
    noise = LogMel()(torch.randn(wave.shape, generator=torch.Generator().manual_seed(0)))[:, :, : mel.shape[2]]
    assert (noise[:, :, inner] - mel[:, :, inner])[loud].abs().mean() > 1


def test_griffin_lim_treats_each_channel_and_sample_alike_and_repeats_itself() -> None:
    vocoder, mel = GriffinLimVocoder(iterations=4), LogMel()(tones())
    pair = vocoder(mel.repeat(2, 2, 1, 1))
    assert pair.shape[:2] == (2, 2)
    torch.testing.assert_close(pair, vocoder(mel).expand_as(pair), atol=1e-5, rtol=0)
    torch.testing.assert_close(vocoder(mel), vocoder(mel), atol=0, rtol=0)
    assert vocoder_rate(vocoder) == 16_000
