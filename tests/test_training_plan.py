# SPDX-License-Identifier: Apache-2.0
"""What a run is foretold to take is what it takes; every preset is a file that reads back as itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import tiny_pipeline
import tiny_training
from idlora.errors import SettingsError
from idlora.networks.footprint import ATTENTION_FLOPS, Footprint, weight_bytes
from idlora.networks.published import Blueprint, all_sizes
from idlora.training.identity.config import (
    AdapterShape,
    Model,
    Optimization,
    TrainingConfig,
    config_to_json,
    parse_yaml,
    read_config,
)
from idlora.training.identity.planning import foretell, resources
from idlora.training.identity.presets import PRESETS, preset_config
from idlora.training.latents.store import LatentStore, Row


@pytest.mark.parametrize("checkpointing", ["all", "attention", "none"])
@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_bytes_of_a_step_are_as_foretold(checkpointing: Any, generation: str, tmp_path: Path) -> None:
    data = tiny_training.store(tmp_path / "data", generation, equal=True)
    base = tiny_training.config(tmp_path / "run", data)
    plain = replace(base.objective, reference_seconds=(), reference_dropout=0.0, equal_lengths=False)
    config = replace(base, objective=plain, engine=replace(base.engine, checkpointing=checkpointing))
    made = tiny_training.trainer(config, generation)
    module = made.job.module
    row = LatentStore(data).of_split("train")[0]
    transformer = module.transformer
    blueprint = Blueprint("transformer", "LTX2VideoTransformer3DModel", dict(transformer.config))
    foreseen = resources(config, blueprint, row, made.job.batcher.max_text_tokens)
    batch = made.job.batcher.batch(made.job.sampler.visits(0), 0)
    gradients = sum(each.nbytes for each in made.parameters.values())
    with Footprint([module]) as footprint:
        torch.autograd.backward(module(batch).total)
    assert foreseen.working == pytest.approx(footprint.peak - gradients, rel=0.05)
    with FlopCounterMode(display=False, custom_mapping=dict(ATTENTION_FLOPS)) as flops:
        torch.autograd.backward(module(batch).total)
    assert foreseen.flops == pytest.approx(flops.get_total_flops() * config.engine.accumulate, rel=0.02)
    assert foreseen.parameters == sum(each.numel() for each in made.parameters.values())
    assert foreseen.base == weight_bytes(transformer) - gradients
    made.optimizer.step()
    made.checkpoints.save(made._state())
    kept = sum(each.nbytes for each in load_file(made.checkpoints.files()[0]).values())
    assert foreseen.state == pytest.approx(kept, rel=0.02)


def test_published_recipes_fit_as_they_must() -> None:
    """80 GB with the base in bfloat16, 24 GB with the base in four bits; foretold, never measured."""
    row = Row("a", "b", (16, 16, 16), 122, 122, 25.0, 121)
    blueprint = all_sizes("2.3")["transformer"]
    assert 40e9 < resources(preset_config("celebvhq-2.3"), blueprint, row, 1024).device_bytes < 80e9 * 0.94
    small = preset_config("talkvid-2.3")
    small = replace(small, engine=replace(small.engine, storage="nf4"))
    found = resources(small, blueprint, row, 1024)
    assert 10e9 < found.device_bytes < 24e9 * 0.94
    assert found.parameters == pytest.approx(578.8e6, rel=1e-3)


def test_a_plan_is_told_in_lines(tmp_path: Path) -> None:
    data = tiny_training.store(tmp_path / "data")
    tiny_pipeline.pipeline().save_pretrained(tmp_path / "model")
    lines = list(foretell(tiny_training.config(tmp_path / "run", data, model=Model(str(tmp_path / "model")))))
    assert [line.partition(" ")[0].rstrip(":") for line in lines] == [
        "LTX-2.3", "4", "a", "adapter", "memory", "disk", "time",
    ]  # fmt: skip
    published = replace(preset_config("ours-2.3"), model=Model("LTX-2.3"))
    assert [line.partition(" ")[0].rstrip(":") for line in foretell(published)] == [
        "LTX-2.3", "adapter", "memory", "disk", "time",
    ]  # fmt: skip
    with pytest.raises(SettingsError, match=r"model\.name is empty"):
        list(foretell(preset_config("ours-2.5")))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_their_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_to_json(PRESETS[name])))
    assert read_config(path) == PRESETS[name]
    path.write_text(f"preset: {name}\nsteps: 7\n")
    assert read_config(path) == replace(PRESETS[name], steps=7)


def test_the_recipe_of_the_miniature_is_its_preset() -> None:
    recipe = read_config(Path(__file__).parent.parent / "recipes" / "miniature.yaml")
    preset = preset_config("miniature")
    assert (recipe.objective, recipe.optimization, recipe.adapter, recipe.steps) == (
        preset.objective, preset.optimization, preset.adapter, preset.steps,
    )  # fmt: skip


@pytest.mark.parametrize("text", ["2e-4", "2.0e-4", "0.0002", "2E-4", "+2e-4"])
def test_numbers_in_yaml_are_numbers(text: str) -> None:
    assert parse_yaml(f"rate: {text}") == {"rate": pytest.approx(2e-4)}
    assert parse_yaml("words: 2e-4x") == {"words": "2e-4x"}


def test_rates_follow_their_laws() -> None:
    linear = Optimization(learning_rate=2e-4, schedule="linear", final=0.1)
    assert [linear.rate(step, 100) for step in (0, 50, 100)] == pytest.approx([2e-4, 1.1e-4, 2e-5])
    cosine = Optimization(learning_rate=1.0, schedule="cosine", final=0.0, warmup=9)
    assert [cosine.rate(step, 100) for step in (0, 50, 100)] == pytest.approx([0.1, 0.5, 0.0])


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"adapter": AdapterShape(dropout=1.5)},
        {"optimization": Optimization(learning_rate=0.0)},
        {"optimization": Optimization(ema=1.0)},
    ],
)
def test_values_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        TrainingConfig(**changes)
