# SPDX-License-Identifier: Apache-2.0
"""Rows on the world itself: can its speakers, words, lips, styles, places and objects be told in true clips?"""

from __future__ import annotations

import logging

import numpy as np

from idlora.data.world.clip import ClipSpec, mouth, render_picture, render_sound
from idlora.data.world.reader import read_mouth_opening
from idlora.data.world.speakers import NUM_SPEAKERS, clip
from idlora.data.world.voice import SAMPLE_RATE
from idlora.evaluation.classifier import Ridge, sound_features
from idlora.evaluation.clips import Plan, target, true_sound
from idlora.evaluation.judges import pearson
from idlora.evaluation.report import Row
from idlora.evaluation.scoring import Judges, Scores
from idlora.evaluation.statistics import Floats, equal_error_rate_over, mean_over, rate_over
from idlora.evaluation.store import Store, Values

logger = logging.getLogger(__name__)

_TAKES = 4  # true clips of a speaker that are compared with one another
ASPECTS = ("style", "place", "object")


def world_rows(plan: Plan, store: Store, judges: Judges) -> list[Row]:
    """Speaker EER, word error rate and lips of true quiet clips; what small classifiers tell from any clip's sound."""
    scores = Scores.collect(plan.speakers, _TAKES, lambda speaker, take: _true_clip(store, judges, speaker, take))
    openings = np.array([[store[_key(s, t)]["opening"] for t in range(_TAKES)] for s in range(plan.speakers)])
    return [
        Row("speaker EER, true clips", equal_error_rate_over(scores.embeddings), scores.n),
        Row("WER, true clips", scores.word_error_rate(), scores.n),
        Row("lip correlation, true clips", scores.lip_correlation(), scores.n),
        Row("mouth opening r, true clips", mean_over(openings), scores.n),
        *classifier_rows(plan),
    ]


def _key(speaker: int, take: int) -> str:
    return f"world/{speaker}/{take}"


def _true_clip(store: Store, judges: Judges, speaker: int, take: int) -> Values:
    def judge() -> Values:
        logger.info("world: speaker %d, clip %d", speaker, take)
        return _judged(target("test", speaker, take), judges)

    return store.recall(_key(speaker, take), judge)


def _judged(spec: ClipSpec, judges: Judges) -> Values:
    sound = render_sound(spec)
    frames = render_picture(spec, sound)
    read = read_mouth_opening(frames).astype(np.float64)
    values = judges.watch(frames, sound.samples.astype(np.float32), SAMPLE_RATE, spec.words)
    return {**values, "opening": pearson(read, mouth(sound)[0])}


def classifier_rows(plan: Plan) -> list[Row]:
    """Accuracy over unseen speakers of classifiers that learn from the training split's sounds."""
    learnt = [clip("train", index) for index in range(plan.world_clips)]
    # As many clips of every unseen speaker, so that speakers can be drawn again.
    each = max(1, plan.world_clips // (3 * plan.speakers))
    asked = [clip("test", s + NUM_SPEAKERS["test"] * take) for s in range(plan.speakers) for take in range(each)]
    logger.info("world: classifiers learn from %d sounds and are asked %d", len(learnt), len(asked))
    known, unknown = _features(learnt), _features(asked)
    return [_accuracy(aspect, (learnt, known), (asked, unknown), plan.speakers) for aspect in ASPECTS]


def _features(specs: list[ClipSpec]) -> Floats:
    return np.stack([sound_features(true_sound(spec)) for spec in specs])


def _accuracy(
    aspect: str, learnt: tuple[list[ClipSpec], Floats], asked: tuple[list[ClipSpec], Floats], num_speakers: int
) -> Row:
    classifier = Ridge.fit(learnt[1], [getattr(spec, aspect) for spec in learnt[0]])
    truth = [getattr(spec, aspect) for spec in asked[0]]
    right = np.array(classifier.predict(asked[1])) == np.array(truth)
    table = right.astype(np.float64).reshape(num_speakers, -1)
    return Row(f"{aspect} told by ear: accuracy", rate_over(table, np.ones_like(table)), right.size)
