# SPDX-License-Identifier: Apache-2.0
"""One optimiser step of the trainer beside the plain loop: diffusers' forward, PEFT, accelerate and AdamW.

`python benchmarks/train_step.py --json`. Both have the same network, adapter, batch and loss, and no masks: diffusers'
forward has none for the reference. Both compute blocks again in the backward pass: the plain loop all of them, ours as
the options of `engine` in `SETTINGS` say; `speed` compiles them, which takes a C++ compiler, and minutes before the
first step (`--eager` leaves that out). The sides take turns, so that what else the machine does hits both; time is that
of the processor. Memory is the peak of live tensor bytes in a step, as PyTorch's profiler counts what is handed out and
given back, with weights and moments.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, Protocol

import torch
from plain import plain_loss
from torch import Tensor

from idlora.core.positions import audio_positions, reference_positions, video_positions
from idlora.networks.adapter import IDENTITY_TARGETS, new_adapter
from idlora.networks.footprint import weight_bytes
from idlora.networks.generations import GENERATIONS
from idlora.networks.joint import TextContext
from idlora.training.identity.config import Engine, ObjectiveOptions, Optimization
from idlora.training.identity.module import TrainingModule
from idlora.training.identity.optimizer import make_optimizer
from idlora.training.identity.setup import set_checkpointing
from idlora.training.objective import TrainingBatch

GRID, AUDIO, REFERENCE, TEXT = (16, 8, 8), 121, 126, 128
HEADS, VIDEO_HEAD, AUDIO_HEAD, CHANNELS = 8, 32, 16, 128
OPEN = ObjectiveOptions(mask_reference_to_video=False, reference_text="open", loss="batch")
# What a setting of ours must reach: its share of the plain loop's time, and of its memory.
GOALS = {"speed": (0.85, 1.0), "memory": (1.0, 0.80)}
SETTINGS = {"speed": Engine(kept_blocks=2, compile=True), "memory": Engine()}


@dataclass(frozen=True)
class Size:
    """Of the network and the batch."""

    layers: int
    rank: int
    batch: int


class Side(Protocol):
    """One way to make a step."""

    network: Any
    optimizer: Any

    def step(self, batch: TrainingBatch) -> float:
        """Make a step; returns the loss before it."""


def network(size: Size) -> Any:
    """A transformer of LTX-2.3's configuration with random weights, the same every time."""
    from diffusers import LTX2VideoTransformer3DModel

    torch.manual_seed(0)
    made = LTX2VideoTransformer3DModel(
        num_layers=size.layers,
        num_attention_heads=HEADS,
        attention_head_dim=VIDEO_HEAD,
        cross_attention_dim=HEADS * VIDEO_HEAD,
        audio_num_attention_heads=HEADS,
        audio_attention_head_dim=AUDIO_HEAD,
        audio_cross_attention_dim=HEADS * AUDIO_HEAD,
        rope_type="split",
        **GENERATIONS["2.3"].config,
    )
    return made.requires_grad_(requires_grad=False)


def batch_of(size: Size) -> TrainingBatch:
    """Random tokens at one sigma, the first frame given."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(size.batch, *shape, generator=generator)

    tokens, first = GRID[0] * GRID[1] * GRID[2], GRID[1] * GRID[2]
    return TrainingBatch(
        video=normal(tokens, CHANNELS),
        audio=normal(AUDIO, CHANNELS),
        video_noise=normal(tokens, CHANNELS),
        audio_noise=normal(AUDIO, CHANNELS),
        sigmas=torch.full((size.batch,), 0.7),
        video_positions=video_positions(GRID, 24.0),
        audio_positions=audio_positions(AUDIO),
        context=TextContext(normal(TEXT, HEADS * VIDEO_HEAD), normal(TEXT, HEADS * AUDIO_HEAD)),
        conditioned=(torch.arange(tokens) < first)[None].expand(size.batch, -1),
        reference=normal(REFERENCE, CHANNELS),
        reference_positions=reference_positions(REFERENCE),
    )


def start_branches(made: Any) -> None:
    """Give the adapter something to do: B is zero otherwise."""
    torch.manual_seed(3)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.02)


class Plain:
    """The plain loop."""

    def __init__(self, size: Size) -> None:
        from accelerate import Accelerator
        from peft import LoraConfig

        made = network(size)
        targets = [f"transformer_blocks.{block}.{name}" for block in range(size.layers) for name in IDENTITY_TARGETS]
        made.add_adapter(LoraConfig(r=size.rank, lora_alpha=size.rank, target_modules=targets))
        start_branches(made)
        made.enable_gradient_checkpointing()
        made.train()
        self.accelerator = Accelerator(cpu=True)
        self.parameters = [each for each in made.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(self.parameters, lr=2e-4)
        self.network, self.optimizer = self.accelerator.prepare(made, optimizer)

    def step(self, batch: TrainingBatch) -> float:
        """Make a step; returns the loss before it."""
        loss = plain_loss(self.network, batch, torch.float32)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


class Ours:
    """The trainer's module, adapter and optimiser."""

    def __init__(self, size: Size, engine: Engine) -> None:
        from accelerate import Accelerator

        made = network(size)
        adapter = new_adapter(made, size.rank)
        adapter.make_trainable()
        start_branches(made)
        module = TrainingModule(made, OPEN, bf16=False)
        set_checkpointing(module, engine)
        if engine.compile:
            module.model.compile_blocks(dynamic=False)
        module.train()
        self.accelerator = Accelerator(cpu=True)
        self.parameters = adapter.parameters()
        named = {str(index): each for index, each in enumerate(self.parameters)}
        optimizer = make_optimizer(named, Optimization())
        self.network, self.optimizer = self.accelerator.prepare(module, optimizer)

    def step(self, batch: TrainingBatch) -> float:
        """Make a step; returns the loss before it."""
        total = self.network(batch).total
        self.accelerator.backward(total)
        self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(total.detach())


