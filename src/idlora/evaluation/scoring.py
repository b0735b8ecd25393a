# SPDX-License-Identifier: Apache-2.0
"""From clips to scores: what the judges say of a clip, and the tables that rows of results are made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from idlora.errors import InputError
from idlora.evaluation.judges import Embedding, Sound, SpeakerJudge, WordJudge, lip_correlation, word_errors
from idlora.evaluation.statistics import Estimate, Floats, first_ranks, margins, mean_over, own_cosines, rate_over
from idlora.evaluation.store import Values

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Judges:
    """Who judges voices and words."""

    speaker: SpeakerJudge = field(default_factory=SpeakerJudge)
    word: WordJudge = field(default_factory=WordJudge)

    def hear(self, sound: Sound, rate: int, words: Sequence[str]) -> Values:
        """The scores of a sound (N,) in which `words` should be heard. A silent one is nobody's voice."""
        heard = self.word.words(sound, rate)
        embedding = self._voice(sound, rate)
        errors = word_errors(words, heard)
        return {
            "embedding": [round(float(value), 6) for value in embedding],
            "heard": " ".join(heard),
            "errors": errors,
            "words": len(words),
        }

    def watch(self, frames: Frames, sound: Sound, rate: int, words: Sequence[str]) -> Values:
        """The scores of a clip: its sound, and its lips in frames (F, size, size, 3)."""
        return {**self.hear(sound, rate, words), "lips": lip_correlation(frames, sound, rate)}

    def _voice(self, sound: Sound, rate: int) -> Embedding:
        try:
            return self.speaker.embed(sound, rate)
        except InputError:
            return np.zeros(256, np.float32)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of clips, (speakers, clips of each) unless said otherwise."""

    embeddings: Floats  # (speakers, clips, 256)
    errors: Floats
    words: Floats
    lips: Floats  # nan where nothing is to be seen

    @classmethod
    def collect(cls, num_speakers: int, num_clips: int, of: Callable[[int, int], Values]) -> Scores:
        """Put the values `of(speaker, clip)` together."""
        values = [[of(speaker, take) for take in range(num_clips)] for speaker in range(num_speakers)]

        def column(name: str) -> Floats:
            return np.array([[clip.get(name, np.nan) for clip in clips] for clips in values], np.float64)

        embeddings = np.array([[clip["embedding"] for clip in clips] for clips in values], np.float64)
        return cls(embeddings, column("errors"), column("words"), column("lips"))

    @property
    def n(self) -> int:
        """Number of clips."""
        return self.errors.size

    def centroids(self) -> Floats:
        """Unit mean (speakers, 256) of each speaker's embeddings: what a speaker is compared with."""
        mean = self.embeddings.mean(axis=1)
        return np.asarray(mean / (np.linalg.norm(mean, axis=1, keepdims=True) + 1e-9))

    def word_error_rate(self) -> Estimate:
        """Errors for each word asked for."""
        return rate_over(self.errors, self.words)

    def lip_correlation(self) -> Estimate:
        """Mean over clips."""
        return mean_over(self.lips)


@dataclass(frozen=True, eq=False)
class Match:
    """How near clips are to the speakers they should sound like, (speakers, clips) each."""

    cosines: Floats
    margins: Floats
    firsts: Floats  # 1 = nearest of all enrolled speakers

    @classmethod
    def of(cls, scores: Scores, centroids: Floats, owners: NDArray[np.int64] | None = None) -> Match:
        """Compare clips with centroids (speakers, 256); `owners` (speakers, clips): whose voice each should be."""
        num_speakers, num_clips = scores.errors.shape
        own = np.repeat(np.arange(num_speakers), num_clips)
        speakers = own if owners is None else owners.reshape(-1)
        cosines = scores.embeddings.reshape(num_speakers * num_clips, -1) @ centroids.T
        parts = (function(cosines, speakers) for function in (own_cosines, margins, first_ranks))
        return cls(*(part.reshape(num_speakers, num_clips) for part in parts))
