# SPDX-License-Identifier: Apache-2.0
"""Samplers on a field with a known solution; flow and schedules by their laws."""

import math

import pytest
import torch
from torch import Tensor

from idlora.core.flow import interpolate, masked_loss, velocity_target, x0_from_velocity
from idlora.core.noise import Generators, generators_for
from idlora.core.positions import audio_positions, reference_positions, video_positions
from idlora.core.reference import attach_reference
from idlora.core.samplers import Callback, Step, res2s_weights, sample_euler, sample_res2s
from idlora.core.schedules import logit_normal_sigmas, ltx2_sigmas, shift_mu, stretched_logit_normal_sigmas
from idlora.core.state import AVState, LatentState
from idlora.errors import Cancelled, SettingsError

SPREAD = 0.6  # of the data: Gaussian, so that denoiser and trajectories are known


def spread_at(sigma: float) -> float:
    return math.sqrt((1 - sigma) ** 2 * SPREAD**2 + sigma**2)


def gaussian_denoiser(state: AVState, sigma: float) -> AVState:
    """E[x0 | x] for Gaussian data: x (1 - sigma) SPREAD^2 / ((1 - sigma)^2 SPREAD^2 + sigma^2)."""
    factor = (1 - sigma) * SPREAD**2 / spread_at(sigma) ** 2
    return state.with_tokens(state.video.tokens * factor, state.audio.tokens * factor)


def start(num_reference: int = 3, batch: int = 2, dtype: torch.dtype = torch.float64) -> AVState:
    generator = torch.Generator().manual_seed(2)
    video, audio, reference = (torch.randn(2, n, 4, generator=generator, dtype=dtype)[-batch:] for n in (8, 6, 3))
    mask = torch.ones(batch, 8, 1, dtype=dtype)
    mask[:, :4] = 0
    v = LatentState(video, video_positions((2, 2, 2), 25.0), mask, video)
    a = LatentState(audio, audio_positions(6), torch.ones(batch, 6, 1, dtype=dtype), audio)
    if num_reference:
        a = attach_reference(a, reference, reference_positions(3))
    return AVState(v, a)


def moving(state: AVState) -> Tensor:
    return torch.cat([state.video.tokens[:, 4:], state.audio.tokens[:, state.audio.num_reference :]], dim=1)


def error_of(sampler: object, num_steps: int, first: float = 0.9, last: float = 0.2) -> float:
    """Distance from the exact solution x(last) = x(first) * spread(last) / spread(first)."""
    state = start()
    ratio = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    sigmas = first * (last / first) ** ratio
    assert callable(sampler)
    end = sampler(gaussian_denoiser, state, sigmas)
    exact = moving(state) * spread_at(last) / spread_at(first)
    return float((moving(end) - exact).abs().max())


@pytest.mark.parametrize(("sampler", "order"), [(sample_euler, 1), (sample_res2s, 2)])
def test_order_of_convergence(sampler: object, order: int) -> None:
    coarse, fine = error_of(sampler, 20), error_of(sampler, 40)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("sampler", [sample_euler, sample_res2s])
def test_a_constant_denoised_state_is_reached_exactly(sampler: object) -> None:
    goal = start()

    def model(state: AVState, _sigma: float) -> AVState:
        return state.with_tokens(goal.video.clean * 0 + 2.0, goal.audio.clean * 0 - 3.0)

    assert callable(sampler)
    end = sampler(model, start(), ltx2_sigmas(4))
    assert end.video.tokens[:, 4:].eq(2).all()
    assert end.audio.tokens[:, 3:].sub(-3).abs().max() < 1e-12


def test_res2s_weights_add_up_to_the_exponential_step() -> None:
    for h in (1e-3, 0.3, 2.0):
        assert sum(res2s_weights(h)) == pytest.approx(-math.expm1(-h))


def run_res2s(state: AVState, generators: Generators | None) -> AVState:
    return sample_res2s(gaussian_denoiser, state, ltx2_sigmas(5), generators=generators)


@pytest.mark.parametrize("noisy", [False, True])
def test_given_tokens_never_change(noisy: bool) -> None:
    state = start(dtype=torch.float32)
    for end in (
        sample_euler(gaussian_denoiser, state, ltx2_sigmas(5)),
        run_res2s(state, generators_for([1, 2]) if noisy else None),
    ):
        assert torch.equal(end.video.tokens[:, :4], state.video.clean[:, :4])
        assert torch.equal(end.audio.tokens[:, :3], state.audio.clean[:, :3])


def test_the_same_seed_gives_the_same_bytes_and_another_other_noise() -> None:
    first, again, other = (run_res2s(start(), generators_for(seeds)) for seeds in ([1, 2], [1, 2], [5, 2]))
    assert torch.equal(moving(first), moving(again))
    assert not torch.allclose(moving(first)[0], moving(other)[0])
    assert torch.equal(moving(first)[1], moving(other)[1])


