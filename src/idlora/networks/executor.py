# SPDX-License-Identifier: Apache-2.0
"""Runs a plan of passes block by block, each computation once.

Passes are branches. What two of them compute from the same tensors in a block is computed for the first one only: the
perturbed pass is the positive one up to its block, and all passes of a text share its keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from idlora.core.guidance import POSITIVE, Pass
from idlora.core.reference import without_reference
from idlora.core.state import AVState, LatentState, per_sample
from idlora.errors import SettingsError
from idlora.networks.attention import KeysValues
from idlora.networks.blocks import BlockOptions, Pair, StreamInputs, Streams, reference_forward, text_memory
from idlora.networks.caching import FirstBlock
from idlora.networks.joint import JointModel, Layout, Prediction, TextContext, inputs_of

_BY_VALUE = (bool, int, str, BlockOptions, type(None))


class Once:
    """Calls a function only once with the same arguments: the same objects, or equal numbers, names and options."""

    def __init__(self) -> None:
        self._kept: dict[Any, tuple[Any, Any]] = {}

    def __call__(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """What the function gives for these inputs."""
        key = (function, *(each if isinstance(each, _BY_VALUE) else id(each) for each in inputs))
        if key not in self._kept:
            self._kept[key] = function(*inputs), inputs  # the inputs live on, so that no other object gets their ids
        return self._kept[key][0]


@dataclass(frozen=True)
class Sharing:
    """How far passes go together.

    Attributes:
        max_branches: so many passes run as one batch where their shapes allow it; the numbers differ in rounding only.
        keep_text: the text's keys and values stay for the whole generation where they do not depend on the noise.
    """

    max_branches: int = 1
    keep_text: bool = True

    def __post_init__(self) -> None:
        if self.max_branches < 1:
            raise SettingsError(
                f"{self.max_branches} branches at once; at least 1 is needed, and 5 are the most there are"
            )


class Branch(NamedTuple):
    """One pass on its way through the blocks; `memories` are of a reference that hears itself alone, by block."""

    run: Pass
    state: AVState
    streams: Streams
    memories: Memories | None = None


class Work(NamedTuple):
    """What a branch asks of a block."""

    xs: Pair
    streams: Streams
    options: BlockOptions

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for works that are the same."""
        return (*map(id, (*self.xs, *self.streams)), self.options)

    @property
    def form(self) -> tuple[Any, ...]:
        """Equal for works that can be one batch."""
        return (self.options, *(None if leaf is None else leaf.shape for leaf in tree_leaves((self.xs, self.streams))))


class Memories:
    """What the target hears of a reference that hears itself alone, block by block; `bias` hides its padding."""

    def __init__(self, model: JointModel, state: AVState) -> None:
        self._inputs = model.reference_inputs(state)
        self._hidden = model.enter_reference(state)
        self._made: list[KeysValues] = []

    @property
    def bias(self) -> Tensor | None:
        """Of the reference's keys, (B, 1, T_reference)."""
        return self._inputs.key_bias

    def of(self, block: Any, index: int) -> KeysValues:
        """Keys and values of a block, which is asked for after those before it."""
        if index == len(self._made):
            self._hidden, memory = reference_forward(block, self._hidden, self._inputs)
            self._made.append(memory)
        return self._made[index]


