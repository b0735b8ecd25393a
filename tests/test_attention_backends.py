# SPDX-License-Identifier: Apache-2.0
"""Attention by a backend of one's own choice: where it works, where it does not, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn

import tiny
import tiny_pipeline
from idlora.errors import SettingsError
from idlora.networks import attention, kernels
from idlora.networks.joint import JointModel, JointOptions
from idlora.networks.kernels import attention_by, or_without_cudnn
from idlora.pipeline import IDLoraPipeline
from tiny_pipeline import CARD, PICTURE, PROMPT, SETTINGS, voice


def pipeline() -> IDLoraPipeline:
    made = tiny_pipeline.real_components("2.3")
    return IDLoraPipeline(made, CARD, tiny_pipeline.adapter_for(made.transformer))


def active() -> Any:
    return _AttentionBackendRegistry.get_active_backend()[0]


def test_a_clip_is_made_by_it_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, used = [], set[Any]()

    def dispatch(*inputs: Any, **options: Any) -> Any:
        used.add(active())
        return dispatch_attention_fn(*inputs, **options)

    monkeypatch.setattr(attention, "dispatch_attention_fn", dispatch)
    for backend in ("", "_native_math"):
        pipe, before = pipeline(), set(used)
        pipe.attention = backend
        clips.append(pipe(PROMPT, image=PICTURE, voice=voice(), settings=SETTINGS))
        assert used - before == {AttentionBackendName(backend or "native")}
    assert abs(clips[0].video.astype(float) - clips[1].video).max() <= 1
    assert [clip.provenance["model"]["attention"] for clip in clips] == [None, "_native_math"]


def test_a_clip_by_what_does_not_work_here_is_not_begun() -> None:
    pipe = pipeline()
    pipe.attention = "_native_cudnn"
    with pytest.raises(SettingsError, match="_native_cudnn does not work on cpu in float32"):
        pipe.check(SETTINGS)


@pytest.mark.parametrize(("reference_text", "masked"), [("block", 0), ("average", 1)])
def test_only_attention_without_masks_goes_there(
    reference_text: Any, masked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_HAS_CUDNN", "cpu")
    asked, real = list[tuple[bool, Any]](), dispatch_attention_fn

    def dispatch(*inputs: Any, attn_mask: Any, backend: Any, **options: Any) -> Any:
        asked.append((attn_mask is not None, backend))
        assert torch.backends.cuda.cudnn_sdp_enabled() == (attn_mask is None)
        return real(*inputs, attn_mask=attn_mask, backend=backend, **options)

    monkeypatch.setattr(attention, "dispatch_attention_fn", dispatch)
    model = JointModel(tiny.transformer("2.3"), JointOptions(reference_text=reference_text))
    with torch.no_grad(), attention_by("_native_math"):
        model.velocity(tiny.state(), torch.tensor([0.7, 0.4]), tiny.context("2.3"))
    blocks = len(model.transformer.transformer_blocks)
    assert sum(there for there, _ in asked) == masked * blocks
    assert {backend for there, backend in asked if there} <= {AttentionBackendName.NATIVE}
    assert {backend for there, backend in asked if not there} == {None}  # the one inside the context


def test_the_choice_ends_with_its_context() -> None:
    before = active()
    with attention_by("_native_math"):
        assert active() == AttentionBackendName._NATIVE_MATH
    assert active() == before


def test_what_is_no_backend_or_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.models.attention_dispatch._CAN_USE_FLASH_ATTN", False)
    with pytest.raises(SettingsError, match="no attention backend 'nonsense'; known are"):
        attention_by("nonsense").__enter__()
    with pytest.raises(SettingsError, match="backend flash does not work here"):
        attention_by("flash").__enter__()


def test_where_cudnn_fails_the_process_goes_on_without_it(caplog: pytest.LogCaptureFixture) -> None:
    calls = list[bool]()

    def run() -> torch.Tensor:
        calls.append(torch.backends.cuda.cudnn_sdp_enabled())
        if calls[-1]:
            raise RuntimeError("Expected mha_graph->execute(handle).is_good() to be true, but got false.")
        return torch.ones(1)

    try:
        assert [float(or_without_cudnn(run)) for _ in range(2)] == [1.0, 1.0]
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled=True)
    assert calls == [True, False, False]
    assert "cuDNN's attention failed" in caplog.text


def test_other_failures_are_told() -> None:
    def run() -> torch.Tensor:
        raise RuntimeError("the sizes do not match")

    with pytest.raises(RuntimeError, match="the sizes do not match"):
        or_without_cudnn(run)
    assert torch.backends.cuda.cudnn_sdp_enabled()
