# SPDX-License-Identifier: Apache-2.0
"""The offline judges as a training run asks them: one number for a clip made after a held-out pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from idlora.data.manifest import Pair
from idlora.data.media import Voice, read_voice
from idlora.data.prompt import parse_prompt
from idlora.data.world.voice import VOCABULARY
from idlora.errors import MediaError, SettingsError
from idlora.evaluation.judges import SpeakerJudge, WordJudge, mono, wer
from idlora.evaluation.judges.words import spoken_words
from idlora.pipeline import Result


class TrainingJudge(Protocol):
    """A judge of clips made after pairs."""

    def check(self, pair: Pair) -> None:
        """Refuse a pair that no clip can be judged by (InputError or SettingsError), before any clip is made."""

    def __call__(self, result: Result, pair: Pair) -> float:
        """The measure of a clip."""


class SpeakerSimilarity:
    """Cosine of the clip's voice and the true clip's, which was recorded in the place that the caption names.

    Resemblyzer hears the room too, so the reference, recorded elsewhere, would be judged by more than the voice.
    """

    def __init__(self) -> None:
        self._judge = SpeakerJudge()

    def check(self, pair: Pair) -> None:
        """Refuse a pair whose video cannot be heard where its clip begins (MediaError)."""
        _sound(pair, 1.0)

    def __call__(self, result: Result, pair: Pair) -> float:
        """The cosine, from -1 to 1."""
        true = _sound(pair, result.audio.shape[-1] / result.sample_rate)
        return self._judge.similarity(mono(result.audio), result.sample_rate, mono(true.samples), true.sample_rate)


def _sound(pair: Pair, seconds: float) -> Voice:
    """What is heard in a pair's clip, of so many seconds or less; its video may be longer."""
    whole = read_voice(pair.video)
    first, length = (round(each * whole.sample_rate) for each in (pair.start, seconds))
    span = whole.samples[:, first : first + length]
    if not span.size:
        raise MediaError(f"{pair.video} has no sound from {pair.start:g} s on, it is {whole.seconds:.2f} s long")
    return Voice(span, whole.sample_rate)


class WordError:
    """Word error rate of the clip against its caption; the listener knows the words of the miniature's world alone."""

    def __init__(self) -> None:
        self._judge = WordJudge()

    def check(self, pair: Pair) -> None:
        """Refuse a caption with words that the listener does not know, or none (SettingsError)."""
        self._said(pair)

    def __call__(self, result: Result, pair: Pair) -> float:
        """Wrong words for each word asked for."""
        return wer(self._said(pair), self._judge.words(mono(result.audio), result.sample_rate))

    def _said(self, pair: Pair) -> list[str]:
        said = list(spoken_words(parse_prompt(pair.caption).speech))
        unknown = sorted(set(said) - set(VOCABULARY))
        if unknown or not said:
            raise SettingsError(
                f"the pair {pair.id} says {unknown or 'nothing'}, which the offline listener does not know; leave "
                "word_error out of watching.judges"
            )
        return said


_JUDGES: Mapping[str, Callable[[], TrainingJudge]] = {
    "speaker_similarity": SpeakerSimilarity,
    "word_error": WordError,
}


def judges(names: Sequence[str]) -> dict[str, TrainingJudge]:
    """Those of some names.

    Raises:
        SettingsError: what they need is not installed.
    """
    try:
        import pocketsphinx  # noqa: F401 - is it there?
        import resemblyzer  # noqa: F401 - likewise
    except ImportError as error:
        raise SettingsError(
            f"judging while training needs {error.name}, which is not here: pip install 'idlora[eval]', or leave "
            "watching.judges empty"
        ) from error
    return {name: _JUDGES[name]() for name in names}
