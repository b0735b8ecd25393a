# SPDX-License-Identifier: Apache-2.0
"""Steps replayed as CUDA graphs give the numbers of steps that run; what cannot be recorded is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
import tiny_pipeline
from idlora.core.guidance import Pass
from idlora.core.state import AVState
from idlora.errors import SettingsError
from idlora.networks.executor import Executor
from idlora.networks.graphs import Recorder
from idlora.networks.joint import JointModel
from idlora.pipeline import IDLoraPipeline, Placement
from idlora.pipeline.checks import check_graphs
from tiny import context, state
from tiny_pipeline import CARD, PICTURE, PROMPT, SETTINGS, voice

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
GPU = torch.device("cuda")


def pipeline(**chosen: Any) -> IDLoraPipeline:
    made = tiny_pipeline.real_components("2.3")
    return IDLoraPipeline(made, CARD, tiny_pipeline.adapter_for(made.transformer), **chosen)


def there(made: Any) -> Any:
    """A record with its tensors on the GPU."""
    moved = {name: value.to(GPU) for name, value in vars(made).items() if isinstance(value, torch.Tensor)}
    return replace(made, **moved)


def test_without_a_gpu_no_work_begins() -> None:
    pipe = pipeline()
    pipe.graphs = True
    with pytest.raises(SettingsError, match="--graphs needs an NVIDIA GPU, and this runs on cpu"):
        pipe(PROMPT, image=PICTURE, voice=voice(), settings=SETTINGS)


@pytest.mark.parametrize(
    ("settings", "placement", "why"),
    [
        (SETTINGS, Placement("stream"), "leave --graphs out, or make room for --placement offload"),
        (replace(SETTINGS, first_block_cache=0.1), Placement(), "--first-block-cache 0"),
    ],
)
def test_steps_that_are_not_alike_are_refused(settings: Any, placement: Placement, why: str) -> None:
    check_graphs(SETTINGS, Placement("offload"), GPU, wanted=True)
    with pytest.raises(SettingsError, match=why):
        check_graphs(settings, placement, GPU, wanted=True)


def test_an_executor_that_leaves_blocks_out_is_not_recorded() -> None:
    model = JointModel(tiny.transformer("2.3"))
    with pytest.raises(ValueError, match="the same blocks"):
        Recorder(Executor(model, context("2.3"), first_block=0.1))


@on_gpu
@pytest.mark.parametrize("sampler", ["euler", "res2s"])
@pytest.mark.parametrize("where", ["whole", "offload"])
def test_clips_are_those_of_steps_that_run(where: Any, sampler: Any) -> None:
    settings, digests = replace(SETTINGS, sampler=sampler, num_inference_steps=4), set()
    for graphs in (False, True):
        pipe = pipeline(device=GPU, placement=Placement(where))
        pipe.graphs = graphs
        digests.add(tiny_pipeline.digest(pipe(PROMPT, image=PICTURE, voice=voice(), settings=settings)))
    assert len(digests) == 1


@on_gpu
@pytest.mark.parametrize("generation", ["2.0", "2.3"])
@torch.no_grad()
def test_predictions_are_those_of_the_executor_for_any_tokens_and_level(generation: str) -> None:
    model = JointModel(tiny.fresh_transformer(generation).to(GPU))
    moved = [there(context(generation, seed=seed)) for seed in (1, 2)]
    plans = [Pass("positive"), Pass("text", negative_text=True), Pass("identity", reference=False)], [Pass("positive")]
    made = state()
    start = AVState(there(replace(made.video, masking="binary")), there(replace(made.audio, masking="ones")))
    plain, recorded = (Executor(model, *moved) for _ in range(2))
    replay = Recorder(recorded)
    for step, sigma in enumerate((0.9, 0.7, 0.5, 0.3, 0.1)):
        now = start.with_tokens(torch.randn_like(start.video.tokens), torch.randn_like(start.audio.tokens))
        expected, found = (run(now, sigma, plans[step % 2]) for run in (plain, replay))
        assert expected.keys() == found.keys()
        for name, each in expected.items():
            torch.testing.assert_close(found[name].video, each.video, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found[name].audio, each.audio, rtol=1e-5, atol=1e-6)
