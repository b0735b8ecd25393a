# SPDX-License-Identifier: Apache-2.0
"""A generation of LTX-2 at its published size with random weights: seconds and peak bytes of presets, as JSON.

    python benchmarks/rehearsal.py 2.3 --preset official --preset distilled --out runs/rehearsal.jsonl
    python benchmarks/rehearsal.py 2.3 --steps 2 --memory 16GB --memory 8GB --placement auto --storage nf4

What it makes is noise; what it costs is what the real weights cost. The text encoder has the size of Gemma 3 12B and
the miniature's tokenizer; adapters have the published ranks. `--memory` caps what PyTorch may hand out, one cap after
the other. A line of JSON a preset comes as soon as it is known, into `--out` or on the terminal.
`--scale tiny` builds the same classes small, to try the script on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calm import calm, join

from idlora.core.samplers import Step
from idlora.data.media import Voice
from idlora.networks.adapter import IDENTITY, AdapterWeights, LowRank, new_adapter
from idlora.networks.generations import GENERATIONS
from idlora.networks.packing import STORAGES, store_small
from idlora.networks.published import Blueprint, all_sizes
from idlora.networks.stack import DISTILLED
from idlora.pipeline import PRESETS, Components, IDLoraPipeline, Placement, Settings, preset_settings
from idlora.pipeline.components import UPSAMPLER
from idlora.pipeline.generation import stages
from idlora.pipeline.output import Result, versions
from idlora.pipeline.placement import WHOLE, Residence
from idlora.pipeline.plan import DISTILLED_RANK, HEADROOM, IDENTITY_RANK, choose, demand_of, everywhere
from idlora.pipeline.sources import PACKAGED, model_path

TINY: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_layers": 30,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
        "caption_channels": 32,
    },
    "connectors": {
        "caption_channels": 32,
        "text_proj_in_factor": 3,
        "video_connector_num_layers": 1,
        "video_connector_num_attention_heads": 2,
        "video_connector_attention_head_dim": 16,
        "audio_connector_num_layers": 1,
        "audio_connector_num_attention_heads": 2,
    },
    "latent_upsampler": {"mid_channels": 32, "num_blocks_per_stage": 1},
    "audio_vae": {"num_res_blocks": 1},
}
GEMMA_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 1024,
}


def tiny(blueprint: Blueprint, generation: str) -> Blueprint:
    """The same component with small widths."""
    changes = dict(TINY.get(blueprint.component, {}))
    if blueprint.component == "connectors":
        old = generation == "2.0"
        changes["audio_connector_attention_head_dim"] = 16 if old else 8
        changes |= {} if old else {"video_hidden_dim": 32, "audio_hidden_dim": 16}
    if blueprint.component == "vocoder":
        wide = ("hidden_channels",) if generation == "2.0" else ("hidden_channels", "bwe_hidden_channels")
        changes |= dict.fromkeys(wide, 64)
    if blueprint.component == "vae":
        published = blueprint.on_meta().config
        for name in ("block_out_channels", "decoder_block_out_channels"):
            changes[name] = tuple(width // 16 for width in published[name])
        for name in ("layers_per_block", "decoder_layers_per_block"):
            changes[name] = (1,) * len(published[name])
    return replace(blueprint, config={**blueprint.config, **changes})


def sizes(generation: str, scale: str) -> Mapping[str, Blueprint]:
    """Every component at its published size, or small."""
    found = all_sizes(generation)
    if scale == "full":
        return found
    encoder = Blueprint("text_encoder", "Gemma3TextModel", GEMMA_TINY)
    return {
        **{name: tiny(each, generation) for name, each in found.items() if name != encoder.component},
        encoder.component: encoder,
    }


def built(blueprint: Blueprint, device: str, dtype: torch.dtype) -> Any:
    """The network with random weights, made where it will work."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        # The upscaler multiplies integers while it is made, which a GPU does not.
        with torch.device("cpu" if blueprint.component == UPSAMPLER else device):
            module = blueprint.build()
    finally:
        torch.set_default_dtype(before)
    return module.to(device, dtype).eval()


def pipeline(blueprints: Mapping[str, Blueprint], device: str, dtype: torch.dtype, placement: Placement) -> Any:
    """A model with an identity adapter."""
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    home = device if placement.where == "whole" else "cpu"
    parts = {}
    for name, blueprint in blueprints.items():
        started = time.perf_counter()
        made = built(blueprint, device, dtype)
        if name == "transformer":
            store_small(made, placement.storage, torch.device(device))  # here, since it is slow to carry
        parts[name] = made.to(home)
        print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    with model_path(PACKAGED) as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    pipe = IDLoraPipeline(Components(**parts, tokenizer=tokenizer), device=device, placement=placement)
    adapter = new_adapter(parts["transformer"], IDENTITY_RANK)
    weights = random_weights(adapter.weights())
    adapter.remove()
    pipe.adapters.add(IDENTITY, weights)
    print("ready", time.strftime("%X"), file=sys.stderr, flush=True)
    return pipe