class Executor:
    """The passes of a generation, step by step, with what does not change from step to step.

    Args:
        model: the network; its weights and adapters must stay as they are.
        positive: the text.
        negative: the text of the negative pass; None if there is no such pass.
        sharing: see `Sharing`.
        first_block: threshold of `caching.FirstBlock`, an approximation; 0 = every step goes through all blocks.

    Attributes:
        caches: of passes with the adapter and of those without; empty without a threshold.
    """

    def __init__(
        self,
        model: JointModel,
        positive: TextContext,
        negative: TextContext | None = None,
        sharing: Sharing = Sharing(),
        first_block: float = 0.0,
    ) -> None:
        self.model, self.sharing = model, sharing
        self.caches = {adapter: FirstBlock(first_block) for adapter in (True, False) if first_block > 0}
        self._texts = {False: positive, True: negative}
        self._places: tuple[Tensor | None, ...] = ()
        self._layouts: dict[bool, tuple[Layout, Layout]] = {}  # with the reference, without it
        self._memories: dict[bool, Memories] = {}  # with the adapter, without it
        self._lasting = {True: Once(), False: Once()}  # with the adapter, without it

    def __call__(self, state: AVState, sigma: Tensor | float, plan: Sequence[Pass]) -> dict[str, Prediction]:
        """Predictions of every pass of the plan by its name.

        Passes with the adapter go through the blocks together, then those without.

        Raises:
            SettingsError: a perturbed block that the network does not have, a negative pass without a negative text, or
                an audio-only pass that has no positive one beside it.
        """
        self._check(plan)
        self._settle(state)
        found: dict[str, Prediction] = {}
        for adapter in (True, False):
            runs = [run for run in plan if run.adapter == adapter]
            if runs:
                there = nullcontext() if adapter else self.model.without_adapter()
                with there:
                    found |= self._predicted(state, per_sample(sigma, state.video.tokens), runs)
        return {run.name: found[run.name] for run in plan}

    def _check(self, plan: Sequence[Pass]) -> None:
        beside = {run.adapter for run in plan if run.name == POSITIVE}
        for run in plan:
            self.model.check_blocks(run)
            if run.negative_text and self._texts[True] is None:
                raise SettingsError(
                    f"the pass {run.name!r} needs a negative text; give one, or set the text guidance to 1"
                )
            if run.audio_only and run.adapter not in beside:
                raise SettingsError(
                    f"the pass {run.name!r} is on the audio alone: it needs the positive pass with the same adapter"
                )

    def _settle(self, state: AVState) -> None:
        """Look where the tokens are; they stay there for a generation."""
        places: tuple[Tensor | None, ...] = (*_places(state.video), *_places(state.audio))
        if self.model.is_apart(state):
            places = (*places, state.audio.clean)
        if len(places) == len(self._places) and all(a is b for a, b in zip(places, self._places, strict=True)):
            return
        video, audio = self.model.layouts(state)
        self._places = places
        self._memories.clear()
        self._layouts = {True: (video, audio), False: (video, audio.rows_from(state.audio.num_reference))}

    def _predicted(self, state: AVState, sigma: Tensor, runs: Sequence[Pass]) -> dict[str, Prediction]:
        """One walk through the blocks; each is there once for all branches."""
        step, model = Once(), self.model
        levels = state.video.level(sigma), state.audio.level(sigma)
        branches = [self._branch(run, state, levels, step) for run in runs]
        whole = {run.name: state if run.reference else seen for run, seen, *_ in branches}
        xs: dict[str, Pair] = {}
        for run, seen, *_ in branches:
            xs[run.name] = step(_pair, step(model.enter, seen.video, ""), step(model.enter, seen.audio, "audio_"))
        xs = self._through_all(branches, xs, self.caches.get(runs[0].adapter))
        return {run.name: model.leave(whole[run.name], _hearing(run, xs), streams) for run, _, streams, _ in branches}

    def _through_all(
        self, branches: Sequence[Branch], xs: dict[str, Pair], cache: FirstBlock | None
    ) -> dict[str, Pair]:
        """All branches through all blocks, or through the first one where the cache has the rest."""
        first, model = xs, self.model
        for index, block in enumerate(model.transformer.transformer_blocks):
            with model.around_block(block):
                xs = self._through(block, index, branches, xs)
            if index == 0 and cache is not None:
                if (known := cache.rest(first, xs)) is not None:
                    return known
                first = xs
        if cache is not None:
            cache.remember(first, xs)
        return xs

    def _branch(self, run: Pass, state: AVState, levels: tuple[Tensor, Tensor], step: Once) -> Branch:
        model, lasting = self.model, self._lasting[run.adapter]
        apart = run.reference and model.is_apart(state)
        seen = state if run.reference and not apart else step(without_reference, state)
        text: Any = self._texts[run.negative_text]
        contexts, layouts = lasting(model.contexts, text), self._layouts[run.reference and not apart]
        video = step(model.modulation, seen.video, *levels, "")
        audio = step(model.modulation, seen.audio, *reversed(levels), "audio_")
        prompts = step(model.prompt_modulation, levels[0], ""), step(model.prompt_modulation, levels[1], "audio_")
        return Branch(
            run,
            seen,
            (
                step(inputs_of, video, prompts[0], contexts[0], layouts[0], lasting(model.text_bias, text)),
                step(
                    inputs_of, audio, prompts[1], contexts[1], layouts[1], step(model.audio_text_bias, seen.audio, text)
                ),
            ),
            self._memories_of(run, state) if apart else None,
        )

    def _memories_of(self, run: Pass, state: AVState) -> Memories:
        if run.adapter not in self._memories:
            self._memories[run.adapter] = Memories(self.model, state)
        return self._memories[run.adapter]

    def _through(self, block: Any, index: int, branches: Sequence[Branch], xs: Mapping[str, Pair]) -> dict[str, Pair]:
        """All branches through a block, those that ask the same of it together."""
        once = Once()
        asked = {branch.run.name: self._work(block, index, branch, xs, once) for branch in branches}
        distinct = {work.key: work for work in asked.values()}
        done: dict[Any, Pair] = {}
        heard = any(branch.run.audio_only for branch in branches)
        for group in _grouped(distinct.values(), self.sharing.max_branches, asked[POSITIVE] if heard else None):
            if len(group) == 1:
                results = [self.model.run_block(block, *group[0], once)]
            else:
                results = _split(self.model.run_block(block, *_stacked(group), Once()), len(group))
            done |= {work.key: result for work, result in zip(group, results, strict=True)}
        return {name: done[work.key] for name, work in asked.items()}

    def _work(self, block: Any, index: int, branch: Branch, xs: Mapping[str, Pair], once: Once) -> Work:
        run, seen, streams, memories = branch
        options = self.model.block_options(seen.audio, run, index)._replace(audio_only=run.audio_only)
        video, audio = (
            once(_with_text, stream, self._text_memory(block, prefix, stream, run, once))
            for stream, prefix in zip(streams, ("", "audio_"), strict=True)
        )
        if memories is not None:
            audio = once(_with_reference, audio, memories.of(block, index), memories.bias)
        return Work(_hearing(run, xs), (video, audio), options)

    def _text_memory(self, block: Any, prefix: str, stream: StreamInputs, run: Pass, once: Once) -> KeysValues:
        """Keys and values of the text in a block: of the generation, or of the step."""
        prompt = stream.modulation.prompt
        keep = self._lasting[run.adapter] if prompt is None and self.sharing.keep_text else once
        memory: KeysValues = keep(text_memory, block, prefix, stream.context, prompt)
        return memory


