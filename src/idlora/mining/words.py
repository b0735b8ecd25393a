# SPDX-License-Identifier: Apache-2.0
"""What is said in every clip and in the reference around it: Whisper where its weights are given, else pocketsphinx."""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from idlora.data.media import Voice, clean_voice
from idlora.data.media.timeline import read_mono
from idlora.errors import InputError
from idlora.evaluation.judges.whisper import WhisperListener
from idlora.evaluation.judges.words import Heard, Listener, WordJudge
from idlora.mining.mapping import Item, Outcome
from idlora.mining.settings import WordRules
from idlora.mining.tables import Row, dropped

RATE = 16_000
WORDLESS = "no words are heard"
COLUMNS = {
    "clip": "text", "file": "text", "text": "text", "reference_text": "text", "listener": "text", "rate": "number",
}  # fmt: skip


@cache
def listener_of(whisper: str, vocabulary: tuple[str, ...]) -> Listener:
    """Whisper by its weights; else pocketsphinx for some words, or for English with the model of its package."""
    return WhisperListener(whisper) if whisper else WordJudge(vocabulary or None)


def words_of(item: Item) -> Outcome:
    """Texts of the clips of a file, and of the references around them.

    Raises:
        MediaError: the sound cannot be decoded.
        WeightsError: Whisper's weights cannot be used.
    """
    rules = WordRules(item["rules"]["whisper"], tuple(item["rules"]["vocabulary"]))
    listener = listener_of(rules.whisper, rules.vocabulary)
    told = f"{listener.record.name}, {listener.record.version}"
    rows: list[Row] = []
    gone: list[Row] = []
    known: dict[tuple[float, float], list[Heard]] = {}  # clips of one shot often share their reference
    for clip in item["clips"]:
        start, end = clip["start"], clip["end"]
        low, high = clip["reference_start"], clip["reference_end"]
        if (low, high) not in known:
            known[low, high] = _heard(listener, read_mono(item["path"], RATE, low, high))
        around = known[low, high]
        inside = _inside(around, start - low, end - low)
        if inside is None:
            inside = _heard(listener, read_mono(item["path"], RATE, start, end))
        if not inside:
            gone.append(dropped(clip["clip"], item["file"], WORDLESS, span=(start, end)))
            continue
        text, reference = (" ".join(heard.word for heard in words) for words in (inside, around))
        rate = len(inside) / max(0.5, clip["spoken"])
        rows.append({"clip": clip["clip"], "text": text, "reference_text": reference, "listener": told, "rate": rate})
    return {"rows": rows, "dropped": gone}


def _heard(listener: Listener, sound: NDArray[np.float32]) -> list[Heard]:
    """The words of a sound (N,); where none are heard, those of the same without its noise, if it can be cleaned."""
    found = listener.hear(sound, RATE)
    if found or find_spec("pyrnnoise") is None:
        return found
    return listener.hear(clean_voice(Voice(sound[None], RATE)).samples[0], RATE)


def _inside(words: list[Heard], start: float, end: float) -> list[Heard] | None:
    """Of words with known times those within a span; None where times are not known."""
    if any(math.isnan(heard.start) for heard in words):
        return None
    return [heard for heard in words if start <= (heard.start + heard.end) / 2 < end]


def vocabulary_of(text: str) -> tuple[str, ...]:
    """The words of a list, one a line or parted by blanks (InputError if there is none)."""
    words = tuple(dict.fromkeys(text.lower().split()))
    if not words:
        raise InputError("the vocabulary has no words; write one a line")
    return words
