# SPDX-License-Identifier: Apache-2.0
"""Controls of the golden cases: each way of getting the method wrong moves the stored outputs by more than 1e-2."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from idlora.core.positions import audio_positions, reference_positions
from idlora.core.state import AVState, LatentState
from idlora.networks.generations import GENERATIONS
from idlora.networks.joint import JointModel, Pass, Prediction
from parity import read_vectors
from parity_inputs import Generation, Stored, context_of, forward_state, stg_blocks

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = pytest.mark.parametrize("folder", ["ltx2.0", "ltx2.3"])


def golden(folder: str) -> tuple[Generation, Stored]:
    stored = read_vectors(GOLDEN, f"{folder}/bcd_ref_s1.safetensors", {})
    return Generation(GOLDEN / folder, read_vectors), stored


def difference(prediction: Prediction, stored: Stored, key: str) -> float:
    video = (prediction.video - stored[f"{key}.video_velocity"]).abs().max().item()
    return max(video, (prediction.audio - stored[f"{key}.audio_velocity"]).abs().max().item())


def moved_reference(audio: LatentState, reference: torch.Tensor) -> LatentState:
    positions = torch.cat([reference, audio.positions[:, :, audio.num_reference :]], dim=2)
    return replace(audio, positions=positions)


def positive_positions(audio: LatentState) -> LatentState:
    return moved_reference(audio, audio_positions(audio.num_reference))


def without_gap(audio: LatentState) -> LatentState:
    return moved_reference(audio, reference_positions(audio.num_reference, time="adjacent"))


def target_timestep(audio: LatentState) -> LatentState:
    return replace(audio, denoise_mask=torch.ones_like(audio.denoise_mask))


@FOLDERS
@pytest.mark.parametrize("mistake", [positive_positions, without_gap, target_timestep])
@torch.no_grad()
def test_a_wrong_reference_is_noticed(folder: str, mistake: Callable[[LatentState], LatentState]) -> None:
    generation, stored = golden(folder)
    right = forward_state(stored)
    wrong = AVState(right.video, mistake(right.audio))
    model, sigma, context = generation.model(), stored["in.sigma"], context_of(stored)
    assert difference(model.velocity(right, sigma, context), stored, "out.b_ref") < 1e-4
    assert difference(model.velocity(wrong, sigma, context), stored, "out.b_ref") > 1e-2


@FOLDERS
@torch.no_grad()
def test_the_other_meaning_of_stg_is_noticed(folder: str) -> None:
    generation, stored = golden(folder)
    right = generation.model()
    other = {"skip": "value", "value": "skip"}[right.generation.stg]
    wrong = JointModel(right.transformer, generation=replace(right.generation, stg=other))  # type: ignore[arg-type]
    run = Pass("perturbed", perturbed_blocks=stg_blocks(stored.meta))
    state, sigma, context = forward_state(stored), stored["in.sigma"], context_of(stored)
    assert difference(right.velocity(state, sigma, context, run), stored, "out.c_stg_av") < 1e-4
    assert difference(wrong.velocity(state, sigma, context, run), stored, "out.c_stg_av") > 1e-2


@FOLDERS
@torch.no_grad()
def test_the_other_cross_timestep_is_noticed(folder: str) -> None:
    generation, stored = golden(folder)
    right = generation.model()
    wrong_row = replace(right.generation, cross_timestep=not right.generation.cross_timestep)
    wrong = JointModel(right.transformer, generation=wrong_row)
    prediction = wrong.velocity(forward_state(stored), stored["in.sigma"], context_of(stored))
    assert difference(prediction, stored, "out.b_ref") > 1e-2


def test_generations_differ_where_the_controls_say() -> None:
    assert GENERATIONS["2.0"].stg != GENERATIONS["2.3"].stg
    assert GENERATIONS["2.0"].cross_timestep != GENERATIONS["2.3"].cross_timestep
