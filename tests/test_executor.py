# SPDX-License-Identifier: Apache-2.0
"""The executor: the numbers of the sequential passes, and no more work than its plan foretells."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import tiny
from idlora.core.guidance import X0, Guidance, IdentityGuidance, ModalityGuidance, STGuidance, TextGuidance
from idlora.core.reference import without_reference
from idlora.core.state import AVState
from idlora.errors import SettingsError
from idlora.networks.adapter import inject_adapter
from idlora.networks.blocks import block_forward
from idlora.networks.denoiser import GuidedDenoiser
from idlora.networks.executor import Executor, Once, Sharing
from idlora.networks.generations import GENERATIONS
from idlora.networks.joint import JointModel, JointOptions, Pass, Prediction, TextContext
from idlora.networks.work import Reference, Tokens, Work, block_evaluations, step_work
from idlora.pipeline import PRESETS, Settings, preset_settings
from tiny_pipeline import adapter_for

LAYERS, STG_BLOCK, SIGMA = 4, 2, 0.6
ALL = pytest.mark.parametrize("generation", list(GENERATIONS))
FULL = Guidance(TextGuidance(3.0, 7.0), IdentityGuidance(3.0), STGuidance(blocks=(STG_BLOCK,)), ModalityGuidance())
OPEN, APART = JointOptions(), Sharing()
ALONE = JointOptions(reference_attention="alone")
MODES = [OPEN, JointOptions(mask_reference_to_video=True, reference_text="average"), ALONE]


def model(generation: str, options: JointOptions = OPEN, **more: Any) -> JointModel:
    return JointModel(tiny.transformer(generation, LAYERS), options, **more)


def plan_of(preset: str, generation: str) -> list[Pass]:
    """The passes of a preset's first step, its perturbed block one that the tiny network has."""
    guidance = preset_settings(preset, Settings(), GENERATIONS[generation]).guidance
    blocks = (STG_BLOCK,) if guidance.stg.blocks else ()
    return replace(guidance, stg=replace(guidance.stg, blocks=blocks)).plan(SIGMA, num_reference=3)


def executor(net: JointModel, generation: str, sharing: Sharing = APART, batch: int = 1) -> Executor:
    texts = tiny.context(generation, batch), tiny.context(generation, batch, seed=9)
    return Executor(net, *texts, sharing)


def sequential(net: JointModel, generation: str, state: AVState, plan: Sequence[Pass]) -> dict[str, Prediction]:
    """Each pass by itself, from the beginning."""
    batch = state.video.tokens.shape[0]
    texts = {False: tiny.context(generation, batch), True: tiny.context(generation, batch, seed=9)}
    found = {}
    for run in plan:
        seen = state if run.reference else without_reference(state)
        found[run.name] = net.velocity(seen, SIGMA, texts[run.negative_text], run)
        if run.audio_only:
            audio = _beside(net, (state, seen), texts[False])
            found[run.name] = Prediction(found["positive"].video, audio)
    return found


def _beside(net: JointModel, states: tuple[AVState, AVState], text: TextContext) -> Tensor:
    """The audio's velocity in the second state where every block is given the video of the first: whole blocks."""
    level = torch.full((states[0].video.tokens.shape[0],), SIGMA)
    (heard, own), streams = zip(*(net._inputs(state, level, text) for state in states), strict=True)
    for index, block in enumerate(net.transformer.transformer_blocks):
        options = [net.block_options(state.audio, Pass("plain"), index) for state in states]
        own = block_forward(block, (heard[0], own[1]), streams[1], options[1])
        heard = block_forward(block, heard, streams[0], options[0])
    return net.leave(states[1], (heard[0], own[1]), streams[1]).audio


def assert_same(found: dict[str, Prediction], expected: dict[str, Prediction]) -> None:
    assert list(found) == list(expected)
    for name, wanted in expected.items():
        for stream in ("video", "audio"):
            a, b = getattr(found[name], stream), getattr(wanted, stream)
            assert a.shape == b.shape
            assert (a - b).abs().max() <= 1e-5 * b.abs().max(), (name, stream)