def random_weights(weights: AdapterWeights) -> AdapterWeights:
    """Branches of the same shapes that do a little."""
    pairs = {name: LowRank(small(layer.a), small(layer.b)) for name, layer in weights.layers.items()}
    return AdapterWeights(pairs)


def small(tensor: torch.Tensor) -> torch.Tensor:
    return torch.randn_like(tensor) * 0.01


def settings_of(arguments: argparse.Namespace, preset: str) -> Settings:
    base = Settings(num_frames=arguments.frames, height=arguments.height, width=arguments.width)
    settings = preset_settings(preset, base, GENERATIONS[arguments.generation])
    if arguments.steps is None or settings.sigmas:
        return settings
    return replace(settings, num_inference_steps=arguments.steps)


def placement_of(
    arguments: argparse.Namespace, memory: str, blueprints: Mapping[str, Blueprint], dtype: torch.dtype
) -> Placement:
    """The one asked for, or what the planner proposes for the memory that there may be."""
    if arguments.placement != "auto":
        return replace(WHOLE, where=arguments.placement, storage=arguments.storage)
    demands = [demand_of(blueprints, settings_of(arguments, preset), dtype) for preset in arguments.preset]
    chosen = [choose(each, gigabytes(memory), arguments.storage) for each in demands]
    return max(chosen, key=lambda each: ("whole", "offload", "stream").index(each.where))


def gigabytes(text: str) -> int:
    return int(float(text.upper().removesuffix("GB")) * 1e9)


def cap(memory: str) -> None:
    """Let PyTorch hand out so much and no more."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(gigabytes(memory) * (1 - HEADROOM) / total)


class Clock:
    """A callback that takes the time of every step, and tells it."""

    def __init__(self, device: str) -> None:
        self._on_gpu, self._times = device.startswith("cuda"), list[tuple[int, float]]()

    def __call__(self, step: Step) -> None:
        """A step is about to begin."""
        if self._on_gpu:
            torch.cuda.synchronize()
        self._times.append((step.number, time.perf_counter()))
        print(f"step {step.number + 1} of {step.num_steps} begins", time.strftime("%X"), file=sys.stderr, flush=True)

    def seconds(self) -> list[float]:
        """From one step to the next; the last step of a stage has no next."""
        pairs = zip(self._times, self._times[1:], strict=False)
        return [after - before for (_, before), (number, after) in pairs if number]


def run(pipe: Any, settings: Settings, device: str) -> tuple[Result, list[float]]:
    """One clip of a random picture and voice, with the seconds of its steps."""
    generator = torch.Generator().manual_seed(0)
    voice = Voice((0.1 * torch.randn(1, 5 * 16_000, generator=generator)).numpy(), 16_000)
    picture = torch.randint(256, (settings.height, settings.width, 3), generator=generator, dtype=torch.uint8).numpy()
    clock, prompt = Clock(device), "[VISUAL] a face [SPEECH] river [SOUNDS] calm"
    result = pipe(prompt, image=picture, voice=voice, settings=settings, callback=clock)
    return result, clock.seconds()


def told(arguments: argparse.Namespace, memory: str, preset: str, pipe: Any) -> dict[str, Any]:
    """A preset's costs."""
    settings = settings_of(arguments, preset)
    if any(stage.distilled for stage in stages(settings)) and DISTILLED not in pipe.adapters.strengths:
        pipe.adapters.add(DISTILLED, random_weights(everywhere(pipe.components.transformer, DISTILLED_RANK)))
    with calm():
        result, steps = run(pipe, settings, arguments.device)
    if arguments.clips is not None:
        arguments.clips.mkdir(parents=True, exist_ok=True)
        result.save(arguments.clips / f"{arguments.generation}-{preset}.mp4")
    on_gpu = arguments.device.startswith("cuda")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "dtype": str(pipe.components.dtype).removeprefix("torch."),
        "scale": arguments.scale,
        "generation": arguments.generation,
        "preset": preset,
        "placement": str(pipe.residence.placement),
        "memory": memory,
        "size": [settings.num_frames, settings.height, settings.width],
        "steps": [len(stage.sigmas) - 1 if stage.sigmas else stage.num_inference_steps for stage in stages(settings)],
        "graphs": pipe.graphs,
        "compiled": pipe.compiled,
        "passes": len(settings.guidance.plan(1.0, 1)),
        "seconds_per_step": float(np.median(steps)) if steps else None,
        "seconds": {name: round(seconds, 3) for name, seconds in result.timings.items()},
        "finite": bool(np.isfinite(result.audio).all() and result.video.std() > 0),
        "peak_bytes": dict(result.peak_bytes),
        "weights_bytes": {
            name: sum(each.numel() * each.element_size() for each in module.state_dict().values())
            for name, module in pipe.components.modules().items()
        },
        "versions": versions(),
    }


