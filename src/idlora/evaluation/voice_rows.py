# SPDX-License-Identifier: Apache-2.0
"""Rows on generated clips: does an unseen speaker's voice carry over, with the right words and lips?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from idlora.core.guidance import IdentityGuidance
from idlora.data.media import Voice
from idlora.data.world.captions import caption
from idlora.data.world.speakers import Split
from idlora.data.world.voice import SAMPLE_RATE
from idlora.evaluation.clips import Plan, first_frame, reference_sound, target
from idlora.evaluation.codec_rows import Codec, ShippedCodec, ceiling, coded, enrolled
from idlora.evaluation.judges import mono
from idlora.evaluation.report import Row
from idlora.evaluation.scoring import Judges, Match, Scores
from idlora.evaluation.statistics import mean_over, share_over
from idlora.evaluation.store import Store, Values
from idlora.pipeline import IDLoraPipeline, Request, Settings

logger = logging.getLogger(__name__)

Arm = Literal["reference", "wrong reference", "floor"]
IDENTITY_SCALE = 1.0


class Clip(Protocol):
    """What is judged of a generated clip: `Result` of the pipeline, or another with the same parts."""

    @property
    def video(self) -> NDArray[np.uint8]:
        """Frames (F, height, width, 3)."""
        ...

    @property
    def audio(self) -> NDArray[np.float32]:
        """Samples (channels, N)."""
        ...

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        ...


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        generate: clips from requests that share their settings but for seeds.
        codec: the shipped one; ceiling and enrolment go through it.
        settings: of all generated clips; the identity scale is set to 1 by the protocol.
        model: name and digests, kept with the results.
        base: inside this context `generate` works without the adapter.
    """

    generate: Callable[[Sequence[Request]], Sequence[Clip]]
    codec: Codec
    settings: Settings
    model: Mapping[str, Any]
    base: Callable[[], AbstractContextManager[None]] = nullcontext

    @classmethod
    def of(cls, pipe: IDLoraPipeline, model: Mapping[str, Any], settings: Settings | None = None) -> Subject:
        """A pipeline with its own settings unless others are given."""
        base = pipe.adapters.without_identity
        return cls(pipe.generate_batch, ShippedCodec(pipe.codecs), settings or pipe.card.defaults, model, base)

    def settings_of(self, arm: Arm) -> Settings:
        """Identity guidance 1 with a reference, none without."""
        guidance = self.settings.guidance
        identity: IdentityGuidance = replace(guidance.identity, scale=0.0 if arm == "floor" else IDENTITY_SCALE)
        return replace(self.settings, guidance=replace(guidance, identity=identity))


@dataclass(frozen=True)
class Bench:
    """What every row needs."""

    plan: Plan
    store: Store
    judges: Judges
    subject: Subject


def voice_rows(bench: Bench, split: Split) -> list[Row]:
    """Share, ranks, words and lips with the right reference, between the base without one and the coded truth."""
    plan, store, judges, codec = bench.plan, bench.store, bench.judges, bench.subject.codec
    centroids = enrolled(plan, store, judges, codec, split)
    top = Match.of(ceiling(plan, store, judges, codec, split), centroids)
    adapted, bare = generated(bench, split, "reference"), generated(bench, split, "floor")
    match, floor = Match.of(adapted, centroids), Match.of(bare, centroids)
    return [
        Row("voice share", share_over(match.margins, floor.margins, top.margins), adapted.n),
        Row("top-1", mean_over(match.firsts), adapted.n),
        Row("WER", adapted.word_error_rate(), adapted.n),
        Row("lip correlation", adapted.lip_correlation(), adapted.n),
        Row("cos", mean_over(match.cosines), adapted.n),
        Row("margin", mean_over(match.margins), adapted.n),
        Row("floor: cos", mean_over(floor.cosines), bare.n),
        Row("floor: margin", mean_over(floor.margins), bare.n),
        Row("floor: WER", bare.word_error_rate(), bare.n),
        Row("floor: lip correlation", bare.lip_correlation(), bare.n),
        Row("ceiling: margin", mean_over(top.margins), adapted.n),
        Row("ceiling: top-1", mean_over(top.firsts), adapted.n),
    ]


