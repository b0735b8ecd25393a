# SPDX-License-Identifier: Apache-2.0
"""One run from its configuration: begun, or gone on with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from idlora.errors import OutputError, SettingsError
from idlora.files import write_text
from idlora.pipeline.records import from_json
from idlora.training.identity.checkpoints import Checkpoints
from idlora.training.identity.config import TrainingConfig, config_to_json, read_yaml
from idlora.training.identity.engine import BEST_NAME, FINAL_NAME, Job, Progress, Trainer, Watcher, silent
from idlora.training.identity.setup import (
    AdapterFile,
    Bench,
    checked_device,
    load_bench,
    make_batcher,
    make_sampler,
)
from idlora.training.identity.watch import Judge, watchers_of

CONFIG_NAME = "config.yaml"
# What may change between a run and its continuation.
_FREE = ("steps", "saving", "watching")
_FREE_ENGINE = ("checkpointing", "kept_blocks", "compile", "device", "accumulate")  # samples a step stay (`Trainer`)

Judges = Callable[[], Mapping[str, Judge]]


def run_training(config: TrainingConfig, progress: Progress = silent, judges: Judges = dict) -> Path:
    """Train, from the last checkpoint in the folder if there is one; returns the adapter's file.

    Args:
        config: of the run.
        progress: told at every line of the log.
        judges: makes the judges of clips that `watching.judges` names; asked for if there are any.

    Raises:
        SettingsError: the configuration cannot be used, or the folder was begun with another one.
        TrainingError: data is missing or damaged, or a loss is not finite.
        WeightsError: the model cannot be used.
        OutputError: the folder cannot be written.
    """
    accelerator = make_accelerator(config)
    config = replace(config, engine=replace(config.engine, accumulate=accelerator.gradient_accumulation_steps))
    if accelerator.is_main_process:
        _refuse_other(config)
    trainer = make_trainer(config, load_bench(config, accelerator.device), accelerator, progress, judges)
    if accelerator.is_main_process:
        _claim(config)
    trainer.run()
    return trainer.folder / FINAL_NAME


def make_accelerator(config: TrainingConfig) -> Any:
    """Accelerate's, as its own configuration or launcher says; mixed precision is the module's.

    Raises:
        SettingsError: the device is not there, or the blocks cannot be compiled on it as they are spread.
    """
    from accelerate import Accelerator

    device = checked_device(config.engine.device)
    cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    found = Accelerator(gradient_accumulation_steps=config.engine.accumulate, mixed_precision="no", cpu=cpu)
    if config.engine.compile and found.distributed_type == "FSDP":
        # FSDP gathers a block's weights when the block is called as a module; what is compiled is a function.
        raise SettingsError("engine.compile has no effect on sharded weights (FSDP): set it to false, or train by DDP")
    return found


def make_trainer(
    config: TrainingConfig, bench: Bench, accelerator: Any, progress: Progress = silent, judges: Judges = dict
) -> Trainer:
    """The trainer of a loaded model."""
    sampler = make_sampler(config, bench, accelerator.num_processes)
    batcher = make_batcher(config, bench, sampler, accelerator.device)
    digest = "+".join(sorted({store.digest for store, _ in sampler.samples}))
    watchers: tuple[Watcher, ...] = watchers_of(config, bench, batcher, accelerator, judges)
    job = Job(bench.module, batcher, sampler, AdapterFile(config, bench, digest), watchers)
    return Trainer(config, job, accelerator, progress)


def _refuse_other(config: TrainingConfig) -> None:
    """Refuse to go on with a run that was begun otherwise; one that has saved nothing yet may begin anew."""
    folder, path = Path(config.out), Path(config.out) / CONFIG_NAME
    saved = [*Checkpoints(folder).files(), *(folder / name for name in (BEST_NAME, FINAL_NAME))]
    if not path.exists() or not any(each.exists() for each in saved):
        return
    before = {name: value for name, value in read_yaml(path).items() if name not in _FREE}
    changed = _changed(from_json(TrainingConfig(), before, str(path)), config)
    if changed:
        raise SettingsError(
            f"{folder} was begun with another {', '.join(changed)}; choose another folder (out), or set it back as "
            f"{path} has it"
        )


def _claim(config: TrainingConfig) -> None:
    """Write the configuration into the run's folder."""
    import yaml

    folder, path = Path(config.out), Path(config.out) / CONFIG_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}; choose another out") from error
    write_text(path, yaml.safe_dump(config_to_json(config), sort_keys=False))


def _changed(old: TrainingConfig, new: TrainingConfig) -> list[str]:
    """Names of what differs and may not."""
    before, after = config_to_json(old), config_to_json(new)
    found = []
    for name, value in after.items():
        if name in _FREE or name == "out":
            continue
        if not isinstance(value, dict):
            found += [name] if before[name] != value else []
            continue
        free = set(_FREE_ENGINE) if name == "engine" else set()
        if name == "engine" and {new.objective.draws, new.objective.loss} == {"sample"}:
            free.add("batch")  # nothing depends on what a sample is batched with
        found += [f"{name}.{key}" for key in value if key not in free and before[name][key] != value[key]]
    return found
