# SPDX-License-Identifier: Apache-2.0
"""What a run will do and take, told from configurations alone: `idlora train --plan`.

A step runs on the meta device with few of the equal blocks; what one more block adds tells the whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from idlora.core.positions import audio_positions, reference_positions, video_positions
from idlora.networks.adapter import new_adapter, read_adapter
from idlora.networks.footprint import ATTENTION_FLOPS, Footprint, fused_attention
from idlora.networks.generations import GENERATIONS
from idlora.networks.joint import TextContext
from idlora.networks.published import Blueprint, all_sizes
from idlora.pipeline.plan import META, Weights, weights_of
from idlora.pipeline.sources import read_model
from idlora.training.identity.config import TrainingConfig
from idlora.training.identity.module import TrainingModule
from idlora.training.identity.setup import (
    Fit,
    checked_device,
    named_model,
    parts_of,
    set_checkpointing,
    training_samples,
    validation_samples,
)
from idlora.training.latents.store import Row
from idlora.training.objective import TrainingBatch

_FEW = (2, 3)
# What stands for the data where only the published sizes are asked for: 512 x 512, 121 frames, references of 5 s.
_PUBLISHED_ROW = Row("published", "published", (16, 16, 16), 122, 122, 25.0, 121)
_PUBLISHED_TEXT = 1024
_MOMENTS_BYTES = {"adamw": 8, "adamw8bit": 2}  # of a parameter


@dataclass(frozen=True)
class Resources:
    """What a run takes.

    Attributes:
        parameters: of the adapter.
        base: bytes of the transformer without it.
        adapter: bytes of the adapter, its gradient, its average and the optimiser.
        working: the most bytes of all else in a step.
        state: bytes of a checkpoint.
        flops: of a step, forward and backward, attention's scores left out.
    """

    parameters: int
    base: int
    adapter: int
    working: int
    state: int
    flops: int

    @property
    def device_bytes(self) -> int:
        """The most bytes on a device; the connectors come on top, or in portions where the base is stored small."""
        return self.base + self.adapter + self.working


def foretell(config: TrainingConfig) -> Iterator[str]:
    """Lines on data, steps, tokens, memory, disk and time.

    A model called LTX-2.0, LTX-2.3 or LTX-2.5 has the published sizes; no file is read then, and the lines on data and
    steps are left out.

    Raises:
        WeightsError: the model's configuration cannot be read.
        TrainingError: there are no encoded pairs, or the model cannot read them.
        SettingsError: no model is named, or the device is not here.
    """
    checked_device(config.engine.device)
    if (generation := config.model.name.removeprefix("LTX-")) in GENERATIONS and generation != config.model.name:
        blueprint = all_sizes(generation)["transformer"]
        yield f"LTX-{generation} at its published size, clips of 512 x 512 with 121 frames"
        yield from _told(config, resources(config, blueprint, _PUBLISHED_ROW, _PUBLISHED_TEXT))
        return
    outline = read_model(named_model(config.model), parts_of(config.model))
    blueprint = outline.blueprints["transformer"]
    fit = Fit.of(blueprint.full_config(), outline.blueprints["connectors"].full_config())
    rows = [row for _, row in training_samples(config.data, fit)]
    validation_samples(config, fit)  # what cannot be used is to be known now
    largest = max(rows, key=lambda row: row.grid[0] * row.grid[1] * row.grid[2])
    size, speakers = config.engine.batch * config.engine.accumulate, len({row.speaker for row in rows})
    frames, height, width = largest.grid
    yield f"LTX-{fit.generation} ({config.model.name}), {len(rows)} samples of {speakers} speakers"
    visits = config.steps * size / len(rows)
    yield f"{config.steps} steps of {size} samples on each process: {visits:.1f} visits of each"
    tokens = f"{frames * height * width} video, {largest.num_audio} audio and {largest.num_reference} reference tokens"
    yield f"a sample has up to {tokens}"
    yield from _told(config, resources(config, blueprint, largest, outline.card.max_text_tokens))


def _told(config: TrainingConfig, taken: Resources) -> Iterator[str]:
    yield f"adapter: {taken.parameters / 1e6:.2f} M parameters, {taken.parameters * 2 / 1e6:.1f} MB as a file"
    yield (
        f"memory of a device: {taken.device_bytes / 1e9:.2f} GB = base {taken.base / 1e9:.2f}, adapter with gradient "
        f"and optimiser {taken.adapter / 1e9:.2f}, a step {taken.working / 1e9:.2f}; the connectors come on top"
        + ("" if config.engine.storage == "full" else ", block by block")
    )
    kept = config.saving.keep_last + 1  # one more while it is written
    yield f"disk: {taken.state / 1e6:.1f} MB a checkpoint, {kept * taken.state / 1e6:.0f} MB at most"
    rate = matmul_rate(config)
    seconds = taken.flops * config.steps / rate
    duration = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"
    yield (
        f"time: {taken.flops / 1e12:.3g} TFLOP a step; at the {rate / 1e12:.3g} TFLOP/s that plain products reach here "
        f"now, {duration} at the very least, several times that if the model is small"
    )


def resources(config: TrainingConfig, blueprint: Blueprint, row: Row, text_tokens: int) -> Resources:
    """What a run on a transformer takes, if all samples are as large as one."""
    num_blocks = int(blueprint.full_config()["num_layers"])
    few = [_simulated(config, blueprint, row, text_tokens, count) for count in _FEW]
    weights = replace(few[0].weights, blocks=few[0].weights.blocks[:1] * num_blocks)
    parameters = few[0].parameters * num_blocks // _FEW[0]
    moments = _MOMENTS_BYTES[config.optimization.optimizer]
    state = parameters * (4 + moments + 4 * bool(config.optimization.ema))
    return Resources(
        parameters=parameters,
        base=weights.resident(config.engine.storage),
        adapter=state + 4 * parameters,
        working=_at(num_blocks, [each.working for each in few]),
        state=state,
        flops=_at(num_blocks, [each.flops for each in few]) * config.engine.accumulate,
    )


def _at(count: int, values: list[int]) -> int:
    """The value at so many blocks, on the line through those at few."""
    return values[0] + (count - _FEW[0]) * (values[1] - values[0])


class _Simulated(NamedTuple):
    """A batch with few blocks."""

    weights: Weights
    parameters: int  # of the adapter
    working: int
    flops: int


def _simulated(config: TrainingConfig, blueprint: Blueprint, row: Row, text_tokens: int, count: int) -> _Simulated:
    dtype = torch.bfloat16 if config.engine.precision == "bf16" else torch.float32
    few = replace(blueprint, config={**blueprint.config, "num_layers": count})
    transformer = few.on_meta().to(META, dtype)
    weights = weights_of("transformer", transformer, count)
    shape = config.adapter
    rank = max(read_adapter(Path(shape.start)).ranks.values()) if shape.start else shape.rank
    with META:  # where PEFT makes its branches
        adapter = new_adapter(transformer, rank, shape.targets)
    # The meta device has no autocast; in one dtype a step takes what it takes under it.
    module = TrainingModule(transformer, config.objective, bf16=False)
    set_checkpointing(module, config.engine)
    batch = _batch(config.engine.batch, row, transformer.config, text_tokens)
    with Footprint([module]) as footprint:
        torch.autograd.backward(module(batch).total)
    counter = FlopCounterMode(display=False, custom_mapping=dict(ATTENTION_FLOPS))
    with fused_attention(), counter as flops:  # by itself: it keeps what would be freed
        torch.autograd.backward(module(batch).total)
    gradients = sum(each.nbytes for each in adapter.parameters())
    parameters = sum(each.numel() for each in adapter.parameters())
    return _Simulated(weights, parameters, footprint.peak - gradients, flops.get_total_flops())


def _batch(size: int, row: Row, config: Mapping[str, Any], text_tokens: int) -> TrainingBatch:
    frames, height, width = row.grid

    def zeros(tokens: int, channels: int) -> torch.Tensor:
        return torch.zeros(size, tokens, channels, device=META)

    widths = (config["cross_attention_dim"], config["audio_cross_attention_dim"])
    if config["use_prompt_embeddings"]:
        widths = (config["caption_channels"],) * 2
    video = zeros(frames * height * width, config["in_channels"])
    audio = zeros(row.num_audio, config["audio_in_channels"])
    return TrainingBatch(
        video=video,
        audio=audio,
        video_noise=video,
        audio_noise=audio,
        sigmas=torch.zeros(size, device=META),
        video_positions=video_positions(row.grid, row.frame_rate, META),
        audio_positions=audio_positions(row.num_audio, META),
        context=TextContext(zeros(text_tokens, widths[0]), zeros(text_tokens, widths[1])),
        conditioned=torch.zeros(video.shape[:2], dtype=torch.bool, device=META),
        reference=zeros(row.num_reference, config["audio_in_channels"]),
        reference_positions=reference_positions(row.num_reference, device=META),
    )


def matmul_rate(config: TrainingConfig, seconds: float = 0.5) -> float:
    """Operations a second of matrix products in the precision of the run, on the device that it would take."""
    device = config.engine.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if config.engine.precision == "fp32" else torch.bfloat16
    side = 1024 if device == "cpu" else 8192
    a = torch.ones(side, side, dtype=dtype, device=device)
    (a @ a)[0, 0].item()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        (a @ a)[0, 0].item()
        count += 1
    return count * 2 * side**3 / (time.perf_counter() - started)
