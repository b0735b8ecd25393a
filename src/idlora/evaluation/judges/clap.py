# SPDX-License-Identifier: Apache-2.0
"""Agreement of a prompt's parts with the sound, by CLAP (Wu et al. 2023) of transformers."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from idlora.data.media.sounds import resample
from idlora.data.prompt import Prompt
from idlora.errors import InputError, WeightsError
from idlora.evaluation.judges.base import Footage, JudgeRecord, Reference
from idlora.evaluation.judges.sounds import Sound, refuse_silence
from idlora.evaluation.judges.weights import Lazy, best_device, digest_of, folder_of
from idlora.evaluation.store import Values

_RATE = 48_000
_LENGTH = 10 * _RATE


class ClapJudge(Lazy):
    """Cosine of the sound and the text of each part, by a folder of `laion/clap-htsat-unfused` or its hub name.

    The official metric read tags that prompts do not have and was empty; here [SOUNDS] is read as every prompt has it,
    and the sound keeps its bandwidth. Limits: CLAP knows sounds better than manners of speech; a cosine has no unit.
    """

    @cached_property
    def record(self) -> JudgeRecord:
        """With the digest of the weights."""
        limits = "sounds rather than manners of speech; compare systems on equal prompts"
        return JudgeRecord("CLAP", self.source.rsplit("/", 1)[-1], limits, digest_of(self._folder))

    @cached_property
    def _folder(self) -> Path:
        return folder_of(self.source, "CLAP")

    @cached_property
    def networks(self) -> tuple[Any, Any]:
        """Model and processor."""
        from transformers import ClapModel, ClapProcessor

        try:
            found, told = ClapModel.from_pretrained(self._folder, output_loading_info=True, local_files_only=True)
            processor = ClapProcessor.from_pretrained(self._folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{self.source} is no CLAP ({' '.join(str(error).split())[:200]})") from error
        if told["missing_keys"]:
            raise WeightsError(f"{self.source} lacks {len(told['missing_keys'])} tensors of CLAP")
        return found.eval().requires_grad_(requires_grad=False).to(best_device()), processor

    def score(
        self,
        clip: Footage,
        reference: Reference,  # noqa: ARG002 - the prompt is what counts
        prompt: Prompt | None,
    ) -> Values:
        """`sounds`, `speech` and `visual` for a part each, `prompt` for all in one; empty parts are left out."""
        parts = ("sounds", "speech", "visual") if prompt is not None else ()
        texts = {name: text for name in parts if (text := getattr(prompt, name))}
        if not texts or prompt is None:
            raise InputError("the prompt says nothing that is heard ([SOUNDS]); give it to judge the sound by")
        sound = clip.audible if clip.samples is None else clip.samples
        refuse_silence(sound)
        return self._cosines(sound, clip.sample_rate, {**texts, "prompt": prompt.text()})

    @torch.no_grad()
    def _cosines(self, sound: Sound, rate: int, texts: dict[str, str]) -> Values:
        model, processor = self.networks
        samples = resample(sound[None], rate, _RATE)[0]
        # CLAP hears ten seconds, and would take a random part of more: all parts are heard and averaged.
        parts = [part for part in np.split(samples, range(_LENGTH, len(samples), _LENGTH)) if len(part) >= _RATE // 10]
        heard = processor(audio=parts, sampling_rate=_RATE, return_tensors="pt").to(model.device)
        read = processor(text=list(texts.values()), return_tensors="pt", padding=True, truncation=True)
        audio = model.get_audio_features(**heard).pooler_output.mean(dim=0)  # (D,), of unit vectors
        words = model.get_text_features(**read.to(model.device)).pooler_output  # (texts, D), unit length
        cosines = words @ torch.nn.functional.normalize(audio, dim=0)
        return {name: float(cosine) for name, cosine in zip(texts, cosines, strict=True)}
