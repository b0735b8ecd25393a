# SPDX-License-Identifier: Apache-2.0
"""What options of a run reach, and what it says of itself: draws, gradients, moments, the log and TensorBoard."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_pipeline
import tiny_training
from idlora.core.schedules import shift_mu
from idlora.networks.adapter import AdapterWeights, read_adapter, write_adapter
from idlora.training.identity.ahead import Ahead
from idlora.training.identity.config import AdapterShape, ObjectiveOptions, Optimization, Watching
from idlora.training.identity.engine import Trainer
from idlora.training.identity.journal import Tally, by_sigma, read_log
from idlora.training.identity.module import StepLosses
from idlora.training.identity.sampling import Visit
from idlora.training.latents.store import LatentStore
from test_batches import batcher

TOKENS = math.prod(tiny_training.GRID)
PLAIN = ObjectiveOptions(sigma="logit-normal", sigma_by_size=False, sigma_bias=0.0, sigma_deviation=1.0)
BY_BATCH = replace(PLAIN, draws="batch", reference_dropout=0.0, text_dropout=0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return LatentStore(tiny_training.store(tmp_path_factory.mktemp("data")))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_training.store(tmp_path / "data")


def sigmas(options: ObjectiveOptions, store: LatentStore, steps: int = 1) -> torch.Tensor:
    """As batches have them, in float64."""
    made = batcher(options)
    rows = store.of_split("train")
    batches = [made.batch([Visit(store, row, number) for row in rows], number) for number in range(steps)]
    return torch.cat([batch.sigmas for batch in batches]).double()


@pytest.mark.parametrize("plain", [PLAIN, BY_BATCH], ids=["by sample", "by batch"])
def test_the_law_of_sigma_reaches_every_draw(plain: ObjectiveOptions, store: LatentStore) -> None:
    """The logit of sigma is a normal draw of the seed, times the deviation, plus the mean."""
    drawn = torch.logit(sigmas(plain, store))
    assert len(drawn.unique()) == len(drawn)
    mean = shift_mu(TOKENS)
    for changes, wanted in (
        ({"sigma_bias": 0.7}, drawn + 0.7),
        ({"sigma_deviation": 0.5}, drawn * 0.5),
        ({"sigma_by_size": True}, drawn + mean),
        ({"sigma_by_size": True, "sigma_bias": -0.4, "sigma_deviation": 2.0}, drawn * 2 + mean - 0.4),
    ):
        torch.testing.assert_close(torch.logit(sigmas(replace(plain, **changes), store)), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("plain", [PLAIN, BY_BATCH], ids=["by sample", "by batch"])
def test_the_other_law_stretches_the_same_draws(plain: ObjectiveOptions, store: LatentStore) -> None:
    """From the percentiles 0.5 and 99.9 to 0 and 1, but for one draw in ten, which is uniform."""
    drawn, stretched = (sigmas(replace(plain, sigma=law), store, 20) for law in ("logit-normal", "stretched"))
    low, high = (torch.sigmoid(torch.tensor(z, dtype=torch.float64)) for z in (-2.5758, 3.0902))
    alike = torch.isclose(stretched, (drawn - low) / (high - low), atol=1e-5)
    assert 0.8 < alike.double().mean() < 0.98
    assert not torch.isclose(stretched, drawn, atol=1e-5).any()


def test_losses_are_told_by_quarters_of_sigma() -> None:
    samples = [(0.0, 1.0, 10.0), (0.2499, 3.0, 30.0), (0.25, 5.0, 50.0), (0.75, 7.0, 70.0), (1.0, 9.0, 90.0)]
    assert by_sigma(torch.tensor(samples)) == {
        "loss_video/sigma 0-0.25": 2.0, "loss_audio/sigma 0-0.25": 20.0,
        "loss_video/sigma 0.25-0.5": 5.0, "loss_audio/sigma 0.25-0.5": 50.0,
        "loss_video/sigma 0.75-1": 8.0, "loss_audio/sigma 0.75-1": 80.0,
    }  # fmt: skip


def test_a_tally_keeps_each_sample_with_its_sigma() -> None:
    tally = Tally()
    for first in (1.0, 3.0):
        total, video, audio = (torch.tensor(first * scale) for scale in (1, 10, 100))
        by_sample = torch.tensor([first, first + 1])
        tally.add(StepLosses(total, video, audio, by_sample, by_sample * 2), torch.tensor([0.1, 0.9]), 7)
    means, samples = tally.values()
    assert means.tolist() == [2.0, 20.0, 200.0]
    assert tally.tokens == 14
    wanted = [[0.1, 1, 2], [0.9, 2, 4], [0.1, 3, 6], [0.9, 4, 8]]
    assert torch.allclose(samples, torch.tensor(wanted))


def test_the_log_has_the_losses_of_its_steps(data: Path, tmp_path: Path) -> None:
    made = tiny_training.trainer(tiny_training.config(tmp_path / "run", data, steps=1))
    batch = made._batch(0)
    with torch.no_grad():
        losses = made.job.module(batch)
    made.run()
    (line,) = [line for line in read_log(made.folder) if "loss" in line]
    assert line["loss"] == pytest.approx(losses.total.item(), rel=1e-4)
    assert line["loss_audio"] == pytest.approx(losses.audio.item(), rel=1e-4)
    by_sample = torch.stack([batch.sigmas, losses.video_by_sample, losses.audio_by_sample], 1)
    told = {name: value for name, value in line.items() if "/sigma" in name}
    assert told == pytest.approx(by_sigma(by_sample), rel=1e-4)


def stepped(made: Trainer) -> tuple[float, torch.Tensor]:
    """The length that a step tells, and the gradient that it is made with."""
    found: list[torch.Tensor] = []
    made.optimizer.step = lambda: found.extend(p.grad.flatten().clone() for p in made.parameters.values())  # type: ignore[union-attr]
    with Ahead(made._batch, made.config.steps) as ahead:
        told = made._advance(Tally(), ahead)
    return told, torch.cat(found)


def test_a_gradient_is_shortened_to_its_limit_and_no_shorter(data: Path, tmp_path: Path) -> None:
    def limited(limit: float) -> tuple[float, torch.Tensor]:
        rates = Optimization(max_grad_norm=limit)
        return stepped(tiny_training.trainer(tiny_training.config(tmp_path / f"{limit}", data, optimization=rates)))

    told, plain = limited(0.0)
    length = float(plain.norm())
    assert told == pytest.approx(length, rel=1e-5)
    for limit in (length / 10, length * 10):
        again, shortened = limited(limit)
        assert again == pytest.approx(length, rel=1e-5)  # the log tells the length before
        assert float(shortened.norm()) == pytest.approx(min(limit, length), rel=1e-4)
        torch.testing.assert_close(shortened, plain * min(1.0, limit / length), rtol=1e-3, atol=1e-7)


def test_speed_and_memory_are_numbers_and_tensorboard_has_the_whole_log(data: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    made = tiny_training.trainer(tiny_training.config(tmp_path / "run", data))
    made.run()
    lines = read_log(made.folder)
    steps = [line for line in lines if "tokens_per_second" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(line["tokens_per_second"] > 0 and math.isfinite(line["tokens_per_second"]) for line in steps)
    assert all(0.01 < line["peak_memory_gb"] < 1000 for line in steps)
    board = events.EventAccumulator(str(made.folder / "tensorboard")).Reload()
    wanted = {(name, line["step"]): value for line in lines for name, value in line.items() if name != "step"}
    assert {"loss", "learning_rate", "validation_loss"} <= {name for name, _ in wanted}
    found = {(tag, each.step): each.value for tag in board.Tags()["scalars"] for each in board.Scalars(tag)}
    assert found == pytest.approx(wanted, rel=1e-5)


def test_tokens_are_those_of_all_batches_since_the_last_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Video, sound and reference of two samples, four times."""
    config = tiny_training.config(tmp_path / "run", data, watching=Watching(log_every=4, validate_every=0))
    made = tiny_training.trainer(config)
    tokens = 0
    for batch in map(made._batch, range(4)):
        assert batch.reference is not None
        tokens += batch.video.shape[1] + batch.audio.shape[1] + batch.reference.shape[1]
    told: list[float] = []
    monkeypatch.setattr(Trainer, "_log", lambda _self, _journal, tally, _norm, _seconds: told.append(tally.tokens))
    made.run()
    assert told == [2 * tokens]


