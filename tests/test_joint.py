# SPDX-License-Identifier: Apache-2.0
"""The joint forward: equal to diffusers' own where that can do it, and lawful where it cannot."""

from dataclasses import replace
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

import tiny
from idlora.core.reference import attach_reference, without_reference
from idlora.core.state import AVState, LatentState
from idlora.errors import SettingsError
from idlora.networks import joint
from idlora.networks.blocks import ReferenceText
from idlora.networks.executor import Executor
from idlora.networks.generations import GENERATIONS, generation_of
from idlora.networks.joint import JointModel, JointOptions, Pass, Prediction, TextContext

SIGMA = torch.tensor([0.3, 0.8])
ALL = pytest.mark.parametrize("generation", ["2.0", "2.3", "2.5"])


def diffusers_forward(generation: str, state: AVState, context: TextContext, **more: Any) -> Prediction:
    net = tiny.transformer(generation)
    video, audio = net(
        hidden_states=state.video.tokens,
        audio_hidden_states=state.audio.tokens,
        encoder_hidden_states=context.video,
        audio_encoder_hidden_states=context.audio,
        timestep=state.video.timesteps(SIGMA) * 1000,
        audio_timestep=state.audio.timesteps(SIGMA) * 1000,
        sigma=SIGMA * 1000,
        audio_sigma=more.pop("audio_sigma", SIGMA * 1000),
        video_coords=state.video.positions,
        audio_coords=state.audio.positions,
        use_cross_timestep=GENERATIONS[generation].cross_timestep,
        return_dict=False,
        **more,
    )
    return Prediction(video, audio)


def assert_same(actual: Prediction, expected: Prediction, tolerance: float = 1e-5) -> None:
    for name in ("video", "audio"):
        a, e = getattr(actual, name), getattr(expected, name)
        assert a.shape == e.shape
        assert (a - e).abs().max() <= tolerance * e.abs().max()


def distance(a: Prediction, b: Prediction) -> float:
    return max((a.video - b.video).abs().max().item(), (a.audio - b.audio).abs().max().item())


def model(generation: str, **options: object) -> JointModel:
    return JointModel(tiny.transformer(generation), JointOptions(**options))  # type: ignore[arg-type]


@ALL
def test_generation_is_read_from_the_configuration(generation: str) -> None:
    assert generation_of(tiny.transformer(generation).config).name == generation


@ALL
@torch.no_grad()
def test_plain_pass_equals_diffusers(generation: str) -> None:
    state, context = tiny.state(), tiny.context(generation)
    assert_same(model(generation).velocity(state, SIGMA, context), diffusers_forward(generation, state, context))


@ALL
@torch.no_grad()
def test_a_frozen_stream_has_no_noise_whatever_the_other_has(generation: str) -> None:
    state, context = tiny.state(num_reference=0), tiny.context(generation)
    frozen = AVState(state.video, state.audio.freeze(state.audio.tokens))
    ours = model(generation).velocity(frozen, SIGMA, context)
    assert_same(ours, diffusers_forward(generation, frozen, context, audio_sigma=torch.zeros(2)))
    given = AVState(state.video, replace(frozen.audio, frozen=False))  # as the official scripts have it
    changed = distance(ours, model(generation).velocity(given, SIGMA, context))
    assert changed == 0 if generation == "2.0" else changed > 1e-3


@ALL
@torch.no_grad()
def test_isolated_pass_equals_diffusers(generation: str) -> None:
    state, context = tiny.state(), tiny.context(generation)
    ours = model(generation).velocity(state, SIGMA, context, Pass("isolated", isolated=True))
    assert_same(ours, diffusers_forward(generation, state, context, isolate_modalities=True))


@pytest.mark.parametrize("generation", ["2.3", "2.5"])
@torch.no_grad()
def test_perturbed_pass_equals_diffusers(generation: str) -> None:
    state, context = tiny.state(), tiny.context(generation)
    ours = model(generation).velocity(state, SIGMA, context, Pass("perturbed", perturbed_blocks=(1,)))
    assert_same(ours, diffusers_forward(generation, state, context, spatio_temporal_guidance_blocks=[1]))


@torch.no_grad()
def test_perturbed_pass_of_2_0_is_not_the_no_op_of_diffusers() -> None:
    state, context = tiny.state(), tiny.context("2.0")
    ours = model("2.0").velocity(state, SIGMA, context, Pass("perturbed", perturbed_blocks=(1,)))
    assert distance(ours, diffusers_forward("2.0", state, context, spatio_temporal_guidance_blocks=[1])) > 1e-2


