# SPDX-License-Identifier: Apache-2.0
"""Which words are heard: pocketsphinx, error rates of words and letters, and words that leak from the reference."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from idlora.data.prompt import Prompt
from idlora.data.world.voice import SAMPLE_RATE, VOCABULARY
from idlora.errors import InputError
from idlora.evaluation.judges.base import Footage, JudgeRecord, Reference
from idlora.evaluation.judges.sounds import QUIETEST, Sound, at_16_khz, rms
from idlora.evaluation.judges.voices import speech_of
from idlora.evaluation.store import Values
from idlora.files import sha256_of

_PADDING = 0.3  # seconds of faint noise: the recogniser wants silence to begin with
_FRAMES_A_SECOND = 100


@dataclass(frozen=True)
class Heard:
    """A word with its start and end in seconds."""

    word: str
    start: float
    end: float


class Listener(Protocol):
    """Anything that hears words."""

    @property
    def record(self) -> JudgeRecord:
        """Who this is."""
        ...

    def hear(self, waveform: Sound, rate: int) -> list[Heard]:
        """The words of a sound (N,) in order, in lower case; none in silence."""
        ...


class WordJudge:
    """pocketsphinx's US English model with a loop over the vocabulary: any number of its words in any order.

    Pauses between words are nearly free (`silprob`, which is raised to the language weight 6.5): with pocketsphinx's
    default of 0.005 they cost so much that "eight" is heard in them. Limits: it knows no word but these, a whisper is
    beyond it, and extreme vocal tracts cost substitutions: 6 % of the words in true clips of the world are misheard.

    With `vocabulary` None it listens for English with the language model of its package: all that works offline, and
    far from what Whisper hears.
    """

    def __init__(
        self, vocabulary: Sequence[str] | None = VOCABULARY, *, word_penalty: float = 1e-3, pause: float = 0.9
    ) -> None:
        self.vocabulary = None if vocabulary is None else tuple(vocabulary)
        self.word_penalty, self.pause = word_penalty, pause

    @cached_property
    def record(self) -> JudgeRecord:
        """With the digest of the model in its package."""
        limits = "English with the language model of its package: half of the words of real speech may be misheard"
        if self.vocabulary is not None:
            settings = f"wip {self.word_penalty}, silprob {self.pause}"
            limits = f"loop over {len(self.vocabulary)} words, {settings}; no whispers"
        return JudgeRecord("pocketsphinx en-US", version("pocketsphinx"), limits, _model_digest())

    @cached_property
    def _decoder(self) -> Any:
        from pocketsphinx import Config, Decoder

        if self.vocabulary is None:
            return Decoder(Config(loglevel="FATAL"))
        decoder = Decoder(Config(loglevel="FATAL", wip=self.word_penalty, silprob=self.pause))
        grammar = f"#JSGF V1.0; grammar words; public <said> = ({' | '.join(self.vocabulary)})+;"
        decoder.add_jsgf_string("words", grammar)
        decoder.activate_search("words")
        return decoder

    def words(self, waveform: Sound, rate: int) -> list[str]:
        """The words heard, in order; none in silence."""
        return [heard.word for heard in self.hear(waveform, rate)]

    def hear(self, waveform: Sound, rate: int) -> list[Heard]:
        """See `Listener.hear`."""
        sound = at_16_khz(waveform, rate)
        if rms(sound) < QUIETEST:
            return []
        # Made anew, or what was heard before would colour the features of this sound.
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        # The whole utterance at once: its own mean is taken from the features (batch CMN).
        self._decoder.process_raw(_pcm(sound), no_search=False, full_utt=True)
        self._decoder.end_utt()
        # Alternative pronunciations are written "word(2)"; silence, noise and the ends of a sentence in brackets.
        segments = [segment for segment in self._decoder.seg() or () if segment.word[0] not in "<[("]
        return [
            Heard(segment.word.split("(")[0], _seconds(segment.start_frame), _seconds(segment.end_frame + 1))
            for segment in segments
        ]


@cache
def _model_digest() -> str:
    """SHA-256 of the digests of all that pocketsphinx's package hears with: acoustic and language model, dictionary."""
    from pocketsphinx import Config

    config = Config(loglevel="FATAL")
    acoustic = sorted(path for path in Path(config["hmm"]).iterdir() if path.is_file())
    files = [*acoustic, Path(config["dict"]), Path(config["lm"])]
    return hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest()