@ALL
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("options", MODES, ids=["open", "masked", "alone"])
@torch.no_grad()
def test_every_preset_gives_the_numbers_of_the_sequential_passes(
    generation: str, preset: str, options: JointOptions
) -> None:
    net, plan = model(generation, options), plan_of(preset, generation)
    run = executor(net, generation)
    for number in range(2):  # the second step meets what the first one kept
        state = tiny.state(batch=1)
        state = state.with_tokens(state.video.tokens + number, state.audio.tokens - number)
        assert_same(run(state, SIGMA, plan), sequential(net, generation, state, plan))


@ALL
@pytest.mark.parametrize("most", [2, 5])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("options", [OPEN, ALONE], ids=["open", "alone"])
@torch.no_grad()
def test_passes_in_one_batch_give_the_same_numbers(
    generation: str, most: int, batch: int, options: JointOptions
) -> None:
    net, plan, state = model(generation, options), FULL.plan(SIGMA, 3), tiny.state(batch=batch)
    found = executor(net, generation, Sharing(most), batch)(state, SIGMA, plan)
    assert_same(found, sequential(net, generation, state, plan))


@pytest.mark.parametrize("options", [OPEN, ALONE], ids=["open", "alone"])
@torch.no_grad()
def test_compiled_blocks_give_the_same_numbers(options: JointOptions) -> None:
    net, plan, state = model("2.3", options), FULL.plan(SIGMA, 3), tiny.state(batch=1)
    expected = sequential(net, "2.3", state, plan)
    net.compile_blocks(fullgraph=True, backend="eager")
    assert_same(executor(net, "2.3")(state, SIGMA, plan), expected)


@torch.no_grad()
def test_several_perturbed_blocks_and_one_perturbed_stream() -> None:
    net, state = model("2.3"), tiny.state(batch=1)
    plan = [
        Pass("positive"),
        Pass("first", perturbed_blocks=(0, 2)),
        Pass("video", perturbed_blocks=(1,), perturbed_streams=("video",)),
        Pass("both", perturbed_blocks=(3,), reference=False),
    ]
    assert_same(executor(net, "2.3")(state, SIGMA, plan), sequential(net, "2.3", state, plan))


@torch.no_grad()
def test_a_pass_without_the_adapter_shares_nothing_with_the_others() -> None:
    network = tiny.fresh_transformer("2.0")
    adapter = inject_adapter(network, adapter_for(network))
    net, state, context = (
        JointModel(network, without_adapter=adapter.disabled),
        tiny.state(batch=1),
        tiny.context("2.0", 1),
    )
    plan = [Pass("positive"), Pass("no_reference", reference=False, adapter=False)]
    run = Executor(net, context)
    for _ in range(2):
        found = run(state, SIGMA, plan)
    with adapter.disabled():
        expected = net.velocity(without_reference(state), SIGMA, context)
    assert_same(found, {"positive": net.velocity(state, SIGMA, context), "no_reference": expected})
    assert (net.velocity(without_reference(state), SIGMA, context).audio - expected.audio).abs().max() > 1e-3


@ALL
@torch.no_grad()
def test_the_audio_alone_hears_the_video_of_the_positive_pass(generation: str) -> None:
    """Without a way from audio to video both have the same video states, so that nothing is approximated."""
    network = tiny.fresh_transformer(generation)
    for block in network.transformer_blocks:
        torch.nn.init.zeros_(block.audio_to_video_attn.to_out[0].weight)
        torch.nn.init.zeros_(block.audio_to_video_attn.to_out[0].bias)
    net, state = JointModel(network), tiny.state(batch=1)
    plan = [Pass("positive"), Pass("no_reference", reference=False)]
    alone = [plan[0], replace(plan[1], audio_only=True)]
    for most in (1, 5):
        found = executor(net, generation, Sharing(most))(state, SIGMA, alone)
        assert_same(found, sequential(net, generation, state, plan))


