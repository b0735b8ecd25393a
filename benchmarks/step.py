# SPDX-License-Identifier: Apache-2.0
"""One guided step beside the plain way: diffusers' own forward, five passes one after the other.

`python benchmarks/step.py --json`. Same weights, inputs and passes; what both sides give is compared. On a CPU they go
through the network side by side and take turns after every few blocks, so that what else the machine does hits all
alike; time is that of the processor, with one thread. On a GPU they take turns step by step, and time is that of the
clock. A setting's figure is the median of its ratios to the plain time over turns, with the least and the greatest.

Diffusers cannot perturb 2.0's self-attention (its option does nothing there): the plain way's perturbed pass hooks the
two attentions of that block, so that they give zeros after they were computed. It gives the transformer what its own
pipeline gives: a timestep for every token.

`exact` computes the five passes, `fast` what the preset of that name does: the mean of the steps of its cycle.
`distilled` is a whole clip: 8 steps of a full pass and an identity pass on the audio alone against 30 plain steps;
`distilled_full` (`--full-identity`) has that pass on both streams. What is computed once a generation is charged to it.
`products` is what shapes alone foretell: the share of the plain way's operations in matrix products. `--compile` adds
`plain_compiled` and compiles our blocks as well; all are shares of the time of the plain way as it is. `--storage`
keeps our weights in few bits; `apart` then says what the rounding does. `--graphs` replays our steps as CUDA graphs;
that they were recorded before the race is not charged. `--reference-alone` adds `alone`: exact for an adapter whose
reference hears nothing but itself and is computed once a generation; its numbers are others, and nothing compares them.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from calm import calm, join
from lanes import Lanes
from plain import Plain
from torch import Tensor

from idlora.core.guidance import Pass
from idlora.core.positions import audio_positions, reference_positions, video_positions
from idlora.core.reference import attach_reference
from idlora.core.state import AVState, LatentState
from idlora.networks.blocks import text_memory
from idlora.networks.executor import Executor, Memories, Sharing
from idlora.networks.generations import GENERATIONS
from idlora.networks.graphs import Recorder
from idlora.networks.joint import JointModel, JointOptions, Prediction, TextContext
from idlora.networks.packing import STORAGES, Storage, store_small
from idlora.networks.work import Tokens, step_work
from idlora.pipeline import Settings, preset_settings

SETTINGS = ("exact", "fast", "distilled")
ALONE = "alone"
SIGMA, STEPS, FEW_STEPS, CHANNELS = 0.8, 30, 8, 128
REFERENCE, TEXT = 126, 1024
GOALS = {
    "exact": {"2.0": 0.80, "2.3": 0.85},
    "fast": {"2.0": 0.55, "2.3": 0.55},
    "distilled": {"2.0": 1 / 14, "2.3": 1 / 14},
}
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Size:
    """Of the network and the clip."""

    layers: int = 48
    heads: int = 4
    video_head: int = 64
    audio_head: int = 32
    grid: tuple[int, int, int] = (16, 8, 8)
    audio: int = 126


SMALL, FULL = Size(), Size(heads=32, video_head=128, audio_head=64, grid=(16, 16, 16))


@dataclass(frozen=True)
class Where:
    """What the race runs on."""

    device: str
    dtype: torch.dtype
    sharing: Sharing
    compiled: bool = False
    storage: Storage = "full"
    graphs: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether work goes on after it was asked for."""
        return self.device != "cpu"

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """How many seconds some work takes this thread, and what it gives."""
        if not self.on_gpu:
            started = time.thread_time()
            result = work()
            return time.thread_time() - started, result
        torch.cuda.synchronize()
        started = time.perf_counter()
        result = work()
        torch.cuda.synchronize()
        return time.perf_counter() - started, result