def foretold(line: Mapping[str, Any]) -> dict[str, int]:
    """What `idlora plan` says of the same run, to be compared with `peak_bytes`."""
    frames, height, width = line["size"]
    generation, placement = GENERATIONS[line["generation"]], line["placement"].split("+")
    settings = preset_settings(line["preset"], Settings(num_frames=frames, height=height, width=width), generation)
    demand = demand_of(sizes(generation.name, line["scale"]), settings, getattr(torch, line["dtype"]))
    where = Placement(placement[0], *placement[1:])
    return {stage: demand.peak(stage, where) for stage in demand.working}


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generation", choices=list(GENERATIONS))
    parser.add_argument("--preset", choices=list(PRESETS), action="append", help="as often as wanted")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--steps", type=int, help="instead of the preset's, where it does not name its levels")
    parser.add_argument("--placement", choices=["whole", "offload", "stream", "auto"], default="whole")
    parser.add_argument("--storage", choices=[*STORAGES, "auto"], default="full")
    parser.add_argument("--graphs", action="store_true", help="steps as CUDA graphs")
    parser.add_argument("--compile", action="store_true", help="compiled blocks")
    parser.add_argument("--memory", action="append", help="a cap such as 24GB; --placement auto obeys it")
    parser.add_argument("--foretell", action="store_true", help="also what `idlora plan` says, a minute of a CPU")
    parser.add_argument("--clips", type=Path, help="folder for the MP4 files")
    parser.add_argument("--out", type=Path, help="file that lines of JSON are added to")
    parser.add_argument("--scale", choices=["full", "tiny"], default="full")
    arguments = parser.parse_args()
    arguments.preset = arguments.preset or ["one-stage"]
    if "auto" in {arguments.placement, arguments.storage} and not (arguments.memory and arguments.placement == "auto"):
        parser.error("--placement auto needs --memory, --storage auto needs both")
    if arguments.storage == "auto" and len(arguments.memory) > 1:
        parser.error("the transformer is packed once: name the --storage for several caps")
    arguments.memory = arguments.memory or [""]
    return arguments


def line_of(arguments: argparse.Namespace, memory: str, preset: str, pipe: Any) -> dict[str, Any]:
    """A preset's costs, or why there are none."""
    try:
        line = told(arguments, memory, preset, pipe)
        return line | ({"foretold_bytes": foretold(line)} if arguments.foretell else {})
    except Exception as error:  # noqa: BLE001 - the others must still run
        why = f"{type(error).__name__}: {error}"
        told_of = {"generation": arguments.generation, "preset": preset, "memory": memory}
        return {**told_of, "placement": str(pipe.residence.placement), "failed": why}


def main() -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    arguments = arguments_of()
    join()
    dtype = torch.bfloat16 if arguments.device.startswith("cuda") else torch.float32
    blueprints = sizes(arguments.generation, arguments.scale)
    placements = {memory: placement_of(arguments, memory, blueprints, dtype) for memory in arguments.memory}
    if len(placements) > 1 and any(each.where == "whole" for each in placements.values()):
        raise SystemExit("several caps need weights that wait in main memory: --placement offload, stream or auto")
    pipe = pipeline(blueprints, arguments.device, dtype, placements[arguments.memory[0]])
    pipe.graphs, pipe.compiled = arguments.graphs, arguments.compile
    for memory, preset in product(arguments.memory, arguments.preset):
        if pipe.residence.placement != placements[memory]:
            pipe.residence = Residence(pipe.components, placements[memory], pipe.device)
        if memory and arguments.device.startswith("cuda"):
            gc.collect()
            cap(memory)
        line = line_of(arguments, memory, preset, pipe)
        if arguments.out is None:
            print(json.dumps(line, indent=1), flush=True)
            continue
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        names = ("generation", "preset", "placement", "memory", "seconds_per_step", "seconds", "failed")
        print(json.dumps({name: line.get(name) for name in names}), flush=True)


if __name__ == "__main__":
    main()
