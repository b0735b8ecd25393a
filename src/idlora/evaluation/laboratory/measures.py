# SPDX-License-Identifier: Apache-2.0
"""What is reported of judges' scores: each measure by name, how it is summed, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from idlora.evaluation.judges.base import Verdict

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Measure:
    """One column of results.

    Attributes:
        name: as readers see it.
        judge: whose score it is.
        score: name of the score.
        per: name of the score it is summed over, such as words; empty = the mean over clips.
        better: which way is better.
    """

    name: str
    judge: str
    score: str
    per: str = ""
    better: Better = "higher"

    def parts(self, verdict: Verdict) -> tuple[float, float] | None:
        """Sum and weight of a clip; None where there is no score, or nothing that it is summed over."""
        top = verdict.value(self.judge, self.score)
        weight = verdict.value(self.judge, self.per) if self.per else 1.0
        if top is None or not weight:
            return None
        return float(top), float(weight)


MEASURES: tuple[Measure, ...] = (
    Measure("speaker similarity", "speaker", "similarity"),
    Measure("speaker similarity to the true clip", "speaker", "truth"),
    Measure("speaker similarity, WavLM-SV", "speaker-wavlm-sv", "similarity"),
    Measure("speaker similarity, WavLM-Large and ECAPA", "speaker-wavlm-ecapa", "similarity"),
    Measure("speaker similarity, ECAPA", "speaker-ecapa", "similarity"),
    Measure("face similarity, world", "face-world", "similarity"),
    Measure("face similarity, ArcFace", "face-arcface", "similarity"),
    Measure("lip correlation, world", "lips-world", "correlation"),
    Measure("lip offset, s", "lips-world", "offset", better="neither"),
    Measure("LSE-D", "lips-syncnet", "distance", better="lower"),
    Measure("LSE-C", "lips-syncnet", "confidence"),
    Measure("SyncNet offset, s", "lips-syncnet", "offset", better="neither"),
    Measure("CLAP, sounds", "sounds-clap", "sounds"),
    Measure("CLAP, speech", "sounds-clap", "speech"),
    Measure("CLAP, visual", "sounds-clap", "visual"),
    Measure("CLAP, all parts", "sounds-clap", "prompt"),
    Measure("place as asked, world", "sounds-world", "place_right"),
    Measure("style as asked, world", "sounds-world", "style_right"),
    Measure("object as asked, world", "sounds-world", "object_right"),
    Measure("place copied from the reference, world", "sounds-world", "place_copied", better="lower"),
    Measure("WER", "words", "errors", "words", "lower"),
    Measure("CER", "words", "letter_errors", "letters", "lower"),
    Measure("words leaked from the reference, a word asked for", "words", "leaked", "words", "lower"),
    Measure("WER, Whisper", "words-whisper", "errors", "words", "lower"),
    Measure("CER, Whisper", "words-whisper", "letter_errors", "letters", "lower"),
    Measure("onset gap", "onset", "gap"),
    Measure("onset gap to the reference", "onset", "reference_gap"),
    Measure("WER of the first 0.5 s", "onset", "onset_errors", "onset_words", "lower"),
    Measure("WER of the rest", "onset", "rest_errors", "rest_words", "lower"),
    Measure("drift a second", "drift", "slope"),
    Measure("lowest similarity of a second", "drift", "lowest"),
    Measure("loudness, LUFS", "levels", "loudness", better="neither"),
    Measure("peak, dBFS", "levels", "peak", better="neither"),
    Measure("silent share", "levels", "silent", better="neither"),
    Measure("clipped share", "levels", "clipped", better="lower"),
    Measure("STOI", "levels", "stoi"),
)