def network(generation: str, size: Size, where: Where) -> Any:
    """A transformer with random weights, the same every time, made where it will be."""
    from diffusers import LTX2VideoTransformer3DModel

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(where.dtype)
    try:
        with torch.device(where.device):
            made = LTX2VideoTransformer3DModel(
                num_layers=size.layers,
                num_attention_heads=size.heads,
                attention_head_dim=size.video_head,
                cross_attention_dim=size.heads * size.video_head,
                audio_num_attention_heads=size.heads,
                audio_attention_head_dim=size.audio_head,
                audio_cross_attention_dim=size.heads * size.audio_head,
                caption_channels=size.heads * size.video_head,
                rope_type="split",
                **GENERATIONS[generation].config,
            )
    finally:
        torch.set_default_dtype(before)
    return made.to(where.dtype).eval().requires_grad_(requires_grad=False)


def normal(seed: int, *shape: int) -> Tensor:
    """Reproducible Gaussian numbers of one sample."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def start(size: Size, device: str) -> AVState:
    """Noise with the first frame given and a reference."""
    frames, height, width = size.grid
    tokens, mask = normal(1, frames * height * width, CHANNELS), torch.ones(1, frames * height * width, 1)
    mask[:, : height * width] = 0
    sound = normal(2, size.audio, CHANNELS)
    video = LatentState(tokens, video_positions(size.grid, 25.0), mask, tokens, masking="binary")
    audio = LatentState(sound, audio_positions(size.audio), torch.ones(1, size.audio, 1), sound, masking="ones")
    audio = attach_reference(audio, normal(3, REFERENCE, CHANNELS), reference_positions(REFERENCE))
    return AVState(*(_moved(stream, device) for stream in (video, audio)))


def _moved(stream: LatentState, device: str) -> LatentState:
    moved = {name: value.to(device) for name, value in vars(stream).items() if isinstance(value, Tensor)}
    return LatentState(**{**vars(stream), **moved})


def text(seed: int, generation: str, size: Size, where: Where) -> TextContext:
    """Features of the widths that the generation takes."""
    widths = size.heads * size.video_head, size.heads * (size.video_head if generation == "2.0" else size.audio_head)
    video, audio = (normal(seed + i, TEXT, width).to(where.device, where.dtype) for i, width in enumerate(widths))
    return TextContext(video, audio)


def apart(found: dict[str, Prediction], expected: dict[str, Prediction]) -> float:
    """The largest difference of a prediction, as a share of its largest number."""
    pairs = [(getattr(found[n], s), getattr(expected[n], s)) for n in expected for s in ("video", "audio")]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def cycles(generation: str, block: int) -> dict[str, list[list[Pass]]]:
    """The plans of a setting's steps, as often as it takes until they repeat."""
    row = GENERATIONS[generation]
    wanted = {name: preset_settings(name, Settings(), row).guidance for name in ("one-stage", "fast", "distilled")}
    full, fast, few = (replace(each, stg=replace(each.stg, blocks=(block,))) for each in wanted.values())
    names = {term.other_pass().name: term.every for term in fast.active_terms(SIGMA, REFERENCE)}
    steps = [{name for name, every in names.items() if step % every} for step in range(math.lcm(*names.values()))]
    alone = replace(few, identity=replace(few.identity, audio_only=True))
    return {
        "exact": [full.plan(SIGMA, REFERENCE)],
        ALONE: [full.plan(SIGMA, REFERENCE)],
        "fast": [fast.plan(SIGMA, REFERENCE, kept) for kept in steps],
        "distilled": [alone.plan(SIGMA, REFERENCE)],
        "distilled_full": [few.plan(SIGMA, REFERENCE)],
    }


