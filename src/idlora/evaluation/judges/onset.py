# SPDX-License-Identifier: Apache-2.0
"""The start-of-clip glitch: is another voice, or are other words, heard in the first half second?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from idlora.data.prompt import Prompt
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import IDLoraError, InputError
from idlora.evaluation.judges.base import Footage, JudgeRecord, Reference
from idlora.evaluation.judges.sounds import Sound
from idlora.evaluation.judges.voices import SpeakerEncoder, speech_of
from idlora.evaluation.judges.words import Heard, WordsJudge, asked_words
from idlora.evaluation.store import Values

ONSET = 0.5  # seconds
_LOOP = 1.6  # seconds: what encoders were trained on; a shorter window is repeated until it lasts as long


@dataclass(frozen=True)
class Portion:
    """Word errors and words asked for of a part of a clip."""

    errors: int
    words: int


class OnsetJudge:
    """The first half second against the rest of the clip.

    `gap` is the similarity of the first half second to the rest, less the mean of the same for the later half seconds,
    each compared with what is left of the clip without the onset: about 0 in a sound clip, below in one that begins
    with another voice. `reference_gap` asks the reference instead: similarity of the onset to it less that of the rest,
    about -0.06 in true clips of the world and -0.26 where 0.4 s of another voice were planted. Limits: half a second
    holds one word, so either gap of one clip is uncertain by about 0.1; compare means over clips.
    """

    def __init__(self, encoder: SpeakerEncoder, words: WordsJudge) -> None:
        self.encoder, self.words = encoder, words

    @property
    def record(self) -> JudgeRecord:
        """Encoder and listener as one."""
        voice, word = self.encoder.record, self.words.record
        limits = "one clip's gap is uncertain by 0.1, compare means; missing words are spread over the time they lack"
        return JudgeRecord(
            f"{voice.name} and {word.name}",
            f"{voice.version}, {word.version}",
            f"{limits}; {word.limits}",
            voice.weights + word.weights,
        )

    def score(self, clip: Footage, reference: Reference, prompt: Prompt | None) -> Values:
        """`gap`, `similarity` of onset and rest; `reference_gap` if there is one; errors and words of both parts."""
        sound = speech_of(clip)
        found = self._voices(sound)
        if reference.voice is not None:
            speaker = self.encoder.embed(speech_of(reference.voice), SAMPLE_RATE)
            edge = round(ONSET * SAMPLE_RATE)
            onset, rest = (float(self._window(part) @ speaker) for part in (sound[:edge], sound[edge:]))
            found |= {"onset_reference": onset, "rest_reference": rest, "reference_gap": onset - rest}
        try:
            asked = asked_words(prompt)
        except IDLoraError:
            return found  # a voice can be judged without words
        words = self.words.listener_of(asked).hear(sound, SAMPLE_RATE)
        first, later = split_errors(asked, words, ONSET, len(sound) / SAMPLE_RATE)
        found |= {"onset_errors": first.errors, "onset_words": first.words}
        return found | {"rest_errors": later.errors, "rest_words": later.words}

    def _voices(self, sound: Sound) -> Values:
        edge = round(ONSET * SAMPLE_RATE)
        later = [slice(start, start + edge) for start in range(edge, len(sound) - edge + 1, edge)]
        if len(later) < 2:
            raise InputError(f"{len(sound) / SAMPLE_RATE:.2f} s are too short; an onset shows in 1.5 s or more")
        near = float(self._window(sound[:edge]) @ self._window(sound[edge:]))
        usual = [self._against_others(sound[edge:], slice(part.start - edge, part.stop - edge)) for part in later]
        return {"gap": near - float(np.mean([value for value in usual if value is not None])), "similarity": near}

    def _against_others(self, sound: Sound, part: slice) -> float | None:
        """Similarity of one window to everything else; None of a silent one."""
        others = np.concatenate([sound[: part.start], sound[part.stop :]])
        try:
            return float(self._window(sound[part]) @ self._window(others))
        except InputError:
            return None

    def _window(self, sound: Sound) -> Sound:
        length = round(_LOOP * SAMPLE_RATE)
        return self.encoder.embed(sound if len(sound) >= length else np.resize(sound, length), SAMPLE_RATE)


def split_errors(asked: Sequence[str], heard: Sequence[Heard], edge: float, seconds: float) -> tuple[Portion, Portion]:
    """Word errors before and after a moment, by the best alignment of the words heard with those asked for.

    A heard word lies where it begins. Missing words share the time between the heard ones around them, or the clip's
    start or end where there is none, in equal parts, and each lies in the middle of its own: of a clip in which nothing
    is heard, a part has its share of the errors. In true clips of the world this puts every word on the side of 0.5 s
    on which it is spoken, whichever are missing.

    Args:
        asked: the words asked for.
        heard: the words heard, in order.
        edge: the moment, in seconds.
        seconds: length of the clip.
    """
    import jiwer

    chunks = jiwer.process_words(" ".join(asked), " ".join(each.word for each in heard)).alignments[0]
    places: list[tuple[float, int, int]] = []  # second, errors, words
    for chunk in chunks:
        missed = int(chunk.type != "equal")
        if chunk.type == "delete":
            after, count = chunk.hyp_start_idx, chunk.ref_end_idx - chunk.ref_start_idx
            start = heard[after - 1].end if after else 0.0
            share = ((heard[after].start if after < len(heard) else seconds) - start) / count
            places += [(start + (number + 0.5) * share, 1, 1) for number in range(count)]
        else:
            words = int(chunk.type != "insert")
            said = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
            places += [(each.start, missed, words) for each in said]
    early, late = ([row for row in places if (row[0] < edge) == first] for first in (True, False))
    onset, rest = (Portion(sum(row[1] for row in part), sum(row[2] for row in part)) for part in (early, late))
    return onset, rest