@ALL
@torch.no_grad()
def test_text_padding_equals_shorter_text(generation: str) -> None:
    context = tiny.context(generation)
    mask = torch.tensor([[1, 1, 1, 0, 0]]).expand(2, -1)
    cut = TextContext(context.video[:, :3], context.audio[:, :3])
    net, state = model(generation), tiny.state()
    assert_same(net.velocity(state, SIGMA, replace(context, mask=mask)), net.velocity(state, SIGMA, cut))


@ALL
@torch.no_grad()
def test_padded_reference_and_target_equal_shorter_ones(generation: str) -> None:
    short, context, net = tiny.state(2), tiny.context(generation), model(generation)
    expected = net.velocity(short, SIGMA, context)
    padded = net.velocity(AVState(short.video, _padded(short.audio, front=2, behind=3)), SIGMA, context)
    assert_same(Prediction(padded.video, padded.audio[:, 2:-3]), expected)


def _padded(audio: LatentState, front: int, behind: int) -> LatentState:
    def pad(x: Tensor, value: float = 7.0) -> Tensor:
        before, after = x.new_full((2, front, x.shape[2]), value), x.new_full((2, behind, x.shape[2]), value)
        return torch.cat([before, x, after], dim=1)

    positions = pad(audio.positions[:, 0])[:, None]
    valid = pad(torch.ones_like(audio.denoise_mask), 0.0).squeeze(-1) == 1
    mask = pad(audio.denoise_mask, 1.0)
    mask[:, :front] = 0
    return LatentState(pad(audio.tokens), positions, mask, pad(audio.clean), audio.num_reference + front, valid)


@ALL
@torch.no_grad()
def test_a_batch_equals_its_members(generation: str) -> None:
    state, context, net = tiny.state(), tiny.context(generation), model(generation)
    both = net.velocity(state, SIGMA, context)
    for b in range(2):
        one = slice(b, b + 1)
        alone = net.velocity(tiny.rows(state, one), SIGMA[one], tiny.text_rows(context, one))
        assert_same(Prediction(both.video[one], both.audio[one]), alone)


@ALL
@torch.no_grad()
def test_no_reference_and_empty_reference_agree(generation: str) -> None:
    bare, context = tiny.state(0), tiny.context(generation)
    audio = bare.audio
    empty = attach_reference(audio, audio.tokens[:, :0], audio.positions[:, :, :0])
    net = model(generation, mask_reference_to_video=True, reference_text="average")
    with_empty = net.velocity(AVState(bare.video, empty), SIGMA, context)
    assert distance(with_empty, net.velocity(bare, SIGMA, context)) == 0


