# SPDX-License-Identifier: Apache-2.0
"""Laws of the training step; its numbers are compared with the official ones in `test_parity.py`."""

from dataclasses import replace

import pytest
import torch

import tiny
from idlora.core.positions import audio_positions, reference_positions, video_positions
from idlora.networks.joint import JointModel, JointOptions
from idlora.training.objective import Objective, TrainingBatch, training_state, training_step

MASKED = JointOptions(mask_reference_to_video=True, reference_text="block")


def batch(size: int = 2) -> TrainingBatch:
    conditioned = torch.zeros(size, 8, dtype=torch.bool)
    conditioned[0, :4] = True
    return TrainingBatch(
        video=tiny.normal(size, 8, tiny.CHANNELS, seed=1),
        audio=tiny.normal(size, 5, tiny.CHANNELS, seed=2),
        video_noise=tiny.normal(size, 8, tiny.CHANNELS, seed=3),
        audio_noise=tiny.normal(size, 5, tiny.CHANNELS, seed=4),
        sigmas=torch.tensor([0.3, 0.9])[:size],
        video_positions=video_positions(tiny.SIZE, 25.0),
        audio_positions=audio_positions(5),
        context=tiny.context("2.3", size),
        conditioned=conditioned,
        reference=tiny.normal(size, 3, tiny.CHANNELS, seed=5),
        reference_positions=reference_positions(3),
    )


def model() -> JointModel:
    return JointModel(tiny.transformer("2.3"), MASKED)


def test_given_tokens_and_the_reference_enter_clean() -> None:
    made = batch()
    state = training_state(made)
    assert made.reference is not None
    assert torch.equal(state.video.tokens[0, :4], made.video[0, :4])
    assert not torch.equal(state.video.tokens[1, :4], made.video[1, :4])
    assert torch.equal(state.audio.tokens[:, :3], made.reference)
    assert state.audio.num_reference == 3


@torch.no_grad()
def test_given_tokens_do_not_enter_the_loss() -> None:
    made = batch(1)
    changed = made.video_noise.clone()
    changed[:, :4] = 100
    first = training_step(model(), made).losses
    assert training_step(model(), replace(made, video_noise=changed)).losses == first


@torch.no_grad()
def test_losses_add_up() -> None:
    losses = training_step(model(), batch(), Objective(audio_weight=0.5)).losses
    assert losses.total.item() == pytest.approx((losses.video + 0.5 * losses.audio).item())


@torch.no_grad()
def test_losses_by_sample_are_the_mean_of_the_members() -> None:
    made = batch()
    both = training_step(model(), made, Objective(per_sample=True)).losses
    single = [_member(made, b) for b in range(2)]
    mean = sum(training_step(model(), one).losses.total.item() for one in single) / 2
    assert both.total.item() == pytest.approx(mean, rel=1e-5)


def _member(made: TrainingBatch, b: int) -> TrainingBatch:
    one = slice(b, b + 1)
    assert made.conditioned is not None
    assert made.reference is not None
    return replace(
        made,
        video=made.video[one],
        audio=made.audio[one],
        video_noise=made.video_noise[one],
        audio_noise=made.audio_noise[one],
        sigmas=made.sigmas[one],
        conditioned=made.conditioned[one],
        reference=made.reference[one],
        context=tiny.text_rows(made.context, one),
    )


@torch.no_grad()
def test_padding_does_not_change_the_losses() -> None:
    made = batch()
    assert made.reference is not None

    def behind(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x.new_full((2, 2, x.shape[2]), 9.0)], dim=1)

    padded = replace(
        made,
        audio=behind(made.audio),
        audio_noise=behind(made.audio_noise),
        audio_positions=audio_positions(7),
        audio_valid=torch.tensor([[True] * 5 + [False] * 2] * 2),
        reference=torch.cat([made.reference.new_full((2, 2, tiny.CHANNELS), 9.0), made.reference], dim=1),
        reference_positions=torch.cat([reference_positions(3)[:, :, :1].repeat(1, 1, 2, 1), reference_positions(3)], 2),
        reference_valid=torch.tensor([[False] * 2 + [True] * 3] * 2),
    )
    for a, b in zip(training_step(model(), padded).losses, training_step(model(), made).losses, strict=True):
        assert a.item() == pytest.approx(b.item(), rel=1e-5)


def test_the_base_stage_trains_without_a_reference() -> None:
    made = replace(batch(), reference=None, reference_positions=None, conditioned=None)
    step = training_step(model(), made)
    assert step.prediction.audio.shape == made.audio.shape
    wanted = [step.state.audio.num_reference, bool(step.state.video.denoise_mask.eq(1).all())]
    assert wanted == [0, True]


def test_a_reference_without_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="positions"):
        training_state(replace(batch(), reference_positions=None))


@torch.no_grad()
def test_training_precision_is_an_option() -> None:
    exact, rounded = (training_step(model(), batch(), Objective(rounding=r)) for r in ("fp32", "bf16-training"))
    assert rounded.state.audio.positions.dtype == torch.bfloat16
    assert exact.losses.total != rounded.losses.total
