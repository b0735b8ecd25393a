# SPDX-License-Identifier: Apache-2.0
"""Judges that no network of ours has trained with, each a module; what most callers need stands here by name."""

from idlora.evaluation.judges.base import Absent, Footage, Judge, JudgeRecord, Reference, Unjudged, Verdict
from idlora.evaluation.judges.lips import lip_correlation
from idlora.evaluation.judges.sounds import Floats, Sound, at_16_khz, mono, pearson
from idlora.evaluation.judges.voices import Embedding, SpeakerJudge
from idlora.evaluation.judges.words import WordJudge, wer, word_errors

__all__ = [
    "Absent",
    "Embedding",
    "Floats",
    "Footage",
    "Judge",
    "JudgeRecord",
    "Reference",
    "Sound",
    "SpeakerJudge",
    "Unjudged",
    "Verdict",
    "WordJudge",
    "at_16_khz",
    "lip_correlation",
    "mono",
    "pearson",
    "wer",
    "word_errors",
]