def _seconds(frame: int) -> float:
    return max(0.0, frame / _FRAMES_A_SECOND - _PADDING)


def _pcm(sound: Sound) -> bytes:
    """16-bit samples at -20 dBFS with 0.3 s of faint noise around."""
    level = np.pad((sound - sound.mean()) * (0.1 / rms(sound)), round(_PADDING * SAMPLE_RATE))
    noisy = level + np.random.default_rng(0).standard_normal(len(level)) * 1e-3
    return (np.clip(noisy, -1, 1) * 32767).astype("<i2").tobytes()


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Least number of substitutions, deletions and insertions between two rows of words.

    Raises:
        InputError: the reference is empty.
    """
    if not reference:
        raise InputError("the reference has no words; a word error rate needs at least one")
    import jiwer

    counts = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    return int(counts.substitutions + counts.deletions + counts.insertions)


def wer(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    """Word error rate: errors for each word of the reference, 0 or more; raises as `word_errors` does."""
    return word_errors(reference, hypothesis) / len(reference)


def letter_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """As `word_errors`, of letters, blanks between words included."""
    if not reference:
        raise InputError("the reference has no words; a letter error rate needs at least one")
    import jiwer

    counts = jiwer.process_characters(" ".join(reference), " ".join(hypothesis))
    return int(counts.substitutions + counts.deletions + counts.insertions)


def spoken_words(text: str) -> list[str]:
    """The words of a text as they are compared: lower case, no punctuation; apostrophes stay, digits too."""
    return re.findall(r"\w+(?:'\w+)*", text.lower().replace("\u2019", "'"))


def asked_words(prompt: Prompt | None) -> list[str]:
    """The words that a prompt wants spoken; raises InputError if it names none."""
    words = spoken_words(prompt.speech) if prompt is not None else []
    if not words:
        raise InputError("the prompt says no words ([SPEECH]); give it to judge what is spoken")
    return words


class WordsJudge:
    """Word and letter error rates, by one listener or by whichever of two knows the words.

    Args:
        listener: hears any words; pocketsphinx with its language model by default.
        closed: hears the words of the miniature's world alone and is asked where the prompt holds no others. None = the
            first listener is always asked.
    """

    def __init__(self, listener: Listener | None = None, closed: WordJudge | None = None) -> None:
        self.listener, self.closed = listener or WordJudge(None), closed

    @property
    def record(self) -> JudgeRecord:
        """The listeners; where there are two, each with its limits, since either may be asked."""
        own = self.listener.record
        if self.closed is None:
            return own
        closed = self.closed.record
        return JudgeRecord(
            " or ".join(dict.fromkeys((closed.name, own.name))),
            ", ".join(dict.fromkeys((closed.version, own.version))),
            f"prompts of the miniature's words: {closed.limits}; others: {own.limits}",
            "".join(dict.fromkeys((closed.weights, own.weights))),
        )

    def listener_of(self, words: Sequence[str]) -> Listener:
        """Who is asked for some words."""
        if self.closed is not None and set(words) <= set(self.closed.vocabulary or ()):
            return self.closed
        return self.listener

    def score(self, clip: Footage, reference: Reference, prompt: Prompt | None) -> Values:
        """`errors` in so many `words`, `letter_errors` in so many `letters`, what was `heard`, and by whom.

        `leaked` counts heard words that the reference says (`Reference.said`) and the prompt does not.
        """
        asked = asked_words(prompt)
        listener = self.listener_of(asked)
        heard = [each.word for each in listener.hear(speech_of(clip), SAMPLE_RATE)]
        found: Values = {
            "errors": word_errors(asked, heard),
            "words": len(asked),
            "letter_errors": letter_errors(asked, heard),
            "letters": len(" ".join(asked)),
            "heard": " ".join(heard),
            "listener": f"{listener.record.name}, {listener.record.limits}",
        }
        if reference.said:
            found["leaked"] = sum(word in set(spoken_words(reference.said)) - set(asked) for word in heard)
        return found