def _places(stream: LatentState) -> tuple[Tensor | None, ...]:
    return stream.positions, stream.valid


def _pair(video: Tensor, audio: Tensor) -> Pair:
    return video, audio


def _with_text(stream: StreamInputs, memory: KeysValues) -> StreamInputs:
    return stream._replace(text=memory)


def _with_reference(stream: StreamInputs, memory: KeysValues, bias: Tensor | None) -> StreamInputs:
    return stream._replace(before=memory, before_bias=bias)


def _hearing(run: Pass, xs: Mapping[str, Pair]) -> Pair:
    """The hidden states of a pass; one on the audio alone takes the video's of the positive pass."""
    return (xs[POSITIVE][0], xs[run.name][1]) if run.audio_only else xs[run.name]


def _grouped(works: Iterable[Work], most: int, heard: Work | None) -> Iterator[list[Work]]:
    """Works that differ in numbers alone, at most so many together; alone who is `heard`, and who hears."""
    alike: dict[Any, list[Work]] = {}
    for work in works:
        alone = work is heard or work.options.audio_only
        alike.setdefault(work.key if alone else work.form, []).append(work)
    for group in alike.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


def _stacked(group: Sequence[Work]) -> Work:
    """Several works as one of a larger batch."""
    leaves, spec = zip(*(tree_flatten((work.xs, work.streams)) for work in group), strict=True)
    xs, streams = tree_unflatten([_joined(each) for each in zip(*leaves, strict=True)], spec[0])
    return Work(xs, streams, group[0].options)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    first, count = parts[0], len(parts)
    if first is None:
        return None
    if first.shape[0] == 1 and all(part is first for part in parts):
        return first.expand(count, *first.shape[1:])
    return torch.cat([part for part in parts if part is not None])


def _split(pair: Pair, count: int) -> list[Pair]:
    return list(zip(*(each.chunk(count) for each in pair), strict=True))
