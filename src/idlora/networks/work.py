# SPDX-License-Identifier: Apache-2.0
"""What a step takes, foretold from shapes and plan: blocks, matrix products and their floating point operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from idlora.core.guidance import POSITIVE, Pass
from idlora.networks.generations import Generation, generation_of


@dataclass(frozen=True)
class Work:
    """A number of matrix products, attention counting as two, and their operations (2 for each multiplication)."""

    products: int = 0
    flops: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.flops + other.flops)

    def __mul__(self, times: int) -> Work:
        return Work(self.products * times, self.flops * times)


class Tokens(NamedTuple):
    """Numbers of tokens of one sample."""

    video: int
    audio: int
    reference: int
    text: int


NOTHING = Work()
Reference = Literal["joint", "alone", "kept"]
"""In all passes with the target; by itself, in this step; by itself in an earlier one."""


def _linear(rows: int, *widths: int) -> Work:
    """Layers one after the other, from width to width."""
    pairs = list(pairwise(widths))
    return Work(len(pairs), sum(2 * rows * a * b for a, b in pairs))


def _scores(queries: int, keys: int, width: int) -> Work:
    return Work(2, 4 * queries * keys * width)


class BlockWork:
    """What the parts of a block take.

    Args:
        config: of the transformer.
        tokens: of the sample.
        hidden: leading audio tokens that no video query sees.
    """

    def __init__(self, config: Any, tokens: Tokens, hidden: int = 0) -> None:
        self.tokens, self.hidden = tokens, hidden
        self.generation: Generation = generation_of(config)
        self.heads = config["num_attention_heads"], config["audio_num_attention_heads"]
        sizes = config["attention_head_dim"], config["audio_attention_head_dim"]
        self.widths = self.heads[0] * sizes[0], self.heads[1] * sizes[1]
        self.contexts = config["cross_attention_dim"], config["audio_cross_attention_dim"]
        self.gated = bool(config["gated_attn"])

    def _gate(self, rows: int, width: int, heads: int) -> Work:
        return _linear(rows, width, heads) if self.gated else NOTHING

    def own(self, stream: int, rows: int, before: int = 0) -> Work:
        """Self-attention; there are keys and values of so many tokens before."""
        width = self.widths[stream]
        attended = _linear(rows, width, width) * 4 + _scores(rows, before + rows, width)
        return attended + self._gate(rows, width, self.heads[stream])

    def alone(self) -> Work:
        """A reference that hears itself alone."""
        return self.own(1, self.tokens.reference) + self.fed(1, self.tokens.reference)

    def passed(self, stream: int, rows: int) -> Work:
        """Perturbed self-attention."""
        if self.generation.stg == "skip":
            return NOTHING
        width = self.widths[stream]
        return _linear(rows, width, width) * 2 + self._gate(rows, width, self.heads[stream])

    def text_memory(self, stream: int) -> Work:
        """Keys and values of the text."""
        return _linear(self.tokens.text, self.contexts[stream], self.widths[stream]) * 2

    def text(self, stream: int, rows: int) -> Work:
        """Attention to the text, whose keys and values are there."""
        width = self.widths[stream]
        attended = _linear(rows, width, width) * 2 + _scores(rows, self.tokens.text, width)
        return attended + self._gate(rows, width, self.heads[stream])

    def to_video(self, rows: int, reference: bool) -> Work:
        """The video hears the audio."""
        (video, audio), keys, queries = self.widths, rows - self.hidden * reference, self.tokens.video
        attended = _linear(queries, video, audio) + _linear(keys, audio, audio) * 2 + _linear(queries, audio, video)
        return attended + _scores(queries, keys, audio) + self._gate(queries, video, self.heads[1])

    def seen(self) -> Work:
        """Keys and values of the video for the audio."""
        return _linear(self.tokens.video, self.widths[0], self.widths[1]) * 2

    def to_audio(self, rows: int) -> Work:
        """The audio sees the video, whose keys and values are there."""
        width = self.widths[1]
        attended = _linear(rows, width, width) * 2 + _scores(rows, self.tokens.video, width)
        return attended + self._gate(rows, width, self.heads[1])

    def fed(self, stream: int, rows: int) -> Work:
        """Feed-forward."""
        width = self.widths[stream]
        return _linear(rows, width, 4 * width, width)


class _Stage(NamedTuple):
    """What a pass is before a block; two passes with an equal stream compute the same there."""

    run: Pass
    video: tuple[Any, ...]
    audio: tuple[Any, ...]


def _stages(plan: Sequence[Pass], index: int) -> list[_Stage]:
    """Every pass that a block is computed for; a perturbed one is the positive one until it is perturbed."""
    found = []
    for run in plan:
        begins = min(run.perturbed_blocks, default=0)
        if index < begins:
            continue
        name = POSITIVE if run.perturbed_blocks and index == begins else run.name
        changed = run.perturbed_streams if index in run.perturbed_blocks else ()
        video = "" if index == 0 else POSITIVE if run.audio_only else name
        audio = "" if index == 0 else name
        found.append(
            _Stage(
                run,
                (video, run.negative_text, "video" in changed),
                (audio, run.negative_text, run.reference, "audio" in changed),
            )
        )
    return found


def block_evaluations(plan: Sequence[Pass], num_blocks: int) -> int:
    """How often a block is computed in a step, on both streams or on one."""
    return sum(len(_stages(plan, index)) for index in range(num_blocks))


def step_work(
    config: Any,
    tokens: Tokens,
    plan: Sequence[Pass],
    *,
    hide_reference: bool = False,
    kept_text: bool = False,
    reference: Reference = "joint",
) -> Work:
    """The products in the blocks of one step; not those of timesteps, inputs and outputs.

    Args:
        config: of the transformer.
        tokens: of the sample; a pass without the reference has fewer.
        plan: passes with the adapter, each a branch of its own, the positive one first.
        hide_reference: no video query sees the reference.
        kept_text: keys and values of the text are there from an earlier step.
        reference: where it is computed.
    """
    joint = reference == "joint"
    block = BlockWork(config, tokens, tokens.reference if hide_reference and joint else 0)
    layers = range(config["num_layers"])
    work = sum((_at(block, _stages(plan, index), kept_text, joint) for index in layers), NOTHING)
    return work + block.alone() * len(layers) if reference == "alone" else work


def _at(block: BlockWork, stages: Sequence[_Stage], kept_text: bool, joint: bool) -> Work:
    """One block; the reference's rows are among the audio's if it is joint, and else keys before them."""
    tokens, work = block.tokens, NOTHING
    among, before = (tokens.reference, 0) if joint else (0, tokens.reference)
    if not kept_text:
        texts = {stage.run.negative_text for stage in stages}
        work += (block.text_memory(0) + block.text_memory(1)) * len(texts)
    for _, _, perturbed in {stage.video for stage in stages}:
        work += (block.passed if perturbed else block.own)(0, tokens.video) + block.text(0, tokens.video)
    for _, _, reference, perturbed in {stage.audio for stage in stages}:
        rows = tokens.audio + among * reference
        work += block.passed(1, rows) if perturbed else block.own(1, rows, before * reference)
        work += block.text(1, rows)
    work += block.seen() * len({stage.video for stage in stages if not stage.run.isolated})
    for run, _, _ in stages:
        rows = tokens.audio + among * run.reference
        work += block.fed(1, rows)
        if not run.audio_only:
            work += block.fed(0, tokens.video)
        if not run.isolated:
            work += block.to_audio(rows)
            work += NOTHING if run.audio_only else block.to_video(rows, run.reference)
    return work
