# SPDX-License-Identifier: Apache-2.0
"""A folder of random encoded pairs for the tiny pipelines, and short runs on it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import tiny_pipeline
from idlora.networks.text import TextFeatures
from idlora.pipeline import IDLoraPipeline, Placement
from idlora.pipeline.placement import Where
from idlora.training.identity.config import (
    AdapterShape,
    Data,
    Engine,
    ObjectiveOptions,
    Optimization,
    Saving,
    TrainingConfig,
    Watching,
)
from idlora.training.identity.engine import Trainer
from idlora.training.identity.run import make_accelerator, make_trainer
from idlora.training.identity.setup import make_bench
from idlora.training.latents.store import Header, Latents, LatentWriter, Row

GRID = (2, 2, 3)
AUDIO = 128
FRAMES, RATE = 9, 25.0


def latents(index: int, generation: str, *, audio: int = 10, reference: int = 12) -> Latents:
    made = torch.Generator().manual_seed(index)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made)

    words = 3 + index % 4
    if generation == "2.0":
        same = normal(words, tiny_pipeline.TEXT_DIM)
        text = TextFeatures(same, same)
    else:
        text = TextFeatures(normal(words, tiny_pipeline.VIDEO_DIM), normal(words, tiny_pipeline.AUDIO_DIM))
    tokens = GRID[0] * GRID[1] * GRID[2]
    return Latents(normal(tokens, tiny_pipeline.VIDEO_CHANNELS), normal(audio, AUDIO), normal(reference, AUDIO), text)


def row(index: int, made: Latents, split: str = "train") -> Row:
    return Row(f"pair-{index}", f"{index:064d}", GRID, len(made.audio), len(made.reference), RATE, FRAMES, split=split)


def store(folder: Path, generation: str = "2.3", count: int = 6, *, equal: bool = False) -> Path:
    """References of many lengths, two of the pairs held out; `equal` gives all one length."""
    with_text = latents(99, generation).text
    writer = LatentWriter(folder, Header(generation, tiny_pipeline.MAX_TOKENS), torch.float32)
    for index in range(count + 2):
        made = latents(index, generation, reference=12 if equal else 8 + index)
        writer.add(row(index, made, "train" if index < count else "validation"), made)
    writer.flush()
    writer.write_no_text(
        TextFeatures(with_text.video[:1], with_text.audio[:1]) if generation != "2.0" else _one(with_text)
    )
    return folder


def _one(text: TextFeatures) -> TextFeatures:
    first = text.video[:1]
    return TextFeatures(first, first)


def config(out: Path, data: Path, **changes: Any) -> TrainingConfig:
    made = TrainingConfig(
        data=Data((str(data),), (str(data),)),
        out=str(out),
        steps=4,
        seed=7,
        adapter=AdapterShape(rank=2),
        objective=ObjectiveOptions(reference_seconds=(0.2, 0.6)),
        optimization=Optimization(learning_rate=1e-2, ema=0.9),
        engine=Engine(batch=2, precision="fp32", device="cpu"),
        saving=Saving(every=2),
        watching=Watching(log_every=1, validate_every=2),
    )
    return replace(made, **changes)


def trainer(made: TrainingConfig, generation: str = "2.3", where: Where = "whole") -> Trainer:
    """The trainer of a fresh tiny model in this process."""
    dtype = torch.bfloat16 if made.engine.precision == "bf16" else torch.float32
    components = tiny_pipeline.components(generation)
    for module in components.modules().values():
        module.to(dtype)
    pipe = IDLoraPipeline(components, tiny_pipeline.CARD, placement=Placement(where, made.engine.storage))
    pipe.residence.keep("transformer")
    return make_trainer(made, make_bench(made, pipe), make_accelerator(made))


def weights(made: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in made.parameters.items()}