@ALL
@torch.no_grad()
def test_shared_and_per_token_modulation_agree(generation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state, context, net = tiny.state(), tiny.context(generation), model(generation)
    shared = net.velocity(state, SIGMA, context)
    monkeypatch.setattr(joint, "_distinct_timesteps", lambda stream, sigma: (stream.timesteps(sigma), None))
    assert_same(net.velocity(state, SIGMA, context), shared)


@torch.no_grad()
def test_fractional_masks_take_the_general_path() -> None:
    state, context = tiny.state(), tiny.context("2.3")
    mask = torch.linspace(0, 1, 8)[None, :, None].expand(2, -1, -1)
    state = AVState(replace(state.video, denoise_mask=mask), state.audio)
    assert_same(model("2.3").velocity(state, SIGMA, context), diffusers_forward("2.3", state, context))


@ALL
@torch.no_grad()
def test_hidden_reference_equals_an_additive_mask(generation: str) -> None:
    """The keys left out, against the mask that the official training adds to the scores."""
    state, context, net = tiny.state(), tiny.context(generation), tiny.transformer(generation)
    ours = model(generation, mask_reference_to_video=True).velocity(state, SIGMA, context)
    bias = torch.zeros(2, 8, state.audio.tokens.shape[1])
    bias[:, :, : state.audio.num_reference] = torch.finfo(torch.float32).min
    handles = [
        block.register_forward_pre_hook(
            lambda _block, args, kwargs: (args, {**kwargs, "a2v_cross_attention_mask": bias}), with_kwargs=True
        )
        for block in net.transformer_blocks
    ]
    expected = diffusers_forward(generation, state, context)
    for handle in handles:
        handle.remove()
    assert_same(ours, expected)
    assert distance(ours, diffusers_forward(generation, state, context)) > 1e-3


@torch.no_grad()
def test_blocked_text_does_not_reach_the_reference() -> None:
    net = tiny.transformer("2.3", num_layers=1)
    isolated = Pass("isolated", isolated=True)

    def reference_rows(mode: ReferenceText, seed: int) -> Tensor:
        options = JointOptions(reference_text=mode)
        found = JointModel(net, options).velocity(tiny.state(), SIGMA, tiny.context("2.3", seed=seed), isolated)
        return found.audio[:, :3]

    assert torch.equal(reference_rows("block", 5), reference_rows("block", 6))
    assert not torch.equal(reference_rows("average", 5), reference_rows("average", 6))
    assert not torch.allclose(reference_rows("average", 5), reference_rows("open", 5))


@torch.no_grad()
def test_a_plan_gives_every_pass_by_name() -> None:
    state, net = tiny.state(), model("2.3")
    positive, negative = tiny.context("2.3"), tiny.context("2.3", seed=9)
    plan = [Pass("positive"), Pass("negative", negative_text=True), Pass("no_reference", reference=False)]
    found = Executor(net, positive, negative)(state, SIGMA, plan)
    assert list(found) == ["positive", "negative", "no_reference"]
    assert distance(found["negative"], net.velocity(state, SIGMA, negative)) == 0
    assert distance(found["no_reference"], net.velocity(without_reference(state), SIGMA, positive)) == 0


def test_a_negative_pass_needs_a_negative_text() -> None:
    with pytest.raises(SettingsError, match="negative text"):
        Executor(model("2.3"), tiny.context("2.3"))(tiny.state(), SIGMA, [Pass("negative", negative_text=True)])


def test_a_block_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"29.*0 to 1"):
        model("2.3").velocity(tiny.state(), SIGMA, tiny.context("2.3"), Pass("stg", perturbed_blocks=(29,)))


def _gradients(net: JointModel) -> list[Tensor]:
    prediction = net.velocity(tiny.state(), SIGMA, tiny.context("2.3"))
    loss = prediction.video.square().mean() + prediction.audio.square().mean()
    wanted = [parameter for parameter in net.transformer.parameters() if parameter.requires_grad]
    return [g for g in torch.autograd.grad(loss, wanted, allow_unused=True) if g is not None]


def test_checkpointing_leaves_the_gradients_as_they_are() -> None:
    net = model("2.3")
    expected = _gradients(net)
    net.transformer.enable_gradient_checkpointing()
    try:
        found = _gradients(net)
    finally:
        net.transformer.disable_gradient_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def test_blocks_compile_as_one_graph() -> None:
    state, context, net = tiny.state(), tiny.context("2.3"), model("2.3", mask_reference_to_video=True)
    expected = net.velocity(state, SIGMA, context)
    net.compile_blocks(fullgraph=True, backend="eager")
    assert_same(net.velocity(state, SIGMA, context), expected)


@torch.no_grad()
def test_what_cannot_be_compiled_says_what_is_missing() -> None:
    net = model("2.3")
    torch._dynamo.reset()  # what other tests compiled would serve

    def broken(_graph: object, _inputs: object) -> NoReturn:
        raise RuntimeError("no compiler")

    net.compile_blocks(backend=broken)
    with pytest.raises(SettingsError, match="compiler"):
        net.velocity(tiny.state(), SIGMA, tiny.context("2.3"))


@torch.no_grad()
def test_low_precision_stays_inside_the_network() -> None:
    from copy import deepcopy

    state, context = tiny.state(), tiny.context("2.3")
    low = JointModel(deepcopy(tiny.transformer("2.3")).to(torch.bfloat16))
    prediction = low.velocity(state, SIGMA, context)
    assert prediction.video.dtype == prediction.audio.dtype == torch.float32
    assert_same(prediction, model("2.3").velocity(state, SIGMA, context), tolerance=5e-2)


@torch.no_grad()
def test_average_text_survives_autocast() -> None:
    net = model("2.3", reference_text="average")
    with torch.autocast("cpu", torch.bfloat16):
        low = net.velocity(tiny.state(), SIGMA, tiny.context("2.3"))
    assert_same(low, net.velocity(tiny.state(), SIGMA, tiny.context("2.3")), tolerance=5e-2)
