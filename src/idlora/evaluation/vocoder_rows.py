# SPDX-License-Identifier: Apache-2.0
"""Rows on the vocoder: the same true clips through the audio autoencoder, then the model's vocoder and Griffin-Lim."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch

from idlora.data.world.clip import ClipSpec
from idlora.data.world.voice import SAMPLE_RATE
from idlora.evaluation.clips import Plan, enrolment, target, true_sound
from idlora.evaluation.codec_rows import Codec, ShippedCodec
from idlora.evaluation.judges import Sound, at_16_khz
from idlora.evaluation.report import Row
from idlora.evaluation.scoring import Judges, Match, Scores
from idlora.evaluation.statistics import Floats, mean_over, rate_over
from idlora.evaluation.store import Store, Values
from idlora.networks.codecs import GriffinLimVocoder
from idlora.training.miniature.vocoder import FLOOR, magnitude

logger = logging.getLogger(__name__)

WINDOW, STEP = 400, 160  # samples at 16 kHz, 25 and 10 ms: none of the resolutions that a vocoder is trained at


def vocoders(codec: Codec) -> dict[str, Codec]:
    """A codec by the name of its vocoder, and the same one with Griffin-Lim if that is not what it has."""
    if not isinstance(codec, ShippedCodec):
        return {type(codec).__name__: codec}
    own, mel = codec.codecs.vocoder, codec.codecs.audio.mel.config
    plain = GriffinLimVocoder(mel.sample_rate, mel.n_fft, mel.hop_length, mel.num_bins).to(own.device)
    both = ShippedCodec(replace(codec.codecs, vocoder=plain)), codec
    return {type(other.codecs.vocoder).__name__: other for other in both}


def vocoder_rows(plan: Plan, store: Store, judges: Judges, codecs: Mapping[str, Codec]) -> list[Row]:
    """Voice, words and spectrum of the clips asked for with every vocoder, and each less those before it.

    Voices are compared with true sounds, unlike in the rows on the codec: noises of one vocoder are like one another,
    so against sounds coded alike the worst would have the best cosines. The log-spectral distance favours one that
    was trained to make it small; voice and words do not.
    """
    centroids = _enrolled(plan, store, judges)
    outcomes = {name: _outcome(plan, store, judges, (name, codec), centroids) for name, codec in codecs.items()}
    rows = [row for name, outcome in outcomes.items() for row in outcome.rows(name)]
    for first, last in combinations(outcomes, 2):
        rows += outcomes[last].less(outcomes[first]).rows(f"{last} less {first}")
    return rows


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What was heard of clips, (speakers, clips) each; sums and differences of such tables are tables again."""

    cosines: Floats
    margins: Floats
    errors: Floats
    words: Floats
    distances: Floats

    def less(self, other: _Outcome) -> _Outcome:
        """The difference on the same clips, whose intervals are those of a paired comparison."""
        return _Outcome(
            self.cosines - other.cosines,
            self.margins - other.margins,
            self.errors - other.errors,
            self.words,
            self.distances - other.distances,
        )

    def rows(self, name: str) -> list[Row]:
        """Its rows under the name of a vocoder."""
        size = self.errors.size
        return [
            Row(f"{name}: cos", mean_over(self.cosines), size),
            Row(f"{name}: margin", mean_over(self.margins), size),
            Row(f"{name}: WER", rate_over(self.errors, self.words), size),
            Row(f"{name}: log-spectral distance, dB", mean_over(self.distances), size),
        ]


def _enrolled(plan: Plan, store: Store, judges: Judges) -> Floats:
    """The unit mean (speakers, 256) of other quiet true clips of every speaker."""

    def one(speaker: int, take: int) -> Values:
        spec = enrolment("test", speaker, take)
        key = f"vocoder enrolment/{speaker}/{take}"
        return store.recall(key, lambda: judges.hear(true_sound(spec), SAMPLE_RATE, spec.words))

    return Scores.collect(plan.speakers, plan.enrolments, one).centroids()


def _outcome(plan: Plan, store: Store, judges: Judges, named: tuple[str, Codec], centroids: Floats) -> _Outcome:
    name, codec = named

    def one(speaker: int, prompt: int) -> Values:
        key = f"vocoder/{name}/{speaker}/{prompt}"
        return store.recall(key, lambda: _heard(key, target("test", speaker, prompt), judges, codec))

    scores = Scores.collect(plan.speakers, plan.prompts, one)
    match = Match.of(scores, centroids)
    distances = np.array([[one(s, p)["distance"] for p in range(plan.prompts)] for s in range(plan.speakers)])
    return _Outcome(match.cosines, match.margins, scores.errors, scores.words, distances)


def _heard(key: str, spec: ClipSpec, judges: Judges, codec: Codec) -> Values:
    logger.info("%s", key)
    true = true_sound(spec)
    sound, rate = codec.sound(true)
    distance = log_spectral_distance(true, at_16_khz(sound, rate))
    return {**judges.hear(sound, rate, spec.words), "distance": distance}


def log_spectral_distance(true: Sound, other: Sound) -> float:
    """Distance in dB of sounds (N,) at 16 kHz: root mean square over frequency, mean over time (Gray and Markel 1976).

    Magnitudes below -80 dB of full scale are raised to it, so that what nobody hears does not count.
    """
    shared = min(len(true), len(other))
    pair = torch.from_numpy(np.stack([true[:shared], other[:shared]]).astype(np.float32))
    decibels = 20 * magnitude(pair, WINDOW, STEP).clamp(min=FLOOR).log10()  # (2, K, T)
    return float((decibels[0] - decibels[1]).square().mean(0).sqrt().mean())