def test_a_batch_equals_its_members() -> None:
    both = run_res2s(start(), generators_for([1, 2]))
    second = run_res2s(start(batch=1), generators_for([2]))
    torch.testing.assert_close(moving(both)[1:], moving(second), rtol=0, atol=1e-12)


def test_res2s_noise_does_not_depend_on_the_reference() -> None:
    with_reference, without = (run_res2s(start(n), generators_for([1, 2])) for n in (3, 0))
    torch.testing.assert_close(moving(with_reference), moving(without), rtol=0, atol=1e-12)


def test_fresh_noise_preserves_level_and_signal() -> None:
    """With a known x0 the state is (1 - sigma) x0 + sigma noise at every level, noise replaced or not."""
    noise = torch.randn(1, 1000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stream = LatentState(noise, audio_positions(1000), torch.ones(1, 1000, 1), noise)

    def model(state: AVState, _sigma: float) -> AVState:
        return state.with_tokens(torch.full_like(noise, 2.0), torch.full_like(noise, 2.0))

    sigmas = torch.linspace(1.0, 0.3, 20, dtype=torch.float64)
    end = sample_res2s(model, AVState(stream, stream), sigmas, generators=generators_for([0]))
    remaining = (end.audio.tokens - 0.7 * 2.0) / 0.3
    assert remaining.std().item() == pytest.approx(1.0, abs=0.03)
    assert remaining.mean().item() == pytest.approx(0.0, abs=0.03)
    assert (remaining * noise).mean().abs() < 0.3


def test_the_model_sees_the_dtype_of_the_state() -> None:
    seen = []

    def model(state: AVState, sigma: float) -> AVState:
        seen.append(state.audio.tokens.dtype)
        return gaussian_denoiser(state, sigma)

    end = sample_res2s(model, start(dtype=torch.float32), ltx2_sigmas(3))
    assert set(seen) == {torch.float32}
    assert len(seen) == 2 * 3 + 1
    assert end.audio.tokens.dtype == torch.float32


@pytest.mark.parametrize("sampler", [sample_euler, sample_res2s])
def test_a_callback_can_cancel(sampler: object) -> None:
    steps: list[Step] = []

    def stop_at_third(step: Step) -> bool:
        steps.append(step)
        return step.number < 2

    callback: Callback = stop_at_third
    assert callable(sampler)
    with pytest.raises(Cancelled, match="step 3 of 5"):
        sampler(gaussian_denoiser, start(), ltx2_sigmas(5), callback=callback)
    assert [step.number for step in steps] == [0, 1, 2]


def test_interpolation_and_x0_invert_each_other() -> None:
    clean, noise = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    t = torch.rand(2, 5, dtype=torch.float64)
    t[:, 0] = 0
    noisy = interpolate(clean, noise, t)
    torch.testing.assert_close(x0_from_velocity(noisy, velocity_target(clean, noise), t), clean)
    assert torch.equal(x0_from_velocity(noisy, torch.randn_like(noisy), t)[:, 0], noisy[:, 0])


def test_masked_loss_ignores_what_is_masked_and_weighs_the_rest() -> None:
    prediction, target = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    error = (prediction - target).square().mean(-1)
    assert masked_loss(prediction, target, mask).item() == pytest.approx(error[mask == 1].mean().item())
    each = [error[b][mask[b] == 1].mean() for b in range(2)]
    assert masked_loss(prediction, target, mask, per_sample=True).item() == pytest.approx(float(sum(each)) / 2)


@pytest.mark.parametrize("num_steps", [1, 2, 30])
def test_schedule_descends_from_one_to_zero(num_steps: int) -> None:
    sigmas = ltx2_sigmas(num_steps)
    assert sigmas.shape == (num_steps + 1,)
    assert 1 - 1e-6 < sigmas[0] <= 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    if num_steps > 1:
        assert sigmas[-2].item() == pytest.approx(0.1)


def test_more_tokens_keep_the_noise_up_for_longer() -> None:
    assert (ltx2_sigmas(10, 4096)[1:-2] > ltx2_sigmas(10, 1024)[1:-2]).all()


def test_a_schedule_needs_a_step() -> None:
    with pytest.raises(SettingsError, match="0"):
        ltx2_sigmas(0)


def test_training_sigmas_lie_in_the_unit_interval() -> None:
    for draw in (logit_normal_sigmas, stretched_logit_normal_sigmas):
        sigmas = draw(10_000, shift_mu(2304), torch.Generator().manual_seed(0))
        assert 0 <= sigmas.min() < sigmas.max() <= 1
    # Only the newer draw reaches both ends.
    assert sigmas.max() > 0.995
    assert sigmas.min() < 0.02