def test_a_limit_takes_the_first_samples_alone(data: Path, tmp_path: Path) -> None:
    config = tiny_training.config(tmp_path / "run", data)

    def seen(limit: int) -> set[str]:
        made = tiny_training.trainer(replace(config, data=replace(config.data, limit=limit)))
        return {visit.row.id for step in range(12) for visit in made.job.sampler.visits(step)}

    every = {f"pair-{number}" for number in range(6)}
    assert [seen(limit) for limit in (2, 5, 6, 7, 0)] == [
        {"pair-0", "pair-1"}, every - {"pair-5"}, every, every, every,
    ]  # fmt: skip


def moments(made: Trainer) -> dict[str, torch.Tensor]:
    """All tensors of the optimiser's state, by parameter and name."""
    return {
        f"{name}/{key}": value.clone()
        for name, parameter in made.parameters.items()
        for key, value in made.optimizer.state[parameter].items()
        if isinstance(value, torch.Tensor)
    }


def test_moments_of_eight_bits_are_resumed_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    """Parameters of fewer than 4,096 numbers have moments of float32; of rank 128 there are larger ones."""
    pytest.importorskip("bitsandbytes")
    changes: dict[str, Any] = {
        "adapter": AdapterShape(rank=128),
        "optimization": Optimization(optimizer="adamw8bit", learning_rate=1e-3, schedule="constant"),
        "watching": Watching(log_every=1, validate_every=0),
    }
    whole = tiny_training.trainer(tiny_training.config(tmp_path / "whole", data, **changes))
    whole.run()
    config = tiny_training.config(tmp_path / "parts", data, **changes)
    tiny_training.trainer(replace(config, steps=2)).run()
    resumed = tiny_training.trainer(config)
    assert resumed.step == 2
    kept = moments(resumed)
    assert sum(value.dtype == torch.uint8 for value in kept.values()) >= 2
    assert any(value.dtype == torch.uint8 and len(value.unique()) > 8 for value in kept.values())
    resumed.run()
    ours, theirs = moments(resumed), moments(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) and ours[name].dtype == value.dtype for name, value in theirs.items())
    weights = tiny_training.weights(resumed)
    assert all(torch.equal(weights[name], value) for name, value in tiny_training.weights(whole).items())


