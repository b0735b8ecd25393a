# SPDX-License-Identifier: Apache-2.0
"""A training step of the identity adapter on a transformer of the published size with random weights, as JSON lines.

    python benchmarks/train_full_size.py 2.3 --storage full --storage nf4 --batch 1 --out runs/train.jsonl

The published recipe: rank 128 on the published layers, bfloat16, blocks computed again in the backward pass; 512 x 512,
121 frames, a reference of 5 s. `plain` is the same step by diffusers' forward, PEFT and AdamW, batch 1, no masks.
Seconds are the median of the steps after the first; peak bytes are what PyTorch handed out, with `--foretell` beside
what `idlora train --plan` says. `--connectors` makes the text of every step from features by connectors of the
published size, which wait in main memory and come block by block, as the trainer has it where the base is stored small;
`--memory` caps what PyTorch may hand out. `--scale tiny` is a few narrow blocks, to try the script on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from calm import calm, join
from plain import plain_loss
from rehearsal import TINY, cap, tiny
from torch import Tensor, nn

from idlora.core.positions import audio_positions, reference_positions, video_positions
from idlora.networks.adapter import new_adapter
from idlora.networks.joint import TextContext
from idlora.networks.packing import STORAGES, Storage, store_small
from idlora.networks.published import Blueprint, all_sizes
from idlora.networks.text import PromptEncoder, TextFeatures
from idlora.pipeline import Components, Placement
from idlora.pipeline.components import NETWORKS
from idlora.pipeline.placement import Residence
from idlora.training.identity.config import AdapterShape, Engine, Optimization, TrainingConfig
from idlora.training.identity.module import TrainingModule
from idlora.training.identity.optimizer import make_optimizer
from idlora.training.identity.planning import resources
from idlora.training.identity.setup import set_checkpointing
from idlora.training.latents.store import Row
from idlora.training.objective import TrainingBatch

TEXT = 1024
ROW = Row("random", "", grid=(16, 16, 16), num_audio=121, num_reference=126, frame_rate=25.0, num_frames=121)


def transformer_of(blueprint: Blueprint, device: torch.device) -> Any:
    """Random weights in bfloat16, made on the device."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return blueprint.build().to(torch.bfloat16)
    finally:
        torch.set_default_dtype(before)


def connecting(given: argparse.Namespace, transformer: Any, device: torch.device) -> Callable[[int], TextContext]:
    """The trainer's way from stored features of so many samples to what the transformer attends to."""
    blueprint = all_sizes(given.generation)["connectors"]
    if given.scale == "tiny":
        blueprint = tiny(blueprint, given.generation)
    connectors = transformer_of(blueprint, torch.device("cpu"))
    others = dict.fromkeys(NETWORKS, nn.Identity())
    parts: dict[str, Any] = {**others, "transformer": transformer, "connectors": connectors}
    residence = Residence(Components(tokenizer=None, **parts), Placement("offload"), device)
    residence.keep("transformer")
    encoder, names = PromptEncoder(SimpleNamespace(), None, connectors), ("video_hidden_dim", "audio_hidden_dim")
    config = connectors.config
    widths = [config[name] if config.per_modality_projections else config.caption_channels for name in names]

    def context(size: int) -> TextContext:
        features = TextFeatures(*(torch.randn(size, TEXT, width).to(device, torch.bfloat16) for width in widths))
        with torch.no_grad(), residence.at_work("connect"):
            return encoder.attended(features, torch.ones(size, TEXT, device=device))

    return context


def batch_of(size: int, row: Row, config: Any, device: torch.device) -> TrainingBatch:
    """Random tokens and text."""
    generator = torch.Generator().manual_seed(0)

    def normal(tokens: int, channels: int) -> Tensor:
        return torch.randn(size, tokens, channels, generator=generator).to(device)

    frames, height, width = row.grid
    tokens = frames * height * width
    widths = (config["cross_attention_dim"], config["audio_cross_attention_dim"])
    if config["use_prompt_embeddings"]:
        widths = (config["caption_channels"],) * 2
    first = torch.arange(tokens, device=device) < height * width
    return TrainingBatch(
        video=normal(tokens, config["in_channels"]),
        audio=normal(row.num_audio, config["audio_in_channels"]),
        video_noise=normal(tokens, config["in_channels"]),
        audio_noise=normal(row.num_audio, config["audio_in_channels"]),
        sigmas=torch.full((size,), 0.7, device=device),
        video_positions=video_positions(row.grid, row.frame_rate, device),
        audio_positions=audio_positions(row.num_audio, device),
        context=TextContext(normal(TEXT, widths[0]), normal(TEXT, widths[1])),
        conditioned=first[None].expand(size, -1),
        reference=normal(row.num_reference, config["audio_in_channels"]),
        reference_positions=reference_positions(row.num_reference, device=device),
    )