def wrong_rows(bench: Bench, split: Split) -> list[Row]:
    """With another speaker's reference: nearness to the speaker it should not be, and to the one it is."""
    plan, store = bench.plan, bench.store
    centroids = enrolled(plan, store, bench.judges, bench.subject.codec, split)
    scores, truth = generated(bench, split, "wrong reference"), _others_truth(bench, split)
    match, followed = Match.of(scores, centroids), Match.of(scores, centroids, _others(plan))
    likeness = Match.of(truth, centroids)
    return [
        Row("wrong reference: margin", mean_over(match.margins), scores.n),
        Row("wrong reference: margin of its speaker's true clips", mean_over(likeness.margins), truth.n),
        Row("wrong reference: top-1", mean_over(match.firsts), scores.n),
        Row("wrong reference: margin to its own speaker", mean_over(followed.margins), scores.n),
        Row("wrong reference: WER", scores.word_error_rate(), scores.n),
        Row("wrong reference: lip correlation", scores.lip_correlation(), scores.n),
    ]


def other_speaker(index: int, prompt: int, num_speakers: int) -> int:
    """Whose reference a speaker gets in place of the own one, for every prompt another.

    Two voices may be alike by chance; the more pairs, the less that weighs.
    """
    step = 1 + (num_speakers // 3 * (prompt + 1) - 1) % (num_speakers - 1)
    return (index + step) % num_speakers


def _others(plan: Plan) -> NDArray[np.int64]:
    """`other_speaker` of every speaker and prompt."""
    speakers, prompts = range(plan.speakers), range(plan.prompts)
    return np.array([[other_speaker(index, prompt, plan.speakers) for prompt in prompts] for index in speakers])


def _others_truth(bench: Bench, split: Split) -> Scores:
    """Coded true clips of the speakers whose references are wrong: how alike the pairs are by chance."""
    plan, others = bench.plan, _others(bench.plan)

    def one(speaker: int, prompt: int) -> Values:
        return coded(bench.store, bench.judges, bench.subject.codec, split, int(others[speaker, prompt]), prompt)

    return Scores.collect(plan.speakers, plan.prompts, one)


def generated(bench: Bench, split: Split, arm: Arm) -> Scores:
    """Scores of one generated clip for each speaker and prompt; those in the store are not made again."""
    plan = bench.plan
    clips = [(speaker, prompt) for speaker in range(plan.speakers) for prompt in range(plan.prompts)]
    wanted = [clip for clip in clips if _key(plan, split, arm, clip) not in bench.store]
    with bench.subject.base() if arm == "floor" else nullcontext():
        for batch in _batches(wanted, plan.batch):
            logger.info("%s, %s: speaker %d of %d", split, arm, batch[-1][0] + 1, plan.speakers)
            _make(bench, split, arm, batch)
    return Scores.collect(plan.speakers, plan.prompts, lambda s, p: bench.store[_key(plan, split, arm, (s, p))])


def _key(plan: Plan, split: Split, arm: Arm, index: tuple[int, int]) -> str:
    speaker, prompt = index
    key = f"{arm}/{split}/{speaker}/{prompt}"
    return f"{key}/{other_speaker(speaker, prompt, plan.speakers)}" if arm == "wrong reference" else key


def _batches(items: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _make(bench: Bench, split: Split, arm: Arm, batch: Sequence[tuple[int, int]]) -> None:
    requests = [request(bench, split, arm, index) for index in batch]
    clips = bench.subject.generate(requests)
    for (speaker, prompt), clip in zip(batch, clips, strict=True):
        words = target(split, speaker, prompt).words
        values: Values = bench.judges.watch(clip.video, mono(clip.audio), clip.sample_rate, words)
        bench.store.put(_key(bench.plan, split, arm, (speaker, prompt)), values)


def request(bench: Bench, split: Split, arm: Arm, index: tuple[int, int]) -> Request:
    """What the pipeline is asked for clip `index` = (speaker, prompt): the seed is the same in every arm."""
    speaker, prompt = index
    asked = target(split, speaker, prompt)
    settings = replace(bench.subject.settings_of(arm), seed=speaker + 1000 * prompt)
    return Request(caption(asked), settings, first_frame(asked), _reference(bench.plan, split, arm, index))


def _reference(plan: Plan, split: Split, arm: Arm, index: tuple[int, int]) -> Voice | None:
    if arm == "floor":
        return None
    speaker, prompt = index
    whose = speaker if arm == "reference" else other_speaker(speaker, prompt, plan.speakers)
    samples = reference_sound(split, whose, target(split, speaker, prompt), plan.reference_seconds)
    return Voice(samples[None], SAMPLE_RATE)
