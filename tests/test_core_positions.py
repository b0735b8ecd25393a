# SPDX-License-Identifier: Apache-2.0
"""Laws of positions. The stored tables are compared in `test_parity.py`."""

from typing import get_args

import pytest
import torch

from idlora.core.positions import (
    FAR,
    REFERENCE_GAP,
    ReferenceTime,
    audio_positions,
    reference_positions,
    round_positions,
    video_positions,
)
from idlora.core.state import AVState, LatentState
from idlora.pipeline.generation import with_references


@pytest.mark.parametrize("length", [1, 25, 126])
def test_a_reference_ends_one_gap_before_the_target(length: int) -> None:
    reference = reference_positions(length)
    assert reference[0, 0, -1, 1].item() == pytest.approx(-REFERENCE_GAP, abs=1e-7)
    assert reference[0, 0, 0, 0].item() == pytest.approx(-(4 * length + 1) / 100, abs=1e-6)
    widths = reference[..., 1] - reference[..., 0]
    torch.testing.assert_close(widths, (audio_positions(length)[..., 1] - audio_positions(length)[..., 0]))


def test_an_empty_reference_has_no_positions() -> None:
    assert reference_positions(0).shape == (1, 1, 0, 2)


def test_other_places_of_a_reference_keep_its_inner_times() -> None:
    own, target = audio_positions(50), audio_positions(300)
    placed = {time: reference_positions(50, time=time) for time in get_args(ReferenceTime)}
    for bounds in placed.values():
        torch.testing.assert_close(bounds - bounds[:, :, :1], own - own[:, :, :1], atol=3e-6, rtol=0)
    assert torch.equal(placed["shared"], own)
    assert placed["adjacent"][0, 0, -1, 1] == 0
    torch.testing.assert_close(placed["adjacent"] - placed["negative"], torch.full_like(own, REFERENCE_GAP))
    assert placed["far"].min() == FAR > target.max()


def test_a_placed_reference_is_where_training_and_inference_have_it() -> None:
    tokens, empty = torch.ones(7, 3), torch.zeros(1, 9, 3)
    target = LatentState(empty, audio_positions(9), torch.ones(1, 9, 1), empty)
    for time in get_args(ReferenceTime):
        state = with_references(target, [tokens], "fp32", time)
        assert torch.equal(state.positions[:, :, :7], reference_positions(7, time=time))


def test_audio_tokens_tile_time_at_25_a_second() -> None:
    bounds = audio_positions(26)[0, 0]
    assert torch.equal(bounds[1:, 0], bounds[:-1, 1])
    assert bounds[0].tolist() == pytest.approx([0.0, 0.01])
    assert bounds[25, 1].item() == pytest.approx(1.01)


def test_video_tokens_tile_the_clip() -> None:
    bounds = video_positions((3, 2, 4), 25.0)[0].reshape(3, 3, 2, 4, 2)
    assert bounds[0, :, 0, 0].flatten().tolist() == pytest.approx([0, 1 / 25, 1 / 25, 9 / 25, 9 / 25, 17 / 25])
    assert bounds[1, 0, :, 0].flatten().tolist() == [0, 32, 32, 64]
    assert bounds[2, 0, 0, :, 0].tolist() == [0, 32, 64, 96]


def test_frame_rate_scales_time_alone() -> None:
    slow, fast = video_positions((3, 2, 2), 12.0), video_positions((3, 2, 2), 24.0)
    torch.testing.assert_close(slow[:, 0], fast[:, 0] * 2)
    assert torch.equal(slow[:, 1:], fast[:, 1:])


def _state() -> AVState:
    video, audio = video_positions((3, 2, 3), 25.0), audio_positions(17)

    def stream(positions: torch.Tensor) -> LatentState:
        tokens = torch.zeros(1, positions.shape[2], 1)
        return LatentState(tokens, positions, torch.ones_like(tokens), tokens)

    return AVState(stream(video), stream(audio))


def test_roundings_touch_what_the_official_code_rounds() -> None:
    plain, inference, training = (round_positions(_state(), r) for r in ("fp32", "bf16-inference", "bf16-training"))
    assert plain.video.positions.dtype == plain.audio.positions.dtype == torch.float32
    assert inference.video.positions.dtype == torch.bfloat16
    assert torch.equal(inference.audio.positions, plain.audio.positions)
    assert training.audio.positions.dtype == torch.bfloat16


def test_rounding_moves_the_reference_by_up_to_a_token() -> None:
    exact, rounded = reference_positions(126), reference_positions(126, "bf16-inference").float()
    error = (exact - rounded).abs().max().item()
    assert 0.01 < error < 0.04