class Race:
    """The sides of one generation."""

    def __init__(self, generation: str, size: Size, where: Where, names: Sequence[str]) -> None:
        self.where, self.state = where, start(size, where.device)
        self.texts = text(5, generation, size, where), text(7, generation, size, where)
        net = network(generation, size, where)
        found = cycles(generation, min(GENERATIONS[generation].stg_block, size.layers - 1))
        self.cycles = {name: found[name] for name in names}
        self.plan = found["exact"][0]
        self.plain = Plain(generation, net, self.texts, where.dtype, SIGMA)
        own = net
        if where.storage != "full":
            own = network(generation, size, where)
            store_small(own, where.storage, torch.device(where.device))
        self.model = JointModel(own, around_block=self._around)
        if where.compiled:
            self.model.compile_blocks(dynamic=False)
            self._compiled = {block: torch.compile(block.forward, dynamic=False) for block in net.transformer_blocks}
        self.apart = self.model.with_options(JointOptions(reference_attention="alone"))
        models = {name: self.apart if name == ALONE else self.model for name in names}
        self.executors: dict[str, Any] = {
            name: Executor(model, *self.texts, where.sharing) for name, model in models.items()
        }
        self.lanes = Lanes()
        for block in net.transformer_blocks:
            block.register_forward_hook(lambda *_: self.lanes.passed())
        self.once = dict.fromkeys(names, self._once())
        if ALONE in names:
            self.once[ALONE] += self._once_alone()
        self.distance = self._warm()

    @contextmanager
    def _around(self, _block: Any) -> Iterator[None]:
        yield
        self.lanes.passed()

    def _once(self) -> float:
        """Seconds of what is computed once a generation."""

        def work() -> None:
            self.model.layouts(self.state)
            contexts = [self.model.contexts(each) for each in self.texts]
            if self.model.generation.name == "2.0":
                blocks = self.model.transformer.transformer_blocks
                pairs = [(prefix, pair[i]) for pair in contexts for i, prefix in enumerate(("", "audio_"))]
                for block in blocks:
                    for prefix, context in pairs:
                        text_memory(block, prefix, context, None)

        return self.where.timed(work)[0]

    def _once_alone(self) -> float:
        """Seconds of a reference by itself."""

        def work() -> None:
            memories = Memories(self.apart, self.state)
            for index, block in enumerate(self.apart.transformer.transformer_blocks):
                memories.of(block, index)

        return self.where.timed(work)[0]

    def _warm(self) -> float:
        """How far exact is from plain; on a GPU, whose first run is no measure, the sides run here before the race."""
        if self.where.on_gpu:
            if self.where.graphs:
                self.executors = {name: Recorder(each) for name, each in self.executors.items()}
            for name in self.cycles:
                self._cycle(name)
                self._cycle(name)
            if self.where.compiled:
                self._plain_compiled()
            return apart(self._cycle("exact"), self.plain.step(self.state, self.plan))
        for executor in self.executors.values():
            executor(self.state, SIGMA, [Pass("positive")])  # keeps the text
        return 0.0

    def _plain_compiled(self) -> dict[str, Prediction]:
        """A plain step whose blocks are compiled."""
        for block, compiled in self._compiled.items():
            block.forward = compiled
        try:
            return self.plain.step(self.state, self.plan)
        finally:
            for block in self._compiled:
                del block.forward

    def _cycle(self, name: str) -> dict[str, Prediction]:
        """The steps of a setting until they repeat; what the first one gave comes back."""
        first, *_ = [self.executors[name](self.state, SIGMA, plan) for plan in self.cycles[name]]
        return first

    def turn(self) -> dict[str, float]:
        """Seconds of a plain step, and every setting's share of it."""
        works: dict[str, Callable[[], Any]] = {"plain": partial(self.plain.step, self.state, self.plan)}
        works |= {name: partial(self._cycle, name) for name in self.cycles}
        if self.where.on_gpu:
            found = {name: self.where.timed(work) for name, work in works.items()}
        else:
            strides = {"plain": len(self.plan)} | {name: len(plans) for name, plans in self.cycles.items()}
            timed = {name: partial(self.where.timed, work) for name, work in works.items()}
            found = self.lanes.side_by_side(timed, strides)
        self.distance = max(self.distance, apart(found["exact"][1], found["plain"][1]))
        plain = found["plain"][0]
        told = {"seconds": plain}
        if self.where.compiled:
            told["plain_compiled"] = self.where.timed(self._plain_compiled)[0] / plain
        for name, plans in self.cycles.items():
            step, steps = found[name][0] / len(plans), FEW_STEPS if "distilled" in name else STEPS
            told[name] = (steps * step + self.once[name]) / (STEPS * plain)
        return told

    def foretold(self, size: Size) -> dict[str, float]:
        """The same shares of the plain way's matrix products, by operations: what shapes alone allow."""
        config, kept = self.model.transformer.config, self.model.generation.name == "2.0"
        tokens = Tokens(math.prod(size.grid), size.audio, REFERENCE, TEXT)
        plain = sum(step_work(config, tokens, [replace(run, perturbed_blocks=())]).flops for run in self.plan)
        flops = {
            name: sum(
                step_work(config, tokens, plan, kept_text=kept, reference="kept" if name == ALONE else "joint").flops
                for plan in plans
            )
            / len(plans)
            / plain
            for name, plans in self.cycles.items()
        }
        return {name: share * (FEW_STEPS / STEPS if "distilled" in name else 1) for name, share in flops.items()}


