# SPDX-License-Identifier: Apache-2.0
"""A reference that hears nothing but itself: what it is, by other ways to the same numbers, and what it saves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
import tiny_pipeline
from idlora.core.guidance import Guidance, IdentityGuidance, ModalityGuidance, STGuidance, TextGuidance
from idlora.core.reference import attach_reference, detach_reference, reference_part
from idlora.core.state import AVState
from idlora.networks.blocks import BlockOptions, block_forward, reference_forward
from idlora.networks.executor import Executor
from idlora.networks.generations import GENERATIONS
from idlora.networks.joint import JointModel, JointOptions

ALL = pytest.mark.parametrize("generation", list(GENERATIONS))
ALONE, SIGMA, REFERENCE = JointOptions(reference_attention="alone"), 0.6, 3
FULL = Guidance(TextGuidance(3.0, 7.0), IdentityGuidance(3.0), STGuidance(blocks=(1,)), ModalityGuidance())


def model(generation: str, options: JointOptions = ALONE) -> JointModel:
    return JointModel(tiny.transformer(generation), options)


@ALL
@torch.no_grad()
def test_the_reference_is_a_clean_sound_of_its_own_without_text_or_picture(generation: str) -> None:
    """Block by block what the plain network makes of it as its only sound, isolated, at noise level 0."""
    net, state = model(generation), tiny.state()
    alone = replace(state, audio=reference_part(state.audio))
    (video, plain), streams = JointModel(net.transformer)._inputs(alone, torch.zeros(2), tiny.context(generation))
    hidden, inputs = net.enter_reference(state), net.reference_inputs(state)
    for block in net.transformer.transformer_blocks:
        hidden, _ = reference_forward(block, hidden, inputs)
        _, plain = block_forward(block, (video, plain), streams, BlockOptions(isolated=True, textless=REFERENCE))
        assert torch.allclose(hidden, plain, atol=1e-5)


@ALL
@torch.no_grad()
def test_the_target_hears_it_as_a_mask_would_have_it(generation: str) -> None:
    """In one block, streams isolated: joint attention in which the reference's rows see no target."""
    net, state = model(generation), tiny.state()
    block, options = net.transformer.transformer_blocks[0], BlockOptions(isolated=True)
    sigma, context = torch.full((2,), SIGMA), tiny.context(generation)
    xs, streams = net._inputs(state, sigma, context)
    _, target, reference = block_forward(block, xs, streams, options)
    whole, joint = JointModel(net.transformer)._inputs(state, sigma, context)
    length = whole[1].shape[1]
    bias = torch.zeros(2, length, length)
    bias[:, :REFERENCE, REFERENCE:] = torch.finfo(torch.float32).min
    masked = (joint[0], joint[1]._replace(key_bias=bias))
    _, found = block_forward(block, whole, masked, options._replace(textless=REFERENCE))
    assert torch.allclose(found[:, :REFERENCE], reference, atol=1e-5)
    assert torch.allclose(found[:, REFERENCE:], target, atol=1e-5)


@ALL
@torch.no_grad()
def test_it_is_computed_once_a_generation_for_all_passes_and_steps(generation: str) -> None:
    net, start = model(generation), tiny.state(batch=1)
    run = Executor(net, tiny.context(generation, 1), tiny.context(generation, 1, seed=9))
    plan, rows = FULL.plan(SIGMA, REFERENCE), list[int]()
    hooks = [
        block.audio_attn1.to_k.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[1]))
        for block in net.transformer.transformer_blocks
    ]
    for number in range(3):
        run(start.with_tokens(start.video.tokens + number, start.audio.tokens - number), SIGMA - number / 10, plan)
    for hook in hooks:
        hook.remove()
    assert rows.count(REFERENCE) == len(net.transformer.transformer_blocks)
    assert set(rows) == {REFERENCE, start.audio.tokens.shape[1] - REFERENCE}
    other = start.audio.clean.clone()
    other[:, 0] += 1
    changed = replace(start, audio=replace(start.audio, clean=other, tokens=other))
    before, after = (run(each, SIGMA, plan)["positive"].audio for each in (start, changed))
    assert not torch.allclose(before, after)  # another voice is not taken for the one before
    assert torch.equal(
        after, Executor(net, tiny.context(generation, 1), None)(changed, SIGMA, plan[:1])["positive"].audio
    )


@ALL
@torch.no_grad()
def test_padding_in_front_of_it_changes_nothing(generation: str) -> None:
    net, context = model(generation), tiny.context(generation)
    state = tiny.state()
    target = detach_reference(state.audio)
    padded = torch.cat([torch.full((2, 2, tiny.CHANNELS), 7.0), state.audio.clean[:, :REFERENCE]], dim=1)
    own = state.audio.positions[:, :, :REFERENCE]
    positions = torch.cat([own[:, :, :2] - 1.0, own], dim=2)
    valid = torch.tensor([[False] * 2 + [True] * REFERENCE] * 2)
    longer = AVState(state.video, attach_reference(target, padded, positions, valid))
    expected, found = (net.velocity(each, SIGMA, context) for each in (state, longer))
    assert torch.allclose(found.video, expected.video, atol=1e-5)
    assert torch.allclose(found.audio[:, REFERENCE + 2 :], expected.audio[:, REFERENCE:], atol=1e-5)


@ALL
@torch.no_grad()
def test_neither_text_nor_picture_nor_target_reach_it_and_no_option_changes_it(generation: str) -> None:
    """The keys that the target meets are the same; the velocity of the target hears the reference all the same."""
    net, state = model(generation), tiny.state()
    found = net.velocity(state, SIGMA, tiny.context(generation))
    assert not found.audio[:, :REFERENCE].any()
    for options in (replace(ALONE, mask_reference_to_video=True), replace(ALONE, reference_text="average")):
        other = model(generation, options).velocity(state, SIGMA, tiny.context(generation)).audio
        assert torch.equal(found.audio, other)
    louder = replace(state.audio, clean=state.audio.clean * 2)
    other = net.velocity(replace(state, audio=louder), SIGMA, tiny.context(generation)).audio
    assert not torch.allclose(found.audio[:, REFERENCE:], other[:, REFERENCE:])
    joint = model(generation, JointOptions()).velocity(state, SIGMA, tiny.context(generation)).audio
    assert not torch.allclose(found.audio[:, REFERENCE:], joint[:, REFERENCE:])


def test_without_a_reference_both_are_the_same_network() -> None:
    state, context = tiny.state(num_reference=0), tiny.context("2.3")
    with torch.no_grad():
        made = [model("2.3", options).velocity(state, SIGMA, context) for options in (ALONE, JointOptions())]
    assert torch.equal(made[0].audio, made[1].audio)
    assert torch.equal(made[0].video, made[1].video)


def test_clips_take_it_from_their_settings() -> None:
    pipe = tiny_pipeline.pipeline()

    def heard(how: Any) -> Any:
        return pipe(
            tiny_pipeline.PROMPT, image=tiny_pipeline.PICTURE, voice=tiny_pipeline.voice(), reference_attention=how
        ).audio

    alone, again, joint = (heard(how) for how in ("alone", "alone", "joint"))
    assert (alone == again).all()
    assert (alone != joint).any()
