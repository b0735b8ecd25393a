# SPDX-License-Identifier: Apache-2.0
"""Words by Whisper (Radford et al. 2022) of transformers."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import InputError, WeightsError
from idlora.evaluation.judges.base import JudgeRecord
from idlora.evaluation.judges.sounds import QUIETEST, Sound, at_16_khz, rms
from idlora.evaluation.judges.weights import Lazy, best_device, digest_of, folder_of
from idlora.evaluation.judges.words import Heard, spoken_words

MAX_SECONDS = 30


class WhisperListener(Lazy):
    """Whisper by a folder of transformers or a hub name, in English.

    Limits: clips of at most 30 s; on silence and noise it invents words, so silent clips are not judged at all; it does
    not tell when a word is said, so the onset is judged by pocketsphinx.
    """

    @cached_property
    def record(self) -> JudgeRecord:
        """With the digest of the weights."""
        limits = "English, 30 s; invents words where nobody speaks"
        return JudgeRecord("Whisper", self.source.rsplit("/", 1)[-1], limits, digest_of(self._folder))

    @cached_property
    def _folder(self) -> Path:
        return folder_of(self.source, "Whisper")

    @cached_property
    def networks(self) -> tuple[Any, Any]:
        """Model and processor."""
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        try:
            found, told = WhisperForConditionalGeneration.from_pretrained(
                self._folder, output_loading_info=True, local_files_only=True
            )
            processor = WhisperProcessor.from_pretrained(self._folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{self.source} is no Whisper ({' '.join(str(error).split())[:200]})") from error
        missing = [name for name in told["missing_keys"] if name != "proj_out.weight"]  # tied to the embedding
        if missing:
            raise WeightsError(f"{self.source} lacks {len(missing)} tensors of Whisper, {missing[0]} among them")
        return found.eval().requires_grad_(requires_grad=False).to(best_device()), processor

    @torch.no_grad()
    def hear(self, waveform: Sound, rate: int) -> list[Heard]:
        """The words; their times are not known (nan).

        Raises:
            InputError: the sound is longer than 30 s.
        """
        sound = at_16_khz(waveform, rate)
        if rms(sound) < QUIETEST:
            return []
        if len(sound) > MAX_SECONDS * SAMPLE_RATE:
            raise InputError(f"{len(sound) / SAMPLE_RATE:.0f} s are longer than the {MAX_SECONDS} s that Whisper hears")
        model, processor = self.networks
        given = processor(np.asarray(sound), sampling_rate=SAMPLE_RATE, return_tensors="pt").to(model.device)
        options = {"language": "en", "task": "transcribe"} if model.generation_config.is_multilingual else {}
        tokens = model.generate(given.input_features, do_sample=False, num_beams=1, **options)
        text = processor.batch_decode(tokens, skip_special_tokens=True)[0]
        return [Heard(word, math.nan, math.nan) for word in spoken_words(text)]
