# SPDX-License-Identifier: Apache-2.0
"""Laws of a training run on tiny models: what changes nothing, what is resumed, and what stops it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_training
from idlora.networks.adapter import read_adapter
from idlora.networks.generations import GENERATIONS
from idlora.training.identity.ahead import Ahead
from idlora.training.identity.config import AdapterShape, Engine, Optimization, Saving, Watching
from idlora.training.identity.engine import Trainer
from idlora.training.identity.journal import Tally, read_log


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_training.store(tmp_path / "data")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_run_writes_its_adapter_log_and_states(generation: str, tmp_path: Path) -> None:
    data = tiny_training.store(tmp_path / "data", generation)
    made = tiny_training.trainer(tiny_training.config(tmp_path / "run", data), generation)
    before = tiny_training.weights(made)
    made.run()
    assert any(not torch.equal(before[name], value) for name, value in tiny_training.weights(made).items())
    adapter = read_adapter(tmp_path / "run" / "adapter.safetensors")
    assert adapter.metadata["generation"] == generation
    assert set(adapter.ranks.values()) == {2}
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {1, 2, 3, 4}
    assert sum("validation_loss" in line for line in lines) == 2


class Killed(BaseException):
    """Ends a process without a word, as far as Python can."""


def killed_at(made: Trainer, step: int) -> None:
    def progress(done: int, _values: Mapping[str, float]) -> None:
        if done == step:
            raise Killed

    made.progress = progress
    with pytest.raises(Killed):
        made.run()


def same(first: Trainer, second: Trainer) -> bool:
    ours, theirs = tiny_training.weights(first), tiny_training.weights(second)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def gradients(made: Trainer, step: int = 0) -> torch.Tensor:
    """The gradient of a step as one vector; the weights stay as they are. AdamW would amplify its rounding."""
    found: list[torch.Tensor] = []
    made.optimizer.step = lambda: found.extend(p.grad.flatten().clone() for p in made.parameters.values())  # type: ignore[union-attr]
    made.step = step
    with Ahead(made._batch, made.config.steps * made.config.engine.accumulate) as ahead:
        made._advance(Tally(), ahead)
    return torch.cat(found)


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference relative to the largest entry."""
    return float((first - second).abs().max() / second.abs().max())


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_run_has_the_same_bits(optimizer: Any, dropout: float, data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "optimization": Optimization(optimizer=optimizer, learning_rate=1e-2, ema=0.9),
        "adapter": AdapterShape(rank=2, dropout=dropout),
        "steps": 5,
    }
    whole = tiny_training.trainer(tiny_training.config(tmp_path / "whole", data, **changes))
    whole.run()
    config = tiny_training.config(tmp_path / "parts", data, **changes)
    killed_at(tiny_training.trainer(config), 3)
    resumed = tiny_training.trainer(config)
    assert resumed.step == 2
    resumed.run()
    assert same(whole, resumed)
    assert all(torch.equal(whole.average.values[name], resumed.average.values[name]) for name in whole.average.values)
    files = [read_adapter(tmp_path / run / "adapter.safetensors") for run in ("whole", "parts")]
    assert files[0].metadata == files[1].metadata
    assert all(torch.equal(files[0].layers[name].b, layer.b) for name, layer in files[1].layers.items())
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("whole", "parts")]
    steps = [[json.loads(line)["step"] for line in log] for log in logs]
    assert steps[0] == steps[1]


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 4), (2, 2)])
def test_a_split_into_accumulated_batches_changes_nothing(
    batch: int, accumulate: int, data: Path, tmp_path: Path
) -> None:
    whole, split = (
        # One after the other, since accelerate keeps the accumulation for the whole process.
        [gradients(made, step) for step in range(3)]
        for made in (
            tiny_training.trainer(tiny_training.config(tmp_path / f"{size}", data, engine=engine(size, times)))
            for size, times in ((4, 1), (batch, accumulate))
        )
    )
    assert max(apart(*pair) for pair in zip(split, whole, strict=True)) < 1e-5


def engine(batch: int, accumulate: int, **changes: Any) -> Engine:
    return Engine(batch=batch, accumulate=accumulate, precision="fp32", device="cpu", **changes)


def test_recomputed_blocks_change_nothing(data: Path, tmp_path: Path) -> None:
    found = []
    for name in ("all", "attention", "none"):
        config = tiny_training.config(tmp_path / name, data, engine=engine(2, 1, checkpointing=name))
        found.append(gradients(tiny_training.trainer(config)))
    assert max(apart(each, found[0]) for each in found[1:]) < 1e-6


@pytest.mark.parametrize("storage", ["full", "fp8", "int8", "nf4"])
@pytest.mark.parametrize("precision", ["bf16", "mixed"])
def test_an_adapter_trains_on_a_base_in_few_bits(storage: Any, precision: Any, data: Path, tmp_path: Path) -> None:
    """Its gradient is near that of the base in full: the base is rounded, the adapter is not."""
    found = []
    for kept, computed in (("full", "fp32"), (storage, precision)):
        chosen = Engine(batch=2, precision=computed, storage=kept, device="cpu")  # type: ignore[arg-type]
        made = tiny_training.trainer(tiny_training.config(tmp_path / f"{kept}-{computed}", data, engine=chosen))
        assert {each.dtype for each in made.parameters.values()} == {torch.float32}
        found.append(gradients(made))
    first, second = found
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.9
    assert not torch.equal(first, second)


def test_connectors_that_come_for_every_batch_make_the_same_one(data: Path, tmp_path: Path) -> None:
    whole, coming = (
        tiny_training.trainer(tiny_training.config(tmp_path / where, data, engine=engine(2, 1)), where=where)
        for where in ("whole", "offload")
    )
    for number in range(2):
        first, second = whole._batch(number).context, coming._batch(number).context
        assert torch.equal(first.video, second.video)
        assert torch.equal(first.audio, second.audio)


def test_the_best_adapter_stays(data: Path, tmp_path: Path) -> None:
    config = tiny_training.config(
        tmp_path / "run", data, saving=Saving(every=2, keep_last=1, keep_best="validation_loss")
    )
    made = tiny_training.trainer(replace(config, steps=6, watching=Watching(log_every=1, validate_every=1)))
    made.run()
    losses = {line["step"]: line["validation_loss"] for line in read_log(made.folder) if "validation_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    kept = read_adapter(made.folder / "best.safetensors").metadata
    assert kept["steps"] == str(best)
    assert float(kept["validation_loss"]) == pytest.approx(losses[best], rel=1e-4)
    assert [path.name for path in made.checkpoints.files()] == ["state-000006.safetensors"]
