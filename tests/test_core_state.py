# SPDX-License-Identifier: Apache-2.0
"""Laws of the stream record, of the reference, of tokens and of noise."""

import pytest
import torch
from torch import Tensor

from idlora.core.noise import generators_for, initial_noise
from idlora.core.positions import audio_positions, reference_positions
from idlora.core.reference import attach_reference, detach_reference, on_target, target_part
from idlora.core.state import AVState, LatentState
from idlora.core.tokens import audio_to_tokens, tokens_to_audio, tokens_to_video, video_to_tokens


def stream(length: int = 7, batch: int = 2, seed: int = 0) -> LatentState:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, length, 4, generator=generator)
    mask = torch.ones(batch, length, 1)
    return LatentState(tokens, audio_positions(length).expand(batch, -1, -1, -1), mask, tokens + 1)


def referenced(target: LatentState, length: int, valid: Tensor | None = None) -> LatentState:
    batch = target.tokens.shape[0]
    tokens = torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(length))
    return attach_reference(target, tokens, reference_positions(length).expand(batch, -1, -1, -1), valid)


def same(a: LatentState, b: LatentState) -> bool:
    fields = ("tokens", "positions", "denoise_mask", "clean")
    return a.num_reference == b.num_reference and all(torch.equal(getattr(a, f), getattr(b, f)) for f in fields)


@pytest.mark.parametrize("length", [0, 1, 9])
def test_attach_then_detach_is_the_identity(length: int) -> None:
    assert same(detach_reference(referenced(stream(), length)), stream())


def test_a_reference_is_clean_and_at_timestep_zero() -> None:
    state = referenced(stream(), 5)
    assert state.timesteps(0.7)[:, :5].eq(0).all()
    assert state.timesteps(0.7)[:, 5:].eq(torch.tensor(0.7)).all()
    assert torch.equal(state.noised(torch.randn_like(state.tokens)).tokens[:, :5], state.tokens[:, :5])


def test_a_second_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="already"):
        referenced(referenced(stream(), 3), 3)


def test_validity_of_padding_travels_with_the_reference() -> None:
    valid = torch.tensor([[False, True, True], [True, True, True]])
    state = referenced(stream(), 3, valid)
    assert state.valid is not None
    assert torch.equal(state.valid[:, :3], valid)
    assert state.valid[:, 3:].all()


def test_target_part_inverts_on_target() -> None:
    delta = torch.randn(2, 4, 3)
    laid_out = on_target(delta, 5)
    assert laid_out.shape == (2, 9, 3)
    assert laid_out[:, :5].eq(0).all()
    assert torch.equal(target_part(laid_out, 5), delta)


def test_sigma_may_differ_by_sample() -> None:
    timesteps = stream().timesteps(torch.tensor([0.25, 0.5]))
    assert timesteps[0].eq(0.25).all()
    assert timesteps[1].eq(0.5).all()


def test_keep_clean_restores_masked_tokens_exactly() -> None:
    state = stream()
    mask = state.denoise_mask.clone()
    mask[:, :3] = 0
    state = LatentState(state.tokens, state.positions, mask, state.clean)
    kept = state.keep_clean(torch.full_like(state.tokens, 9.0))
    assert torch.equal(kept[:, :3], state.clean[:, :3])
    assert kept[:, 3:].eq(9).all()


def test_tokens_and_latents_invert_each_other() -> None:
    video, audio = torch.randn(2, 5, 3, 4, 6), torch.randn(2, 8, 7, 16)
    assert torch.equal(tokens_to_video(video_to_tokens(video), (3, 4, 6)), video)
    assert torch.equal(tokens_to_audio(audio_to_tokens(audio)), audio)


def test_token_order() -> None:
    video = torch.arange(2 * 3 * 4).reshape(1, 1, 2, 3, 4)
    assert video_to_tokens(video).flatten().tolist() == list(range(24))
    audio = torch.arange(2 * 3).reshape(1, 2, 1, 3)
    assert audio_to_tokens(audio).flatten().tolist() == list(range(6))


def av(num_reference: int, batch: int = 2) -> AVState:
    return AVState(stream(6, batch), referenced(stream(8, batch), num_reference))


def test_target_noise_does_not_depend_on_the_reference() -> None:
    long, short = (initial_noise(av(n), generators_for([3, 4])) for n in (9, 0))
    assert torch.equal(long[0], short[0])
    assert torch.equal(long[1][:, 9:], short[1])


def test_official_noise_depends_on_the_reference() -> None:
    long, short = (initial_noise(av(n), generators_for([3, 4]), official=True) for n in (9, 0))
    assert torch.equal(long[0], short[0])
    assert not torch.equal(long[1][:, 9:], short[1])


def test_official_noise_is_one_draw_after_the_video() -> None:
    generator = torch.Generator().manual_seed(5)
    video, audio = torch.randn(1, 6, 4, generator=generator), torch.randn(1, 17, 4, generator=generator)
    drawn = initial_noise(av(9, batch=1), generators_for([5]), official=True)
    assert torch.equal(drawn[0], video)
    assert torch.equal(drawn[1], audio)


def test_noise_of_a_batch_is_that_of_its_members() -> None:
    both = initial_noise(av(2), generators_for([3, 4]))
    second = initial_noise(av(2, batch=1), generators_for([4]))
    assert torch.equal(both[0][1:], second[0])
    assert torch.equal(both[1][1:], second[1])