def measured(
    generation: str, size: Size, where: Where, names: Sequence[str], seconds: float, most: int
) -> dict[str, Any]:
    """Figures of settings; turns are taken for so many seconds, one at least and so many at most (0: no matter)."""
    begun = time.monotonic()
    race, turns = Race(generation, size, where, names), list[dict[str, float]]()
    racing = time.monotonic()
    while not turns or time.monotonic() + (time.monotonic() - racing) / len(turns) < begun + seconds:
        with calm():
            turns.append(race.turn())
        if len(turns) == most:
            break
    if where.storage == "full" and race.distance > TOLERANCE[str(where.dtype).removeprefix("torch.")]:
        raise SystemExit(f"the sides do not compute the same: {race.distance:.1e} apart")
    foretold = race.foretold(size)
    told: dict[str, Any] = {}
    for name in [name for name in turns[0] if name != "seconds"]:
        values = [turn[name] for turn in turns]
        told[name] = {"median": statistics.median(values), "low": min(values), "high": max(values)}
        told[name] |= {"products": foretold.get(name, 1.0)}
        if (goal := GOALS.get(name, {}).get(generation)) is not None and size == SMALL:
            told[name] |= {"goal": goal, "reached": told[name]["median"] <= goal}
    plain = statistics.median([turn["seconds"] for turn in turns])
    return {**told, "plain_step_seconds": plain, "apart": race.distance, "turns": len(turns)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generations", nargs="*", default=["2.0", "2.3"])
    parser.add_argument("--scale", choices=("small", "full"), default="small", help="full: the published widths")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--max-branches", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=540.0, help="for all; one turn of each takes place anyway")
    parser.add_argument("--turns", type=int, default=0, help="of each, at most")
    parser.add_argument("--full-identity", action="store_true", help="distilled with the whole identity pass as well")
    parser.add_argument("--reference-alone", action="store_true", help="exact where the reference hears itself alone")
    parser.add_argument("--compile", action="store_true", help="compiled blocks on both sides too")
    parser.add_argument("--storage", choices=STORAGES, default="full")
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    join()
    if given.device == "cpu":
        torch.set_num_threads(1)
        if given.compile or given.graphs:
            parser.error("--compile and --graphs are for a GPU: on a CPU the sides change at every block")
    size = replace(SMALL if given.scale == "small" else FULL, layers=given.layers)
    how = Sharing(given.max_branches), given.compile, given.storage, given.graphs
    where = Where(given.device, getattr(torch, given.dtype), *how)
    names = (*SETTINGS, *["distilled_full"] * given.full_identity, *[ALONE] * given.reference_alone)
    share, told = given.seconds / len(given.generations), dict[str, Any]()
    with torch.no_grad():
        for generation in given.generations:
            told[generation] = measured(generation, size, where, names, share, given.turns)
    told |= {
        "device": f"cpu, one thread, {platform.machine()}" if given.device == "cpu" else torch.cuda.get_device_name(),
        "dtype": given.dtype,
        "scale": given.scale,
        "layers": given.layers,
        "max_branches": given.max_branches,
        "compiled": given.compile,
        "storage": given.storage,
        "graphs": given.graphs,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    if given.json:
        print(json.dumps(told, indent=1))
        return
    for generation in given.generations:
        for name, each in told[generation].items():
            if isinstance(each, dict):
                spread = f"{each['low']:.3f} to {each['high']:.3f}; products {each['products']:.3f}"
                print(f"{generation} {name}: {each['median']:.3f} of the plain time ({spread})")


if __name__ == "__main__":
    main()