def peak_bytes(side: Side, batch: TrainingBatch) -> int:
    """Weights, optimiser and the most of all else in a step; side and optimiser have been used before."""
    moments = [each for state in side.optimizer.state.values() for each in state.values() if isinstance(each, Tensor)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        side.step(batch)
    changes = [each for each in profiler.profiler.kineto_results.events() if each.name() == "[memory]"]
    alive = accumulate(each.nbytes() for each in sorted(changes, key=lambda each: each.start_ns()))
    return weight_bytes(side.network) + sum(each.nbytes for each in moments) + max(alive)


def race(sides: Sequence[Side], batch: TrainingBatch, runs: int) -> list[list[float]]:
    """Seconds of processor time of every step, by side; the sides take turns."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(runs):
        for times, side in zip(seconds, sides, strict=True):
            started = time.process_time()
            side.step(batch)
            times.append(time.process_time() - started)
    return seconds


def measured(size: Size, runs: int, *, eager: bool) -> dict[str, Any]:
    """Ratios of each setting to the plain loop, with medians and the range over turns."""
    batch = batch_of(size)
    sides: dict[str, Side] = {"plain": Plain(size)}
    engines = {name: replace(engine, compile=engine.compile and not eager) for name, engine in SETTINGS.items()}
    sides |= {name: Ours(size, engine) for name, engine in engines.items()}
    losses = {name: side.step(batch) for name, side in sides.items()}
    apart = max(abs(loss / losses["plain"] - 1) for loss in losses.values())
    if apart > 1e-4:
        raise SystemExit(f"the sides do not compute the same: losses {losses}")
    for side in sides.values():
        side.step(batch)  # what is compiled is whole after two
    memory = {name: peak_bytes(side, batch) for name, side in sides.items()}
    plain, *ours = race(list(sides.values()), batch, runs)
    found: dict[str, Any] = {}
    for name, times in zip(SETTINGS, ours, strict=True):
        ratios = [mine / theirs for mine, theirs in zip(times, plain, strict=True)]
        ratio = {"time_ratio": statistics.median(ratios), "memory_ratio": memory[name] / memory["plain"]}
        reached = all(value <= goal for value, goal in zip(ratio.values(), GOALS[name], strict=True))
        found[name] = {**ratio, "time_range": [min(ratios), max(ratios)], "reached": reached}
        found[name] |= {"compiled": engines[name].compile}
    return {
        **found,
        "seconds": {name: statistics.median(times) for name, times in zip(sides, [plain, *ours], strict=True)},
        "peak_bytes": memory,
        "loss_apart": apart,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    size = Size(given.layers, given.rank, given.batch)
    told = {
        **measured(size, given.runs, eager=given.eager),
        "size": {
            "layers": size.layers,
            "rank": size.rank,
            "batch": size.batch,
            "video_tokens": 1024,
            "dtype": "float32",
        },
        "n": given.runs,
        "device": f"cpu, one thread, {platform.machine()}",
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    if given.json:
        print(json.dumps(told, indent=1))
        return
    for name in SETTINGS:
        each = told[name]
        low, high = each["time_range"]
        print(
            f"{name}: {each['time_ratio']:.3f} of the time ({low:.3f} to {high:.3f}, n = {given.runs}), "
            f"{each['memory_ratio']:.3f} of the memory"
        )


if __name__ == "__main__":
    main()
