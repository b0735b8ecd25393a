# SPDX-License-Identifier: Apache-2.0
"""Judges that no network of ours has trained with: whose voice it is, which words are heard, whether lips follow.

Sounds are mono (N,) in [-1, 1] at any rate; a judge resamples to the 16 kHz that it was made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idlora.data.media.sounds import resample
from idlora.data.world.clip import speech_energy
from idlora.data.world.reader import read_mouth_opening
from idlora.data.world.voice import SAMPLE_RATE, VOCABULARY
from idlora.errors import InputError

Sound = NDArray[np.float32]
Embedding = NDArray[np.float32]
Floats = NDArray[np.float64]

_QUIETEST = 1e-4  # root mean square below which there is nothing to judge: -80 dBFS


@dataclass(frozen=True)
class Judge:
    """Who judges: a package, its version and what its verdict is worth."""

    name: str
    version: str
    limits: str


class SpeakerJudge:
    """Resemblyzer (GE2E, Wan et al. 2018) on one CPU core with the weights in its package.

    Limits: trained on English read speech; it hears the room as well as the speaker (same-speaker similarity falls
    from about 0.8 within one place to 0.6 across places), so compare sounds of one place only. Whispers and sounds
    under a second are not reliable.
    """

    @cached_property
    def record(self) -> Judge:
        """Who this is."""
        return Judge("Resemblyzer", version("Resemblyzer"), "compare sounds of one place only; not for whispers")

    @cached_property
    def _encoder(self) -> Any:
        from resemblyzer import VoiceEncoder

        return VoiceEncoder("cpu", verbose=False)

    def embed(self, waveform: Sound, rate: int) -> Embedding:
        """Unit vector (256,) of a voice; pauses are taken out as Resemblyzer does.

        Raises:
            InputError: the sound is silent or not mono.
        """
        from resemblyzer.audio import normalize_volume, trim_long_silences
        from resemblyzer.hparams import audio_norm_target_dBFS

        sound = np.clip(at_16_khz(waveform, rate), -1, 1)
        _refuse_silence(sound)
        # Its spectrogram is not logarithmic, so one level for all: the loudness of a clip is no part of a voice.
        loud = np.clip(normalize_volume(sound, audio_norm_target_dBFS), -1, 1)
        spoken = trim_long_silences(loud)
        # The detector may find no speech in a poor clip; then all of it is judged.
        heard = spoken if len(spoken) >= SAMPLE_RATE // 4 else loud
        return np.asarray(self._encoder.embed_utterance(heard), np.float32)

    def similarity(self, wave_a: Sound, rate_a: int, wave_b: Sound, rate_b: int) -> float:
        """Cosine of two voices, in [0, 1]: Resemblyzer's vectors have no negative entries."""
        return float(self.embed(wave_a, rate_a) @ self.embed(wave_b, rate_b))


class WordJudge:
    """pocketsphinx's US English model with a loop over the vocabulary: any number of its words in any order.

    Pauses between words are nearly free (`silprob`, which is raised to the language weight 6.5): with pocketsphinx's
    default of 0.005 they cost so much that "eight" is heard in them. Limits: it knows no word but these, a whisper is
    beyond it, and extreme vocal tracts cost substitutions: 8 % of the words in true clips of the world are misheard.
    """

    def __init__(
        self, vocabulary: Sequence[str] = VOCABULARY, *, word_penalty: float = 1e-3, pause: float = 0.9
    ) -> None:
        self.vocabulary = tuple(vocabulary)
        self.word_penalty, self.pause = word_penalty, pause

    @cached_property
    def record(self) -> Judge:
        """Who this is."""
        limits = f"loop over {len(self.vocabulary)} words, wip {self.word_penalty}, silprob {self.pause}; no whispers"
        return Judge("pocketsphinx en-US", version("pocketsphinx"), limits)

    @cached_property
    def _decoder(self) -> Any:
        from pocketsphinx import Config, Decoder

        decoder = Decoder(Config(loglevel="FATAL", wip=self.word_penalty, silprob=self.pause))
        grammar = f"#JSGF V1.0; grammar words; public <said> = ({' | '.join(self.vocabulary)})+;"
        decoder.add_jsgf_string("words", grammar)
        decoder.activate_search("words")
        return decoder

    def words(self, waveform: Sound, rate: int) -> list[str]:
        """The words heard, in order; none in silence."""
        sound = at_16_khz(waveform, rate)
        if _rms(sound) < _QUIETEST:
            return []
        self._decoder.start_utt()
        # The whole utterance at once: its own mean is taken from the features (batch CMN).
        self._decoder.process_raw(_pcm(sound), no_search=False, full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr.split() if hypothesis else []


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


def lip_correlation(frames: NDArray[np.uint8], waveform: Sound, rate: int) -> float:
    """Pearson correlation at lag 0 of the mouth opening read from pixels with the speech energy of each frame.

    frames (F, size, size, 3) at the world's 25 a second. 0 where the mouth or the sound does not change.
    """
    energy = speech_energy(at_16_khz(waveform, rate).astype(np.float64), len(frames))
    return pearson(read_mouth_opening(frames).astype(np.float64), energy)


def pearson(first: Floats, second: Floats) -> float:
    """Correlation of two rows (N,); 0 if one is constant."""
    a, b = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 1e-9 else 0.0


def at_16_khz(waveform: Sound, rate: int) -> Sound:
    """The sound (N,) at the rate of all judges.

    Raises:
        InputError: not mono, or not finite.
    """
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise InputError(f"a judge takes finite mono samples (N,), not {waveform.shape}; average the channels first")
    return np.asarray(resample(waveform[None].astype(np.float32), rate, SAMPLE_RATE)[0])


def mono(audio: Sound) -> Sound:
    """Mean (N,) of the channels (C, N)."""
    return np.asarray(audio.mean(axis=0), np.float32)


def _rms(sound: Sound) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))) if len(sound) else 0.0


def _refuse_silence(sound: Sound) -> None:
    if _rms(sound) < _QUIETEST:
        raise InputError(f"the sound's level is below {_QUIETEST}, so no voice can be judged; hand in speech")


def _pcm(sound: Sound) -> bytes:
    """16-bit samples at -20 dBFS with 0.3 s of faint noise around: the recogniser wants silence to begin with."""
    level = np.pad((sound - sound.mean()) * (0.1 / _rms(sound)), round(0.3 * SAMPLE_RATE))
    noisy = level + np.random.default_rng(0).standard_normal(len(level)) * 1e-3
    return (np.clip(noisy, -1, 1) * 32767).astype("<i2").tobytes()
