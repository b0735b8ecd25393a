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
from idlora.networks import attention
from idlora.networks.attention import attention_by
from idlora.networks.joint import JointModel, JointOptions
from idlora.pipeline import IDLoraPipeline
from tiny_pipeline import CARD, PICTURE, PROMPT, SETTINGS, voice


def pipeline() -> IDLoraPipeline:
    made = tiny_pipeline.real_components("2.3")
    return IDLoraPipeline(made, CARD, tiny_pipeline.adapter_for(made.transformer))


def test_the_clip_is_the_same_within_rounding() -> None:
    clips = []
    for backend in ("", "_native_math"):
        pipe = pipeline()
        pipe.attention = backend
        clips.append(pipe(PROMPT, image=PICTURE, voice=voice(), settings=SETTINGS).video.astype(float))
    assert abs(clips[0] - clips[1]).max() <= 1


@pytest.mark.parametrize(("reference_text", "masked"), [("block", 0), ("average", 1)])
def test_only_attention_without_masks_goes_there(
    reference_text: Any, masked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = list[tuple[bool, Any]](), dispatch_attention_fn

    def dispatch(*inputs: Any, attn_mask: Any, backend: Any, **options: Any) -> Any:
        asked.append((attn_mask is not None, backend))
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
    def active() -> Any:
        return _AttentionBackendRegistry.get_active_backend()[0]

    before = active()
    with attention_by("_native_math"):
        assert active() == AttentionBackendName._NATIVE_MATH
    assert active() == before


@pytest.mark.parametrize(
    ("backend", "told"),
    [("nonsense", "no attention backend 'nonsense'; choose one of"), ("flash", "backend flash does not work here")],
)
def test_what_is_no_backend_or_is_not_installed_is_refused(backend: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        attention_by(backend).__enter__()
