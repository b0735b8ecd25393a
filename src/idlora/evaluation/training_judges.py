# SPDX-License-Identifier: Apache-2.0
"""The offline judges as a training run asks them: one number for a clip made after a held-out pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from idlora.data.manifest import Pair
from idlora.data.media import read_voice
from idlora.data.prompt import parse_prompt
from idlora.data.world.voice import VOCABULARY
from idlora.errors import SettingsError
from idlora.evaluation.judges import SpeakerJudge, WordJudge, mono, wer
from idlora.evaluation.judges.words import spoken_words
from idlora.pipeline import Result

TrainingJudge = Callable[[Result, Pair], float]


def speaker_similarity() -> TrainingJudge:
    """Cosine of the clip's voice and the true clip's, which was recorded in the place that the caption names.

    Resemblyzer hears the room too, so the reference, recorded elsewhere, would be judged by more than the voice.
    """
    judge = SpeakerJudge()

    def judged(result: Result, pair: Pair) -> float:
        true = read_voice(pair.video)
        return judge.similarity(mono(result.audio), result.sample_rate, mono(true.samples), true.sample_rate)

    return judged


def word_error() -> TrainingJudge:
    """Word error rate of the clip against its caption; the listener knows the words of the miniature's world alone."""
    judge = WordJudge()

    def judged(result: Result, pair: Pair) -> float:
        said = spoken_words(parse_prompt(pair.caption).speech)
        unknown = sorted(set(said) - set(VOCABULARY))
        if unknown or not said:
            raise SettingsError(
                f"the pair {pair.id} says {unknown or 'nothing'}, which the offline listener does not know; leave "
                "word_error out of watching.judges"
            )
        return wer(said, judge.words(mono(result.audio), result.sample_rate))

    return judged


_JUDGES = {"speaker_similarity": speaker_similarity, "word_error": word_error}


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