def test_an_adapter_to_go_on_from_is_where_a_run_begins(data: Path, tmp_path: Path) -> None:
    """With its own rank and layers, whatever the configuration says, and without another scale."""
    start = tmp_path / "start.safetensors"
    given = tiny_pipeline.adapter_for(tiny_pipeline.components("2.3").transformer)  # of rank 4
    layers = {name: each for name, each in given.layers.items() if "attn1" in name}
    write_adapter(start, AdapterWeights(layers))
    stored = read_adapter(start).layers
    shape = AdapterShape(rank=2, alpha=16.0, start=str(start))
    config = tiny_training.config(tmp_path / "run", data, adapter=shape, steps=1)
    made = tiny_training.trainer(config)
    begun = tiny_training.weights(made)
    assert len(begun) == 2 * len(stored)
    for layer, each in stored.items():
        parts = {name: value for name, value in begun.items() if f"transformer.{layer}.lora_" in name}
        assert sorted(map(tuple, (value.shape for value in parts.values()))) == sorted(
            map(tuple, (each.a.shape, each.b.shape))
        )
        for name, value in parts.items():
            wanted = each.a if ".lora_A." in name else each.b
            assert torch.equal(value, wanted.float())
    plain = tiny_training.trainer(tiny_training.config(tmp_path / "plain", data, steps=1))
    losses = [each.job.module(each._batch(0)).total.item() for each in (made, plain)]
    assert losses[0] != losses[1]
    made.run()
    saved = read_adapter(tmp_path / "run" / "adapter.safetensors")
    assert (saved.layers.keys(), set(saved.ranks.values())) == (stored.keys(), {4})
    again = replace(config, out=str(tmp_path / "again"), optimization=Optimization(learning_rate=1e-12))
    tiny_training.trainer(again).run()
    kept = read_adapter(tmp_path / "again" / "adapter.safetensors").layers
    assert all(torch.equal(kept[name].b, each.b) for name, each in stored.items())
    assert json.loads(saved.metadata["targets"])
