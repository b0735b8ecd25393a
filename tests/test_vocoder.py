# SPDX-License-Identifier: Apache-2.0
"""Training of the vocoder: its losses, whose gradients they are, and its batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from idlora.networks.mel import LogMel
from idlora.training.miniature import components
from idlora.training.miniature.dataset import Pool
from idlora.training.miniature.vocoder import (
    CROP,
    HOP,
    VocoderLoss,
    VocoderPair,
    adversarial_losses,
    spectral_loss,
)

LENGTH = 100 * HOP


@pytest.fixture(scope="module")
def pair() -> VocoderPair:
    torch.manual_seed(0)
    return VocoderPair(components.vocoder())


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, Pool]:
    folder = tmp_path_factory.mktemp("pools")
    noise = np.random.default_rng(0).normal(size=(4, LENGTH)).astype(np.float16) * 0.1
    mels = LogMel()(torch.from_numpy(noise).float()[:, None].expand(-1, 2, -1)).numpy().astype(np.float16)
    waves = Pool(folder, "waves", 4, lambda indices: noise[list(indices)]).render()
    return waves, Pool(folder, "mels", 4, lambda indices: mels[list(indices)]).render()


def test_a_mel_frame_becomes_one_hop_of_samples(pair: VocoderPair) -> None:
    assert pair.vocoder(torch.zeros(1, 2, 20, 64)).shape == (1, 2, 20 * HOP)


def test_a_sound_has_no_spectral_distance_to_itself_and_some_to_others() -> None:
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn(2, LENGTH, generator=generator) * 0.1
    assert spectral_loss(sound, sound) == 0
    assert spectral_loss(-sound, sound) < 1e-5  # spectra do not know the sign
    assert spectral_loss(0.5 * sound, sound) > 0.5


def test_one_backward_gives_vocoder_and_judges_their_own_gradients(pair: VocoderPair) -> None:
    made = torch.randn(2, LENGTH, requires_grad=True)
    true = torch.randn(2, LENGTH)
    fooling, judging = adversarial_losses(pair.judges, made, true)
    together = torch.autograd.grad(fooling + judging, [made, *pair.judges.parameters()], retain_graph=True)
    for_vocoder = torch.autograd.grad(fooling, made, retain_graph=True)
    for_judges = torch.autograd.grad(judging, list(pair.judges.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(together, (*for_vocoder, *for_judges), strict=True))
    assert for_vocoder[0].abs().max() > 0


def test_batches_follow_from_seed_and_step_and_mels_fit_their_samples(
    pair: VocoderPair, pools: tuple[Pool, Pool]
) -> None:
    loss = VocoderLoss(pair, *pools, seed=1)
    mels, samples = loss.draw(5)
    assert mels.shape == (loss.size, 2, CROP, 64)
    assert samples.shape == (loss.size, CROP * HOP)
    again = VocoderLoss(pair, *pools, seed=1).draw(5)
    assert torch.equal(mels, again[0])
    assert torch.equal(samples, again[1])
    inner = slice(8, CROP - 8)  # frames whose window lies inside the crop
    assert torch.allclose(LogMel()(samples[:, None])[:, 0, inner], mels[:, 0, inner], atol=0.05)


def test_judges_join_when_they_are_due(pair: VocoderPair, pools: tuple[Pool, Pool]) -> None:
    loss = VocoderLoss(pair, *pools, adversarial_from=3)
    assert set(loss(2)) == {"loss", "spectral", "mel"}
    assert set(loss(3)) == {"loss", "spectral", "mel", "fooling", "judging"}
