# SPDX-License-Identifier: Apache-2.0
"""First-block caching: off it is not there; what did not change is told exactly; what changed is computed."""

from typing import Any

import pytest
import torch

import tiny
import tiny_pipeline
from idlora.core.state import AVState
from idlora.errors import SettingsError
from idlora.networks.executor import Executor, Sharing
from idlora.pipeline import Settings
from test_executor import FULL, SIGMA, assert_same, executor, model

PLAN = FULL.plan(SIGMA, 3)


def cached(threshold: float, generation: str = "2.3") -> Executor:
    texts = tiny.context(generation, 1), tiny.context(generation, 1, seed=9)
    return Executor(model(generation), *texts, Sharing(), threshold)


def moved(state: AVState, by: float) -> AVState:
    return state.with_tokens(state.video.tokens * (1 + by), state.audio.tokens * (1 - by))


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
@torch.no_grad()
def test_a_step_like_the_last_one_is_told_from_its_first_block(generation: str) -> None:
    run, state = cached(0.05, generation), tiny.state(batch=1)
    blocks = counted(run)
    first = run(state, SIGMA, PLAN)
    whole = len(blocks)
    assert_same(run(state, SIGMA, PLAN), first)
    assert whole < len(blocks) <= 2 * whole / len(run.model.transformer.transformer_blocks) + whole
    assert (run.caches[True].taken, run.caches[True].steps) == (1, 2)


@torch.no_grad()
def test_a_step_that_differs_is_computed_and_then_is_what_is_compared_with() -> None:
    run, plain, state = cached(0.05), executor(model("2.3"), "2.3"), tiny.state(batch=1)
    for other in (state, moved(state, 0.6), moved(state, 0.6)):
        assert_same(run(other, SIGMA, PLAN), plain(other, SIGMA, PLAN))
    assert run.caches[True].taken == 1
    assert not executor(model("2.3"), "2.3").caches


@torch.no_grad()
def test_a_pass_that_the_last_step_did_not_have_is_computed_and_fewer_are_told() -> None:
    run, plain, state = cached(0.05), executor(model("2.3"), "2.3"), tiny.state(batch=1)
    for plan in (PLAN[:2], PLAN, PLAN[:2], tiny_plan_without_reference()):
        assert_same(run(state, SIGMA, plan), plain(state, SIGMA, plan))
    assert run.caches[True].taken == 2


def tiny_plan_without_reference() -> list[Any]:
    return [run for run in PLAN if run.name in ("positive", "identity")]


def counted(run: Executor) -> list[int]:
    seen: list[int] = []
    run_block = run.model.run_block

    def watched(*inputs: Any) -> Any:
        seen.append(1)
        return run_block(*inputs)

    run.model.run_block = watched  # type: ignore[assignment, method-assign]
    return seen


def test_a_clip_changes_with_it_and_not_without() -> None:
    pipe = tiny_pipeline.pipeline("2.3")
    plain, off, on = (
        tiny_pipeline.digest(
            pipe(tiny_pipeline.PROMPT, voice=tiny_pipeline.voice(), num_inference_steps=4, first_block_cache=each)
        )
        for each in (0.0, 0.0, 5.0)
    )
    assert plain == off != on


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_threshold_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(SettingsError, match="first_block_cache"):
        Settings(first_block_cache=value)
