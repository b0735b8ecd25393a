# SPDX-License-Identifier: Apache-2.0
"""Two stages: the sound of the first one stays, the picture grows; adapters at the strengths that a stage asks for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import tiny_pipeline
from idlora.core.guidance import NEUTRAL
from idlora.core.state import AVState
from idlora.errors import InputError, SettingsError, WeightsError
from idlora.networks.adapter import IDENTITY, AdapterWeights, fuse_adapter, read_adapter, write_adapter
from idlora.networks.joint import JointModel
from idlora.networks.stack import DISTILLED, AdapterStack
from idlora.pipeline import IDLoraPipeline, Placement, Refinement, Settings
from idlora.pipeline.generation import stages
from tiny_pipeline import CARD, GUIDANCE, PICTURE, PROMPT, voice

WHOLE = Settings(num_frames=9, height=128, width=128, num_inference_steps=2, guidance=GUIDANCE)
REFINE = Refinement((0.9, 0.4, 0.0), distilled=0.8)


@pytest.fixture
def pipe(tmp_path: Path) -> IDLoraPipeline:
    """A pipeline of its own, with identity and distilled adapters and an upscaler."""
    made = tiny_pipeline.real_components("2.3")
    weights = tiny_pipeline.adapter_for(made.transformer)
    write_adapter(tmp_path / "distilled.safetensors", tiny_pipeline.adapter_for(made.transformer, seed=5))
    found = IDLoraPipeline(made, CARD, weights)
    found.add_adapter(DISTILLED, tmp_path / "distilled.safetensors")
    return found


def test_the_first_stage_has_half_the_size_and_the_second_the_text_alone() -> None:
    assert stages(WHOLE) == (WHOLE,)
    first, second = stages(replace(WHOLE, refine=REFINE))
    assert (first.height, first.width) == (64, 64)
    assert first.guidance == GUIDANCE
    assert (second.height, second.width, second.sigmas, second.distilled) == (128, 128, REFINE.sigmas, 0.8)
    assert second.guidance == NEUTRAL


@pytest.mark.parametrize("sampler", ["euler", "res2s"])
def test_the_sound_is_that_of_the_first_stage(pipe: IDLoraPipeline, sampler: Any) -> None:
    one = replace(WHOLE, height=64, width=64, seed=3, sampler=sampler)
    given: dict[str, Any] = {"image": PICTURE, "voice": voice()}
    small = pipe(PROMPT, settings=one, **given)
    large = pipe(PROMPT, settings=replace(WHOLE, seed=3, sampler=sampler, refine=REFINE), **given)
    assert large.video.shape == (9, 128, 128, 3)
    assert np.array_equal(large.audio, small.audio)
    assert large.timings.keys() == {"text", "connect", "prepare", "denoise", "upscale", "refine", "decode"}
    assert pipe.adapters.strengths == {IDENTITY: 1.0, DISTILLED: 1.0}


def test_the_second_stage_changes_the_picture_but_not_what_is_given(pipe: IDLoraPipeline) -> None:
    seen: dict[str, list[AVState]] = {}

    def watch(step: Any) -> None:
        seen.setdefault("frozen" if step.state.audio.frozen else "open", []).append(step.state)

    pipe(PROMPT, image=PICTURE, voice=voice(), settings=replace(WHOLE, refine=REFINE), callback=watch)
    first, last = seen["frozen"][0], seen["frozen"][-1]
    given = (first.video.denoise_mask == 0).squeeze(-1)
    assert int(given.sum()) == 16  # one latent frame of 128 x 128 pixels
    assert torch.equal(first.video.tokens[given], last.video.tokens[given])
    assert not torch.equal(first.video.tokens[~given], last.video.tokens[~given])
    assert first.audio.num_reference == 0
    assert seen["open"][0].audio.num_reference > 0


def test_strengths_change_by_stage(pipe: IDLoraPipeline) -> None:
    seen = []
    settings = replace(WHOLE, distilled=0.25, refine=REFINE)
    pipe(PROMPT, settings=settings, callback=lambda _: seen.append(pipe.adapters.strengths))
    assert seen == [{IDENTITY: 1.0, DISTILLED: 0.25}] * 2 + [{IDENTITY: 0.0, DISTILLED: 0.8}] * 2


def test_what_a_stage_lacks_is_told_before_any_work(pipe: IDLoraPipeline) -> None:
    poor = IDLoraPipeline(tiny_pipeline.components("2.3"), CARD)
    with pytest.raises(SettingsError, match="--upsampler"):
        poor(PROMPT, settings=replace(WHOLE, refine=REFINE))
    with pytest.raises(SettingsError, match=r"distilled strength 0\.25 needs .*--distilled"):
        poor(PROMPT, settings=replace(WHOLE, distilled=0.25))
    with pytest.raises(InputError, match="height 96: in two stages it must be a multiple of 64; use 128"):
        pipe(PROMPT, settings=replace(WHOLE, height=96, refine=REFINE))
    distilled = IDLoraPipeline(tiny_pipeline.components("2.3"), replace(CARD, distilled=True))
    distilled(PROMPT, settings=replace(WHOLE, height=64, width=64, distilled=1.0))


def test_weights_that_are_not_finite_are_told(tmp_path: Path) -> None:
    made = tiny_pipeline.components("2.3")
    with torch.no_grad():
        made.transformer.proj_out.weight[0, 0] = torch.nan
    with pytest.raises(WeightsError, match="not finite"):
        IDLoraPipeline(made, CARD)(PROMPT, settings=tiny_pipeline.SETTINGS)
    weights = tiny_pipeline.adapter_for(tiny_pipeline.components("2.3").transformer)
    next(iter(weights.layers.values())).a[0, 0] = torch.inf
    write_adapter(tmp_path / "adapter.safetensors", weights)
    with pytest.raises(WeightsError, match=r"not finite \(diffusion_model"):
        read_adapter(tmp_path / "adapter.safetensors")


def random_adapter(network: Any, seed: int) -> AdapterWeights:
    return tiny_pipeline.adapter_for(network, seed)


@torch.no_grad()
def audio_of(network: Any) -> torch.Tensor:
    return JointModel(network).velocity(tiny.state(), 0.7, tiny.context("2.3")).audio


def test_stacked_adapters_equal_their_sum_in_the_weights() -> None:
    network = tiny.fresh_transformer("2.3")
    base = audio_of(network)
    weights = {name: random_adapter(network, seed) for seed, name in enumerate((IDENTITY, DISTILLED, "style 1"))}
    fused = [
        fuse_adapter(network, each, strength) for each, strength in zip(weights.values(), (1, 0.5, 2), strict=True)
    ]
    expected = audio_of(network)
    for fusion in reversed(fused):
        fusion.undo()
    stack = AdapterStack(network)
    for name, each in weights.items():
        stack.add(name, each)
    with stack.at({DISTILLED: 0.5, "style 1": 2.0, "unknown": 3.0}):
        torch.testing.assert_close(audio_of(network), expected, rtol=0, atol=3e-5)
    with stack.at(dict.fromkeys(weights, 0.0)):
        assert torch.equal(audio_of(network), base)
    with stack.bare():
        assert torch.equal(audio_of(network), base)
        assert network.state_dict().keys() == tiny.transformer("2.3").state_dict().keys()
    assert stack.strengths == dict.fromkeys(weights, 1.0)
    with pytest.raises(WeightsError, match="already"):
        stack.add(IDENTITY, weights[IDENTITY])


def test_removing_one_adapter_leaves_the_others() -> None:
    network = tiny.fresh_transformer("2.3")
    stack = AdapterStack(network)
    weights = [random_adapter(network, seed) for seed in (1, 2)]
    stack.add(IDENTITY, weights[0])
    alone = audio_of(network)
    stack.add("style 1", weights[1])
    first, second = stack.get(IDENTITY), stack.get("style 1")
    assert first is not None
    assert second is not None
    assert not torch.equal(audio_of(network), alone)
    second.remove()
    assert torch.equal(audio_of(network), alone)
    with stack.without_identity():
        without = audio_of(network)
    first.remove()
    assert torch.equal(audio_of(network), without)


def test_an_adapter_of_another_generation_is_refused() -> None:
    network = tiny.fresh_transformer("2.3")
    weights = random_adapter(network, 1)
    with pytest.raises(WeightsError, match=r"made for LTX-2\.0, the model is LTX-2\.3"):
        AdapterStack(network).add(IDENTITY, AdapterWeights(weights.layers, {"generation": "2.0"}))


def test_a_fused_stack_is_its_sum_and_stays() -> None:
    network, other = tiny.fresh_transformer("2.3"), tiny.fresh_transformer("2.3")
    weights = {name: random_adapter(network, seed) for seed, name in enumerate((IDENTITY, DISTILLED, "style 1"))}
    apart, stack = AdapterStack(other), AdapterStack(None, lambda: network)
    for each in (apart, stack):
        for name, strength in ((IDENTITY, 1.0), (DISTILLED, 0.5), ("style 1", 2.0)):
            each.add(name, weights[name], strength)
    stack.fuse(IDENTITY)  # before the transformer comes, and after
    stack.attach(network)
    stack.fuse("style 1")
    torch.testing.assert_close(audio_of(network), audio_of(other), rtol=0, atol=3e-5)
    assert stack.fused == {IDENTITY, "style 1"}
    assert stack.strengths == apart.strengths
    assert stack.get(IDENTITY) is None
    with stack.at({DISTILLED: 0.0}), apart.at({DISTILLED: 0.0}):
        torch.testing.assert_close(audio_of(network), audio_of(other), rtol=0, atol=3e-5)
    with pytest.raises(WeightsError, match="already"):
        stack.add("style 1", weights["style 1"])


@pytest.mark.parametrize("where", ["whole", "stream"])
def test_a_pipeline_with_fused_adapters_makes_nearly_the_same_clip(where: Any, tmp_path: Path) -> None:
    made = tiny_pipeline.real_components("2.3")
    IDLoraPipeline(made, CARD, tiny_pipeline.adapter_for(made.transformer)).save_pretrained(tmp_path / "model")
    apart, fused = (IDLoraPipeline.from_pretrained(tmp_path / "model", placement=Placement(where)) for _ in range(2))
    fused.fuse_adapters()
    clips = [each(PROMPT, image=PICTURE, voice=voice(), settings=WHOLE) for each in (apart, fused)]
    np.testing.assert_allclose(clips[0].audio, clips[1].audio, atol=1e-3)
    assert clips[1].provenance["model"]["fused"] == [IDENTITY]
    assert clips[0].provenance["model"]["fused"] == []
    fused.save_pretrained(tmp_path / "fused")
    again = IDLoraPipeline.from_pretrained(tmp_path / "fused")
    assert again.adapters.strengths == {}
    no_adapter = again(PROMPT, image=PICTURE, voice=voice(), settings=WHOLE)
    np.testing.assert_allclose(no_adapter.audio, clips[1].audio, atol=1e-3)


def test_what_is_fused_cannot_be_left_out(pipe: IDLoraPipeline) -> None:
    pipe.fuse_adapters()
    assert pipe.adapters.fused == {IDENTITY}  # the distilled one changes by stage
    with pytest.raises(SettingsError, match="second stage works without"):
        pipe(PROMPT, settings=replace(WHOLE, refine=REFINE))
    identity = replace(GUIDANCE.identity, adapter_off=True)
    with pytest.raises(SettingsError, match="pass without reference"):
        pipe(PROMPT, voice=voice(), settings=replace(WHOLE, guidance=replace(GUIDANCE, identity=identity)))


def test_weights_in_few_bits_are_not_added_to() -> None:
    made = tiny_pipeline.real_components("2.3")
    pipe = IDLoraPipeline(made, CARD, tiny_pipeline.adapter_for(made.transformer), placement=Placement(storage="fp8"))
    with pytest.raises(SettingsError, match="kept in fp8"):
        pipe.fuse_adapters()
