# SPDX-License-Identifier: Apache-2.0
"""One process of several that train a tiny model together; `test_distributed.py` starts it with torch.distributed.run.

    train_worker.py OUT DATA BATCH

In OUT it leaves `gradient.safetensors`, the whole gradient of the first step; `first`, a run; `resumed`, which may hold
states of another run to go on from; `stopped`, a run that one of the processes was asked to end; and `facts.json`.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import tiny_training
from idlora.training.identity.ahead import Ahead
from idlora.training.identity.checkpoints import whole
from idlora.training.identity.config import Engine, TrainingConfig
from idlora.training.identity.engine import Trainer
from idlora.training.identity.journal import Tally

GLOBAL_BATCH = 4


def config(out: Path, data: Path, batch: int) -> TrainingConfig:
    """The same samples a step, whatever the number of processes and the batch of each."""
    times = GLOBAL_BATCH // (batch * int(os.environ.get("WORLD_SIZE", "1")))
    return tiny_training.config(out, data, engine=Engine(batch=batch, accumulate=times, precision="fp32", device="cpu"))


def gradient(made: Trainer) -> dict[str, torch.Tensor]:
    """Of the first step, with all shards; the weights stay as they are."""
    found: dict[str, torch.Tensor] = {}

    def step() -> None:
        for name, each in made.parameters.items():
            assert each.grad is not None
            found[name] = whole(each.grad).clone()

    usual, made.optimizer.step = made.optimizer.step, step
    with Ahead(made._batch, made.config.steps * made.config.engine.accumulate) as ahead:
        made._advance(Tally(), ahead)
    made.optimizer.step, made.step = usual, 0
    return found


def facts(made: Trainer) -> dict[str, Any]:
    """How a trainer is spread."""
    blocks = made.accelerator.unwrap_model(made.module).transformer.transformer_blocks
    parts = [each.to_local() if isinstance(each, DTensor) else each for each in made.parameters.values()]
    return {
        "type": str(made.accelerator.distributed_type.value),
        "processes": made.accelerator.num_processes,
        "sharded_parameters": all(isinstance(each, DTensor) for each in made.parameters.values()),
        "sharded_blocks": all(isinstance(block, FSDPModule) for block in blocks),
        "share": sum(map(torch.numel, parts)) / sum(map(torch.numel, made.parameters.values())),
    }


def allow_fsdp_on_cpu() -> None:
    """Accelerate shards on accelerators alone and takes DDP on CPUs, silently; torch shards on both."""
    from accelerate import DistributedType, PartialState

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU


def main(out: Path, data: Path, batch: int) -> None:
    allow_fsdp_on_cpu()
    first = tiny_training.trainer(config(out / "first", data, batch))
    calls: list[Any] = []
    block = first.accelerator.unwrap_model(first.module).transformer.transformer_blocks[0]
    counter = block.register_forward_pre_hook(lambda *_: calls.append(None))
    found = gradient(first)
    counter.remove()
    told = {**facts(first), "block_calls": len(calls)}
    first.run()
    # Batches of one sample, accumulated: neither that nor the number of processes is to matter.
    resumed = tiny_training.trainer(config(out / "resumed", data, 1))
    told["resumed_at"] = resumed.step
    resumed.run()
    told["stopped_at"] = stopped(config(out / "stopped", data, batch))
    if first.accelerator.is_main_process:
        save_file(found, out / "gradient.safetensors")
        (out / "facts.json").write_text(json.dumps(told))
    first.accelerator.end_training()


def stopped(config: TrainingConfig) -> int:
    """Steps of a run whose last process alone is asked to end, in its first step; 0 if it did not end."""
    made = tiny_training.trainer(config)

    def moved(done: int, _values: Mapping[str, float]) -> None:
        if done == 1 and made.accelerator.is_last_process:
            os.kill(os.getpid(), signal.SIGINT)

    made.progress = moved
    try:
        made.run()
    except KeyboardInterrupt:
        return made.step
    return 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