@torch.no_grad()
def test_the_audio_alone_needs_the_positive_pass_beside_it() -> None:
    for plan in ([Pass("x", audio_only=True)], [Pass("positive"), Pass("x", audio_only=True, adapter=False)]):
        with pytest.raises(SettingsError, match="on the audio alone"):
            executor(model("2.3"), "2.3")(tiny.state(batch=1), SIGMA, plan)


def test_at_least_one_branch() -> None:
    with pytest.raises(SettingsError, match="at least 1"):
        Sharing(0)


@torch.no_grad()
def test_a_block_comes_once_for_all_passes() -> None:
    visits: list[int] = []

    @contextmanager
    def around(block: Any) -> Iterator[None]:
        visits.append(id(block))
        yield

    net = model("2.0", around_block=around)
    executor(net, "2.0")(tiny.state(batch=1), SIGMA, FULL.plan(SIGMA, 3))
    assert visits == [id(block) for block in net.transformer.transformer_blocks]


STEPS = 3


@contextmanager
def counted(modules: Sequence[Any]) -> Iterator[list[int]]:
    calls: list[int] = []
    handles = [module.register_forward_hook(lambda *_: calls.append(1)) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("generation", ["2.0", "2.3", "2.5 with keys that can be kept"])
@pytest.mark.parametrize("keep", [True, False])
@torch.no_grad()
def test_the_text_is_read_once_a_generation_where_it_does_not_depend_on_the_step(generation: str, keep: bool) -> None:
    name = generation[:3]
    network = tiny.fresh_transformer(name)
    if generation.startswith("2.5"):
        network.prompt_adaln = network.audio_prompt_adaln = None
    net, blocks = JointModel(network), network.transformer_blocks
    plan = replace(FULL, stg=STGuidance(blocks=(1,))).plan(SIGMA, 3)
    run, start = executor(net, name, Sharing(keep_text=keep)), tiny.state(batch=1)
    keys = [getattr(block, attention).to_k for block in blocks for attention in ("attn2", "audio_attn2")]
    with counted(keys) as calls:
        for number in range(STEPS):
            state = start.with_tokens(start.video.tokens + number, start.audio.tokens - number)
            assert_same(run(state, SIGMA, plan), sequential(net, name, state, plan)) if number == 0 else run(
                state, SIGMA, plan
            )
    by_hand = len(plan) * len(keys)  # of the sequential passes
    texts = 2
    assert len(calls) - by_hand == texts * len(keys) * (1 if keep and name != "2.3" else STEPS)


@torch.no_grad()
def test_rotary_tables_are_made_once_a_generation_and_anew_for_another() -> None:
    net = model("2.3")
    run = executor(net, "2.3")
    with counted([net.transformer.rope]) as calls:
        for start in (tiny.state(batch=1), tiny.state(num_reference=4, batch=1)):
            for number in range(STEPS):
                run(start.with_tokens(start.video.tokens + number, start.audio.tokens), SIGMA, FULL.plan(SIGMA, 3))
    assert len(calls) == 2


@dataclass(frozen=True)
class Noted(GuidedDenoiser):
    """A denoiser that notes which passes it runs."""

    passes: list[list[str]] = field(default_factory=list)

    def predict(self, state: AVState, sigma: float, plan: list[Pass]) -> dict[str, X0]:
        self.passes.append([run.name for run in plan])
        return super().predict(state, sigma, plan)


def noted(guidance: Guidance) -> Noted:
    return Noted(model("2.3"), tiny.context("2.3", 1), tiny.context("2.3", 1, seed=9), guidance)


@torch.no_grad()
def test_a_term_is_computed_in_one_of_so_many_steps_and_reused_in_the_others() -> None:
    guidance = replace(FULL, stg=replace(FULL.stg, every=2, lo=0.2), modality=replace(FULL.modality, every=3))
    lazy, exact, state = noted(guidance), noted(FULL), tiny.state(batch=1)
    for sigma in (0.9, 0.8, 0.7, 0.6, 0.1):
        lazy(state, sigma)
    always = ["positive", "negative", "no_reference"]
    assert lazy.passes == [
        [*always, "perturbed", "isolated"],
        always,
        [*always, "perturbed"],
        [*always, "isolated"],
        always,  # below its interval perturbation does nothing
    ]
    # The same state at the same level: what is reused is what would be computed.
    again = noted(guidance)
    found = [again(state, 0.5) for _ in range(2)]
    wanted = exact(state, 0.5)
    assert len(again.passes[1]) == 3
    for stream in ("video", "audio"):
        a, b = (getattr(each, stream).tokens for each in (found[1], wanted))
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@torch.no_grad()
def test_a_term_that_comes_back_into_its_interval_is_computed_anew() -> None:
    lazy, state = noted(replace(FULL, stg=replace(FULL.stg, every=9, lo=0.5))), tiny.state(batch=1)
    for sigma in (0.9, 0.1, 0.9):
        lazy(state, sigma)
    assert ["perturbed" in names for names in lazy.passes] == [True, False, True]


class Products(TorchDispatchMode):
    """Counts matrix products and, by the formulas of torch's own counter, their operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.work += Work(1, formula(*args, **(kwargs or {}), out_val=out))
        return out


class Watched(Executor):
    """Counts blocks, products and operations of its walk through the blocks."""

    blocks, work = 0, Work()

    def _through(self, *inputs: Any) -> Any:
        run_block = self.model.run_block

        def count(*given: Any) -> Any:
            self.blocks += 1
            return run_block(*given)

        self.model.run_block = count  # type: ignore[method-assign, assignment]
        with sdpa_kernel(SDPBackend.MATH), Products() as products:
            out = super()._through(*inputs)
        self.model.run_block = run_block  # type: ignore[method-assign]
        self.work += products.work
        return out


@ALL
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("options", [OPEN, JointOptions(mask_reference_to_video=True), ALONE])
@torch.no_grad()
def test_a_step_takes_the_work_that_its_plan_foretells(generation: str, preset: str, options: JointOptions) -> None:
    net, plan = model(generation, options), plan_of(preset, generation)
    hide, alone = options.mask_reference_to_video, options is ALONE
    tokens, state = Tokens(video=8, audio=5, reference=3, text=tiny.TEXT), tiny.state(batch=1)
    run = Watched(net, tiny.context(generation, 1), tiny.context(generation, 1, seed=9))
    for number, kept in enumerate((False, generation == "2.0")):
        run.blocks, run.work = 0, Work()
        run(state, SIGMA, plan)
        how: Reference = ("kept" if number else "alone") if alone else "joint"
        config = net.transformer.config
        told = step_work(config, tokens, plan, hide_reference=hide, kept_text=kept, reference=how)
        assert run.work == told
        assert run.blocks == block_evaluations(plan, LAYERS)


def test_the_perturbed_pass_begins_at_its_block() -> None:
    assert block_evaluations([Pass("positive")], 48) == 48
    assert block_evaluations(FULL.plan(SIGMA, 3), 48) == 4 * 48 + 48 - STG_BLOCK


def test_once_tells_objects_by_identity_and_numbers_by_value() -> None:
    calls: list[Tensor] = []

    def work(x: Tensor, _number: int) -> Tensor:
        calls.append(x)
        return x + 1

    once, x = Once(), torch.zeros(2)
    first = once(work, x, 1)
    assert once(work, x, 1) is first
    assert once(work, x, 2) is not first
    assert once(work, x.clone(), 1) is not first
    assert len(calls) == 3
