# SPDX-License-Identifier: Apache-2.0
"""A generation of LTX-2 at its published size with random weights: seconds and peak bytes of a preset, as JSON.

    python benchmarks/rehearsal.py 2.3 --preset one-stage --device cuda > rehearsal-2.3.json

What it makes is noise; what it costs is what the real weights cost. The text encoder has the size of Gemma 3 12B and
the miniature's tokenizer; the identity adapter has rank 128. `--scale tiny` builds the same classes small, to try the
script on a CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

from idlora.data.media import Voice
from idlora.networks.adapter import IDENTITY, AdapterWeights, new_adapter
from idlora.networks.generations import GENERATIONS
from idlora.networks.published import Blueprint, all_sizes
from idlora.networks.stack import DISTILLED
from idlora.pipeline import PRESETS, Components, IDLoraPipeline, Placement, Settings, preset_settings
from idlora.pipeline.output import versions
from idlora.pipeline.plan import demand_of
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
    """The network with random weights, made where it will be."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            module = blueprint.build()
    finally:
        torch.set_default_dtype(before)
    return module.to(dtype).eval()


def pipeline(generation: str, device: str, dtype: torch.dtype, scale: str) -> IDLoraPipeline:
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    parts = {}
    for name, blueprint in sizes(generation, scale).items():
        print(f"building {name}", file=sys.stderr, flush=True)
        parts[name] = built(blueprint, device, dtype)
    with model_path(PACKAGED) as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    components = Components(**parts, tokenizer=tokenizer)
    pipe = IDLoraPipeline(components, device=device)
    weights = fresh_adapter(components.transformer)
    for name in (IDENTITY, DISTILLED):
        pipe.adapters.add(name, weights)
    return pipe


def fresh_adapter(transformer: Any) -> AdapterWeights:
    adapter = new_adapter(transformer, 128)
    weights = adapter.weights()
    adapter.remove()
    return weights


def settings_of(arguments: argparse.Namespace) -> Settings:
    base = Settings(num_frames=arguments.frames, height=arguments.height, width=arguments.width)
    settings = preset_settings(arguments.preset, base, GENERATIONS[arguments.generation])
    return settings if arguments.steps is None else replace(settings, num_inference_steps=arguments.steps)


def foretold(arguments: argparse.Namespace, settings: Settings, dtype: torch.dtype) -> dict[str, int]:
    """What `idlora plan` says of the same run, to be compared with `peak_bytes`."""
    demand = demand_of(sizes(arguments.generation, arguments.scale), settings, dtype)
    return {stage: demand.peak(stage, Placement()) for stage in demand.working}


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generation", choices=list(GENERATIONS))
    parser.add_argument("--preset", choices=list(PRESETS), default="one-stage")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--scale", choices=["full", "tiny"], default="full")
    arguments = parser.parse_args()
    dtype = torch.bfloat16 if arguments.device.startswith("cuda") else torch.float32
    start = time.perf_counter()
    pipe = pipeline(arguments.generation, arguments.device, dtype, arguments.scale)
    built_in = time.perf_counter() - start
    generator = torch.Generator().manual_seed(0)
    voice = Voice((0.1 * torch.randn(1, 5 * 16_000, generator=generator)).numpy(), 16_000)
    settings = settings_of(arguments)
    picture = torch.randint(256, (settings.height, settings.width, 3), generator=generator, dtype=torch.uint8).numpy()
    result = pipe("[VISUAL] a face [SPEECH] river [SOUNDS] calm", image=picture, voice=voice, settings=settings)
    told = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device_name(arguments.device),
        "dtype": str(dtype).removeprefix("torch."),
        "scale": arguments.scale,
        "generation": arguments.generation,
        "preset": arguments.preset,
        "size": [settings.num_frames, settings.height, settings.width],
        "build_seconds": round(built_in, 1),
        "seconds": {name: round(seconds, 2) for name, seconds in result.timings.items()},
        "peak_bytes": dict(result.peak_bytes),
        "weights_bytes": {
            name: sum(each.numel() * each.element_size() for each in module.state_dict().values())
            for name, module in pipe.components.modules().items()
        },
        "foretold_bytes": foretold(arguments, settings, dtype),
        "versions": versions(),
    }
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
