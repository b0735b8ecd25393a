# SPDX-License-Identifier: Apache-2.0
"""Whose voice it is: Resemblyzer, the similarity of two voices, and how it drifts within a clip."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from idlora.data.prompt import Prompt
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import InputError
from idlora.evaluation.judges.base import Footage, JudgeRecord, Reference
from idlora.evaluation.judges.sounds import Sound, at_16_khz, refuse_silence
from idlora.evaluation.store import Values
from idlora.files import sha256_of

Embedding = NDArray[np.float32]

_LEAST_SPEECH = 0.2  # seconds


class SpeakerEncoder(Protocol):
    """A network that makes a voice a vector."""

    @property
    def record(self) -> JudgeRecord:
        """Who this is."""
        ...

    def embed(self, waveform: Sound, rate: int) -> Embedding:
        """Unit vector (D,) of a voice (N,); raises InputError if there is none to be heard."""
        ...


class SpeakerJudge:
    """Resemblyzer (GE2E, Wan et al. 2018) on one CPU core with the weights in its package.

    Limits: trained on English read speech; it hears the room as well as the speaker (same-speaker similarity falls
    from about 0.8 within one place to 0.6 across places), so compare sounds of one place only. Whispers and sounds
    under a second are not reliable.
    """

    @cached_property
    def record(self) -> JudgeRecord:
        """Who this is."""
        weights = Path(str(files("resemblyzer"))) / "pretrained.pt"
        limits = "compare sounds of one place only; not for whispers"
        return JudgeRecord("Resemblyzer", version("Resemblyzer"), limits, sha256_of(weights))

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
        refuse_silence(sound)
        # Its spectrogram is not logarithmic, so one level for all: the loudness of a clip is no part of a voice.
        loud = np.clip(normalize_volume(sound, audio_norm_target_dBFS), -1, 1)
        spoken = trim_long_silences(loud)
        # The detector may find no speech in a poor clip; then all of it is judged.
        heard = spoken if len(spoken) >= SAMPLE_RATE // 4 else loud
        return np.asarray(self._encoder.embed_utterance(heard), np.float32)

    def similarity(self, wave_a: Sound, rate_a: int, wave_b: Sound, rate_b: int) -> float:
        """Cosine of two voices, in [0, 1]: Resemblyzer's vectors have no negative entries."""
        return float(self.embed(wave_a, rate_a) @ self.embed(wave_b, rate_b))


def speech_seconds(sound: Sound) -> float:
    """Seconds of a sound (N,) at 16 kHz in which WebRTC's detector hears speech; rain and traffic may pass for it."""
    from resemblyzer.audio import normalize_volume, trim_long_silences
    from resemblyzer.hparams import audio_norm_target_dBFS

    return len(trim_long_silences(np.clip(normalize_volume(sound, audio_norm_target_dBFS), -1, 1))) / SAMPLE_RATE


def speech_of(footage: Footage) -> Sound:
    """The sound (N,) at 16 kHz of footage in which somebody speaks; raises InputError if nobody does."""
    spoken = speech_seconds(footage.audible)
    if spoken < _LEAST_SPEECH:
        raise InputError(f"{spoken:.2f} s of speech are found in it; at least {_LEAST_SPEECH} s can be judged")
    return footage.audible


class SpeakerSimilarity:
    """Cosine of the clip's voice and the reference's, by any encoder."""

    def __init__(self, encoder: SpeakerEncoder) -> None:
        self.encoder = encoder

    @property
    def record(self) -> JudgeRecord:
        """The encoder."""
        return self.encoder.record

    def score(
        self,
        clip: Footage,
        reference: Reference,
        prompt: Prompt | None,  # noqa: ARG002 - a voice is judged whatever it says
    ) -> Values:
        """`similarity` to the reference and, where the true clip is known, `truth`: similarity to that.

        Neither needs the other: where one of them cannot be given, `similarity_unjudged` or `truth_unjudged` says why.

        Raises:
            InputError: the clip has no speech, or neither score can be given.
        """
        voices, faults = _voices_of(reference)
        if not voices:
            raise faults["similarity"]
        heard = self.encoder.embed(speech_of(clip), SAMPLE_RATE)
        found: Values = {name: float(heard @ self.encoder.embed(voice, SAMPLE_RATE)) for name, voice in voices.items()}
        return found | {f"{name}_unjudged": str(fault) for name, fault in faults.items()}


def _voices_of(reference: Reference) -> tuple[dict[str, Sound], dict[str, InputError]]:
    """What a voice is compared with, by the name of the score, and what is wrong with the rest of it."""
    voices: dict[str, Sound] = {}
    faults: dict[str, InputError] = {}
    try:
        voices["similarity"] = speech_of(reference.speaker)
    except InputError as error:
        faults["similarity"] = error
    try:
        if reference.truth is not None:
            voices["truth"] = speech_of(reference.truth)
    except InputError as error:
        faults["truth"] = error
    return voices, faults


class DriftJudge:
    """Whether a voice stays that of the reference: its similarity in windows of one second, every half second.

    Limits: windows of one second hold few sounds, so a clip's slope is uncertain by about 0.1 a second; compare means.
    """

    WINDOW, HOP = 1.0, 0.5  # seconds

    def __init__(self, encoder: SpeakerEncoder) -> None:
        self.encoder = encoder

    @property
    def record(self) -> JudgeRecord:
        """The encoder."""
        return self.encoder.record

    def score(
        self,
        clip: Footage,
        reference: Reference,
        prompt: Prompt | None,  # noqa: ARG002 - a voice is judged whatever it says
    ) -> Values:
        """`slope` of the similarity a second (least squares), the `lowest` one, and all `windows`."""
        sound = speech_of(clip)
        count = int((len(sound) / SAMPLE_RATE - self.WINDOW) / self.HOP) + 1
        if count < 2:
            raise InputError(f"{len(sound) / SAMPLE_RATE:.2f} s are one window; at least 1.5 s show a drift")
        speaker = self.encoder.embed(speech_of(reference.speaker), SAMPLE_RATE)
        starts = np.arange(count) * self.HOP
        near = [self._near(sound, start, speaker) for start in starts]
        heard = np.array([value is not None for value in near])
        if heard.sum() < 2:
            raise InputError("it is silent in all but one window; at least two show a drift")
        values = np.array([value for value in near if value is not None])
        slope = float(np.polyfit(starts[heard], values, 1)[0])
        return {"slope": slope, "lowest": float(values.min()), "windows": near}

    def _near(self, sound: Sound, start: float, speaker: Embedding) -> float | None:
        """Similarity of a window; None of a silent one."""
        window = sound[round(start * SAMPLE_RATE) : round((start + self.WINDOW) * SAMPLE_RATE)]
        try:
            return round(float(self.encoder.embed(window, SAMPLE_RATE) @ speaker), 4)
        except InputError:
            return None
