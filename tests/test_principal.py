# SPDX-License-Identifier: Apache-2.0
"""The video autoencoder's closed form: its code must hold what a picture shows, and its decoder begin well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from idlora.training.miniature import components, dataset
from idlora.training.miniature.codecs import to_model
from idlora.training.miniature.principal import Components, rest_constants, start_linear, token_weights


def clips(indices: Sequence[int], num_frames: int = 17) -> Tensor:
    """The beginnings (N, 3, F, 96, 96) of world clips."""
    frames = np.stack([dataset.frames("train", index)[:num_frames] for index in indices])
    return to_model(torch.from_numpy(frames))


@pytest.fixture(scope="module")
def started() -> Any:
    torch.manual_seed(0)
    vae = components.video_vae().eval()
    start_linear(vae, clips(range(30), 9), token_weights(96, 24))
    return vae


def psnr(vae: Any, truth: Tensor) -> float:
    error = vae.decode(vae.encode(truth).latent_dist.mode()).sample - truth
    return float(10 * torch.log10(4 / error.square().mean()))


@torch.no_grad()
def test_the_start_already_codes_pictures_that_it_has_not_seen(started: Any) -> None:
    truth = clips(range(100, 104))
    assert started.encode(truth).latent_dist.mode().shape == (4, components.VIDEO_LATENT_CHANNELS, 3, 4, 4)
    assert psnr(started, truth) > psnr(components.video_vae().eval(), truth) + 6.0


@torch.no_grad()
def test_pictures_can_be_read_from_the_code_by_a_linear_map(started: Any) -> None:
    def rows(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        truth = clips(indices, 9)
        codes = started.encode(truth).latent_dist.mode()[:, :, 1:].movedim(1, -1).flatten(0, -2).double()
        cells = truth[:, :, 1:].unflatten(4, (4, 24)).unflatten(3, (4, 24)).permute(0, 3, 5, 1, 2, 4, 6).flatten(3)
        return torch.cat([codes, torch.ones(len(codes), 1)], dim=1), cells.flatten(0, 2).double()

    codes, cells = rows(range(30))
    assert not codes[:, components.VIDEO_LATENT_CHANNELS - 1].any(), "its place is taken by the constant"
    read = torch.linalg.pinv(codes) @ cells
    codes, cells = rows(range(100, 108))
    error = (codes @ read - cells).square().mean()
    assert 10 * torch.log10(4 / error) > 18.0
    assert error < 0.15 * (cells - cells.mean(0)).square().mean()


@torch.no_grad()
def test_the_first_frame_is_coded_alone(started: Any) -> None:
    truth = clips(range(2))
    whole, alone = started.encode(truth).latent_dist.mode(), started.encode(truth[:, :, :1]).latent_dist.mode()
    assert torch.allclose(whole[:, :, :1], alone, atol=1e-4)


def test_components_are_those_of_the_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    truth = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    rows = torch.randn(4000, 6, generator=generator) * torch.tensor([5.0, 3.0, 1.0, 0.1, 0.1, 0.1]) @ truth.T + 2.0
    found = Components.of(rows, 3)
    assert torch.allclose((found.basis.T @ truth[:, :3]).abs(), torch.eye(3), atol=0.05)
    assert torch.allclose(found.scale, torch.tensor([5.0, 3.0, 1.0]), rtol=0.05)
    there, back = found.to_features(torch.ones(6)), found.from_features(torch.ones(6))
    features = rows @ there[0].T + there[1]
    assert torch.allclose(features.std(0), torch.ones(3), atol=0.01)
    assert (features @ back[0].T + back[1] - rows).square().mean() < 0.02


def test_weights_that_read_constants_rest(started: Any) -> None:
    vae = components.video_vae()
    vae.load_state_dict(started.state_dict())
    rest_constants(vae.decoder)
    vae.decode(vae.encode(clips(range(1))).latent_dist.mode()).sample.square().mean().backward()
    last = vae.decoder.conv_out.conv.weight.grad
    assert not last[:, -1].any()
    assert last[:, :-1].abs().max() > 0
