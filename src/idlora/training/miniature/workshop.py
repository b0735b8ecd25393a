# SPDX-License-Identifier: Apache-2.0
"""The folder in which a miniature is made.

It holds `data/` (pools), `<stage>/state.safetensors` (resumable) and `model/` (the components so far, float32).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from idlora.data.world.captions import caption
from idlora.data.world.speakers import clip
from idlora.data.world.voice import VOCABULARY
from idlora.errors import TrainingError
from idlora.networks.codecs import AudioCodec, VideoCodec
from idlora.training.miniature import components as fresh

ADAPTER_FILE = "adapter.safetensors"
NUM_CLIPS = 4000


@dataclass(frozen=True)
class Workshop:
    """Where a miniature is made.

    Attributes:
        work: the work folder.
        start: a finished model folder: what a stage trains starts from it, and what the work folder lacks is read from
            it; None = fresh or as in `work`.
        clips: how many world clips the base is trained on.
        compile: compile the transformer block by block (needs a C++ compiler).
        device: where networks are trained and codecs encode.
        workers: processes that render the world.
        bf16: train in mixed precision; worth it where the processor has bfloat16 products.
    """

    work: Path
    start: Path | None = None
    clips: int = NUM_CLIPS
    compile: bool = False
    device: str = "cpu"
    workers: int = 1
    bf16: bool = False

    @property
    def model(self) -> Path:
        """Folder of the components so far."""
        return self.work / "model"

    def load(self, name: str, kind: Any) -> Any:
        """A finished component of the work folder, or else of the starting weights.

        Raises:
            TrainingError: the stage that makes it has not run.
        """
        for folder in (self.model, self.start):
            if folder is not None and (folder / name / "config.json").exists():
                return kind.from_pretrained(folder / name)
        raise TrainingError(f"{self.model / name} is missing; run the stage that trains it first, or give --from")

    def adapter_file(self) -> Path | None:
        """The adapter of the starting weights; None if they have none."""
        file = None if self.start is None else self.start / ADAPTER_FILE
        return file if file is not None and file.exists() else None

    def begin(self, name: str, kind: Any, build: Callable[[], Any]) -> Any:
        """A component to train: from `start` if given, else as an earlier stage left it, else fresh (seeded)."""
        for folder in (self.start, self.model):
            if folder is not None and (folder / name).exists():
                return kind.from_pretrained(folder / name)
        torch.manual_seed(0)
        return build()

    def audio_codec(self) -> AudioCodec:
        """The trained audio autoencoder, at rest."""
        from diffusers import AutoencoderKLLTX2Audio

        vae = self.load("audio_vae", AutoencoderKLLTX2Audio).to(self.device)
        return AudioCodec(vae.eval().requires_grad_(requires_grad=False))

    def video_codec(self) -> VideoCodec:
        """The trained video autoencoder, at rest."""
        from diffusers import AutoencoderKLLTX2Video

        vae = self.load("vae", AutoencoderKLLTX2Video).to(self.device)
        return VideoCodec(vae.eval().requires_grad_(requires_grad=False))

    def tokenizer(self) -> Any:
        """The tokenizer of the work folder, of the starting weights, or learned from captions."""
        from transformers import AutoTokenizer

        for folder in (self.model, self.start):
            if folder is not None and (folder / "tokenizer").exists():
                return AutoTokenizer.from_pretrained(folder / "tokenizer")
        specs = [clip("train", index) for index in range(600)]
        texts = [caption(spec, np.random.default_rng(index)) for index, spec in enumerate(specs) for _ in range(2)]
        tokenizer = fresh.tokenizer([*texts, *VOCABULARY])
        tokenizer.save_pretrained(self.model / "tokenizer")
        return tokenizer


def network_kinds() -> dict[str, Any]:
    """Classes of the networks that are trained together as the base."""
    from diffusers import LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from transformers import Gemma3ForCausalLM

    return {
        "transformer": LTX2VideoTransformer3DModel,
        "connectors": LTX2TextConnectors,
        "text_encoder": Gemma3ForCausalLM,
    }
