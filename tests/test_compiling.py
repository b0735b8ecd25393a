# SPDX-License-Identifier: Apache-2.0
"""Compiled blocks: one compilation serves references, texts and clips of any length, with the same numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tiny
from idlora.core.guidance import Pass
from idlora.core.state import AVState, LatentState
from idlora.networks import kernels
from idlora.networks.executor import Executor
from idlora.networks.joint import JointModel, JointOptions, TextContext
from test_executor import ALONE, SIGMA, assert_same

MASKED = JointOptions(mask_reference_to_video=True, reference_text="block")
PLAN = [Pass("positive"), Pass("negative", negative_text=True), Pass("no_reference", reference=False)]
LENGTHS = [(3, 5, 8), (4, 5, 8), (5, 7, 8), (2, 9, 6), (8, 8, 8)]  # tokens of reference, text and video; some equal


@pytest.fixture
def graphs() -> list[Any]:
    """What has been compiled."""
    torch._dynamo.reset()
    return []


def counting(graphs: list[Any]) -> Callable[..., Any]:
    """A backend that compiles nothing and counts."""

    def compiled(graph: Any, _inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    return compiled


def text(length: int, seed: int) -> TextContext:
    made = tiny.context("2.3", 1, seed)
    return TextContext(*(torch.cat([each, each], dim=1)[:, :length] for each in (made.video, made.audio)))


def state(num_reference: int, num_video: int) -> AVState:
    whole = tiny.state(num_reference, batch=1)
    video = whole.video
    parts = (video.tokens, video.denoise_mask, video.clean)
    tokens, mask, clean = (each[:, :num_video] for each in parts)
    return AVState(LatentState(tokens, video.positions[:, :, :num_video], mask, clean), whole.audio)


@pytest.mark.parametrize(("options", "forms"), [(MASKED, 2), (ALONE, 2)], ids=["masked", "alone"])
@torch.no_grad()
def test_other_lengths_meet_what_is_compiled(options: JointOptions, forms: int, graphs: list[Any]) -> None:
    net, plain = (JointModel(tiny.transformer("2.3"), options) for _ in range(2))
    net.compile_blocks(fullgraph=True, backend=counting(graphs))
    counts = []
    for num_reference, num_text, num_video in LENGTHS:
        made, texts = state(num_reference, num_video), (text(num_text, 5), text(num_text, 9))
        assert_same(Executor(net, *texts)(made, SIGMA, PLAN), Executor(plain, *texts)(made, SIGMA, PLAN))
        counts.append(len(graphs))
    assert counts == [forms] * len(LENGTHS)


@pytest.mark.usefixtures("graphs")
@torch.no_grad()
def test_masks_compile_where_they_choose_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_HAS_CUDNN", "cpu")
    options = JointOptions(mask_reference_to_video=True, reference_text="average")
    net, plain = (JointModel(tiny.transformer("2.3"), options) for _ in range(2))
    net.compile_blocks(fullgraph=True, backend="aot_eager")
    made, texts = state(4, 8), (text(5, 5), text(5, 9))
    assert_same(Executor(net, *texts)(made, SIGMA, PLAN), Executor(plain, *texts)(made, SIGMA, PLAN))
    assert torch.backends.cuda.cudnn_sdp_enabled()


@torch.no_grad()
def test_lengths_are_compiled_in_where_that_is_asked_for(graphs: list[Any]) -> None:
    net = JointModel(tiny.transformer("2.3"))
    net.compile_blocks(fullgraph=True, backend=counting(graphs), dynamic=False)
    for number, num_reference in enumerate((3, 4), 1):
        net.velocity(tiny.state(num_reference, batch=1), SIGMA, text(5, 5))
        assert len(graphs) >= number
    assert len(graphs) > 1