class Meter:
    """Seconds and peak bytes of steps."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def steps(self, step: Callable[[], Tensor], count: int) -> dict[str, Any]:
        """Run them after one that warms up."""
        step()
        seconds, loss = list[float](), float("nan")
        with calm():
            for _ in range(count):
                if self.on_gpu:
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                started = time.perf_counter()
                loss = float(step())
                if self.on_gpu:
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else None
        return {
            "seconds_per_step": statistics.median(seconds),
            "range": [min(seconds), max(seconds)],
            "n": count,
            "peak_bytes": peak,
            "loss": loss,
        }


def optimised(
    parameters: dict[str, nn.Parameter],
    optimizer: Any,
    loss: Callable[[], Tensor],
    kernels: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Callable[[], Tensor]:
    def step() -> Tensor:
        with kernels():
            total = loss()
            torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.detach()

    return step


def trained(transformer: Any) -> dict[str, nn.Parameter]:
    return {name: each for name, each in transformer.named_parameters() if each.requires_grad}


def ours(transformer: Any, config: TrainingConfig, batches: Callable[[], TrainingBatch]) -> Callable[[], Tensor]:
    """The trainer's step."""
    new_adapter(transformer, config.adapter.rank).make_trainable()
    module = TrainingModule(transformer, config.objective, bf16=True).train()
    set_checkpointing(module, config.engine)
    if config.engine.compile:
        module.model.compile_blocks(dynamic=False)
    parameters = trained(transformer)
    optimizer = make_optimizer(parameters, config.optimization)
    return optimised(parameters, optimizer, lambda: module(batches()).total, module.attention)


def plain(transformer: Any, config: TrainingConfig, batches: Callable[[], TrainingBatch]) -> Callable[[], Tensor]:
    """The plain loop's step."""
    new_adapter(transformer, config.adapter.rank)
    for name, each in transformer.named_parameters():
        if "lora_" in name:
            each.data, each.requires_grad = each.data.float(), True
    transformer.enable_gradient_checkpointing()
    transformer.train()
    parameters = trained(transformer)
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=2e-4)
    return optimised(parameters, optimizer, lambda: plain_loss(transformer, batches(), torch.bfloat16))


def measured(given: argparse.Namespace, way: str, storage: Storage, size: int) -> dict[str, Any]:
    """One line."""
    device = torch.device(given.device)
    blueprint, row = all_sizes(given.generation)["transformer"], ROW
    if given.scale == "tiny":
        blueprint = replace(blueprint, config={**blueprint.config, **TINY["transformer"], "num_layers": 4})
        row = replace(row, grid=(2, 4, 4))
    if given.layers:
        blueprint = replace(blueprint, config={**blueprint.config, "num_layers": given.layers})
    config = TrainingConfig(
        adapter=AdapterShape(rank=4 if given.scale == "tiny" else 128),
        engine=Engine(batch=size, precision="bf16", storage=storage, checkpointing="all", compile=way == "compiled"),
        optimization=Optimization(),
    )
    transformer = transformer_of(blueprint, device)
    store_small(transformer, storage, device)
    batch = batch_of(size, row, transformer.config, device)
    context = connecting(given, transformer, device) if given.connectors else None

    def batches() -> TrainingBatch:
        return batch if context is None else replace(batch, context=context(size))

    if given.memory and device.type == "cuda":
        gc.collect()
        cap(given.memory)
    step = (plain if way == "plain" else ours)(transformer, config, batches)
    found = Meter(device).steps(step, given.steps)
    foretold = None if way == "plain" or not given.foretell else resources(config, blueprint, row, TEXT).device_bytes
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "generation": given.generation,
        "scale": given.scale,
        "way": way,
        "storage": storage,
        "batch": size,
        "layers": given.layers or "all",
        "connectors": given.connectors,
        "memory": given.memory,
        **found,
        "foretold_bytes": foretold,
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generation", choices=["2.0", "2.3", "2.5"])
    parser.add_argument("--storage", choices=STORAGES, action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--steps", type=int, default=3, help="after the first")
    parser.add_argument("--plain", action="store_true", help="the plain loop too, batch 1, full weights")
    parser.add_argument("--no-eager", action="store_true", help="leave out ours that is not compiled")
    parser.add_argument("--compile", action="store_true", help="ours with compiled blocks too")
    parser.add_argument("--layers", type=int, default=0, help="fewer blocks than published; times are then a part's")
    parser.add_argument("--connectors", action="store_true", help="they make the text of every step")
    parser.add_argument("--memory", default="", help="such as 24GB: a cap")
    parser.add_argument("--foretell", action="store_true", help="also what the plan says, a minute of a CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", choices=["full", "tiny"], default="full")
    parser.add_argument("--out", type=Path, help="file that lines are added to")
    given = parser.parse_args()
    join()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    wanted: list[tuple[str, Storage, int]] = [("plain", "full", 1)] if given.plain else []
    ways = ["ours"] * (not given.no_eager) + ["compiled"] * given.compile
    wanted += product(ways, given.storage or ["full"], given.batch or [1])
    for way, storage, size in wanted:
        try:
            line = measured(given, way, storage, size)
        except Exception as error:  # noqa: BLE001 - the others must still run
            failed = f"{type(error).__name__}: {error}"[:300]
            line = {"generation": given.generation, "way": way, "storage": storage, "batch": size}
            line |= {"connectors": given.connectors, "memory": given.memory, "failed": failed}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(json.dumps(line), flush=True)
        if given.out is not None:
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
