# SPDX-License-Identifier: Apache-2.0
"""What a run's options may be, and how file, preset and command come together: faults are one line each."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import tiny_pipeline
import tiny_training
from idlora.cli import main
from idlora.cli.train import _config, _nested, _read_set
from idlora.errors import SettingsError, TrainingError
from idlora.training.identity.config import Engine, TrainingConfig, config_to_json, configured, parse_yaml
from idlora.training.identity.planning import foretell
from idlora.training.identity.presets import PRESETS
from idlora.training.identity.run import CONFIG_NAME, _refuse_other, make_accelerator

# Name, a value beyond the limit, the last good ones, what is said.
RANGES: tuple[tuple[str, Any, tuple[Any, ...], str], ...] = (
    ("optimization.max_grad_norm", -0.1, (0.0, 1.0), "at least 0, which shortens none"),
    ("objective.audio_weight", -0.1, (0.0, 2.0), "at least 0"),
    ("adapter.alpha", -1.0, (0.0, 0.5), "at least 0, which is the rank"),
    ("adapter.dropout", 1.0, (0.0, 0.99), "below 1"),
    ("adapter.dropout", -0.1, (), "below 1"),
    ("objective.sigma_deviation", 0.0, (0.01,), "above 0"),
    ("objective.reference_seconds", [3.0, 1.0], ([1.0, 1.0], [1.0, 3.0]), "a shortest and a longest"),
    ("objective.reference_seconds", [0.0, 1.0], ([],), "a shortest and a longest"),
    ("objective.reference_seconds", [1.0], (), "a shortest and a longest"),
    ("watching.validate_every", -1, (0,), "at least 0, which is never"),
    ("watching.sample_every", -1, (0,), "at least 0, which is never"),
    ("watching.samples", 0, (1,), "at least 1"),
    ("watching.log_every", 0, (1,), "at least 1"),
    ("saving.every", 0, (1,), "at least 1"),
    ("seed", -1, (0, 2**63 - 1), "at least 0 and below 2^63"),
    ("seed", 2**63, (), "at least 0 and below 2^63"),
    ("optimization.warmup", -1, (0,), "at least 0"),
    ("optimization.weight_decay", -0.1, (0.0,), "at least 0"),
    ("optimization.betas", [0.9, 1.0], ([0.0, 0.0],), "each at least 0 and below 1"),
    ("optimization.betas", [-0.1, 0.9], (), "each at least 0 and below 1"),
    ("optimization.betas", [0.9], (), "two are needed"),
    ("optimization.learning_rate", 0.0, (1e-9,), "above 0"),
    ("optimization.final", 1.1, (0.0, 1.0), "a share, from 0 to 1"),
    ("optimization.ema", 1.0, (0.0, 0.999), "below 1"),
    ("adapter.targets", [], (["attn1.to_q"],), "name the ends"),
    ("adapter.targets", [""], (), "name the ends"),
    ("engine.kept_blocks", -1, (0,), "at least 0"),
    ("data.limit", -1, (0,), "at least 0, which is all"),
    ("engine.device", "cuda:1", ("cpu", "auto", "cuda", "mps"), "choose auto, cpu, cuda or mps"),
)


def with_value(name: str, value: Any) -> TrainingConfig:
    return configured(_nested(name, value), None, "here")


@pytest.mark.parametrize(("name", "value", "good", "words"), RANGES)
def test_values_out_of_their_range_are_refused(name: str, value: Any, good: tuple[Any, ...], words: str) -> None:
    with pytest.raises(SettingsError, match=name.rpartition(".")[2]) as caught:
        with_value(name, value)
    assert words in str(caught.value)
    for each in good:
        with_value(name, each)


def test_a_number_that_is_none_is_out_of_every_range() -> None:
    plain = TrainingConfig()
    for record, name in (("optimization", "max_grad_norm"), ("objective", "audio_weight"), ("adapter", "alpha")):
        with pytest.raises(SettingsError, match=name):
            replace(plain, **{record: replace(getattr(plain, record), **{name: float("nan")})})


HELD_OUT = {"data": {"validation": ["held-out"]}}
CLIPS = {"sample_every": 5, "manifest": "pairs.jsonl"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"saving": {"keep_best": "validation_loss"}}, "never measured: give data.validation"),
        ({"saving": {"keep_best": "validation_loss"}, "watching": {"validate_every": 0}, **HELD_OUT}, "never measured"),
        ({"saving": {"keep_best": "word_error"}, "watching": CLIPS, **HELD_OUT}, "name it in watching.judges"),
        (
            {"saving": {"keep_best": "word_error"}, "watching": {**CLIPS, "judges": ["speaker_similarity"]}},
            "name it in watching.judges",
        ),
        ({"saving": {"keep_best": "loss"}}, "choose one of"),
        ({"watching": {"judges": ["word_error"]}}, "have no clips to judge: give watching.sample_every"),
    ],
)
def test_a_measure_that_nobody_makes_is_refused(data: Mapping[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        configured(data, None, "here")


def test_a_measure_that_is_made_is_taken() -> None:
    found = configured({"saving": {"keep_best": "validation_loss"}, **HELD_OUT}, None, "here")
    assert found.saving.keep_best == "validation_loss"
    judged = {"saving": {"keep_best": "word_error"}, "watching": {**CLIPS, "judges": ["word_error"]}}
    assert configured(judged, None, "here").saving.keep_best == "word_error"


@pytest.mark.parametrize("name", ["ours-2.0", "ours-2.3", "ours-2.5"])
def test_our_presets_keep_the_best_where_it_is_measured(name: str) -> None:
    assert PRESETS[name].saving.keep_best == ""
    assert configured({}, name, "here") == PRESETS[name]
    assert configured(HELD_OUT, name, "here").saving.keep_best == "validation_loss"
    assert configured({"preset": name, **HELD_OUT}, None, "here").saving.keep_best == "validation_loss"
    assert configured({"saving": {"keep_best": ""}, **HELD_OUT}, name, "here").saving.keep_best == ""
    assert configured({"watching": {"validate_every": 0}, **HELD_OUT}, name, "here").saving.keep_best == ""
    assert configured(HELD_OUT, "celebvhq-2.3", "here").saving.keep_best == ""


def test_a_run_that_an_old_preset_began_is_gone_on_with(tmp_path: Path) -> None:
    """Its configuration keeps the best by a loss that was never measured; that part may change anyway."""
    config = replace(PRESETS["ours-2.3"], out=str(tmp_path))
    old = config_to_json(config) | {"saving": {"every": 200, "keep_last": 3, "keep_best": "validation_loss"}}
    (tmp_path / CONFIG_NAME).write_text(yaml.safe_dump(old))
    (tmp_path / "state-000001.safetensors").touch()
    _refuse_other(config)
    with pytest.raises(SettingsError, match="begun with another seed"):
        _refuse_other(replace(config, seed=1))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that `idlora train` says."""
    capsys.readouterr()
    assert main(["train", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("idlora: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "data.train=[a"], "--set data.train=[a is not YAML"),
        (["--set", "steps=2024-13-45"], "--set steps=2024-13-45 is not YAML"),
        (["--set", "steps={a: 1, a: 2}"], "'a' twice"),
        (["--set", "steps"], "is not NAME=VALUE"),
        (["--set", "steps.x=1"], "it must be a whole number"),
        (["--set", "engine=1", "--set", "engine.batch=2"], "engine is 1"),
        (["--set", "engine.device=foo"], "choose auto, cpu, cuda or mps"),
        (["--plan", "--set", "engine.device=foo"], "choose auto, cpu, cuda or mps"),
        (["--keep-best", "validation_loss"], "never measured"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, "--preset", "miniature", *arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: 2024-13-45", "is not YAML"),
        ("steps: 1\nseed: 2\nsteps: 3", "'steps' twice"),
        ("engine: {batch: 1, batch: 2}", "'batch' twice"),
        ("data:\n  train: [a]\ndata:\n  validation: [b]", "'data' twice"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    line = refused(capsys, str(path))
    assert words in line
    assert "run.yaml" in line


def test_a_merged_record_may_name_again_what_it_takes_over() -> None:
    text = "a: &base {x: 1, y: 2}\nb: &more {<<: *base, x: 3}\nc: {<<: *more, y: 4}"
    assert parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_here_is_refused(
    device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=f"engine.device '{device}' is not here"):
        make_accelerator(TrainingConfig(engine=Engine(device=device)))
    line = refused(
        capsys, "--preset", "ours-2.3", "--set", "model.name=LTX-2.3", "--plan", "--set", f"engine.device={device}"
    )
    assert "is not here" in line


def test_compiled_blocks_are_refused_where_weights_are_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate

    def sharded(**_options: Any) -> Any:
        return SimpleNamespace(distributed_type="FSDP")

    monkeypatch.setattr(accelerate, "Accelerator", sharded)
    config = TrainingConfig(engine=Engine(device="cpu", compile=True))
    with pytest.raises(SettingsError, match="no effect on sharded weights"):
        make_accelerator(config)
    make_accelerator(replace(config, engine=Engine(device="cpu")))


def test_only_all_options_together_have_to_make_sense() -> None:
    options = ["objective.mask_padding=false", "objective.reference_dropout=0", "engine.batch=3"]
    found = [_config(None, "miniature", [*map(_read_set, each)]) for each in (options, options[::-1])]
    assert found[0] == found[1]
    assert (found[0].objective.mask_padding, found[0].engine.batch) == (False, 3)
    assert found[0].engine.precision == "mixed"  # the rest of the record stays
    again = _config(None, "miniature", [_read_set("steps=5"), _read_set("steps=6")])
    assert again.steps == 6


@pytest.mark.parametrize("out", ["2026", "a: b", "[x", "null", "1e3"])
def test_a_folder_may_have_any_name(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainingConfig] = []

    def told(config: TrainingConfig) -> list[str]:
        seen.append(config)
        return []

    monkeypatch.setattr("idlora.training.identity.planning.foretell", told)
    assert main(["train", "--preset", "miniature", "--plan", "--out", out, "--keep-last", "2"]) == 0
    assert (seen[0].out, seen[0].saving.keep_last) == (out, 2)


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_pipeline.pipeline().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def wider(name: str) -> Callable[..., Any]:
    """Latents of which one tensor has one number a token more."""
    usual = tiny_training.latents

    def made(*arguments: Any, **options: Any) -> Any:
        found = usual(*arguments, **options)
        if name.startswith("text"):
            stream = "audio" if name == "text_audio" else "video"
            text = replace(found.text, **{stream: torch.nn.functional.pad(getattr(found.text, stream), (0, 1))})
            return replace(found, text=text)
        changed: dict[str, Any] = {name: torch.nn.functional.pad(getattr(found, name), (0, 1))}
        return replace(found, **changed)

    return made


@pytest.mark.parametrize("name", ["video", "audio", "reference", "text", "text_audio"])
def test_latents_of_another_model_are_refused(
    name: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = tiny_training.store(tmp_path / "fine")
    monkeypatch.setattr(tiny_training, "latents", wider(name))
    data = tiny_training.store(tmp_path / "data")
    named = {"model": replace(TrainingConfig().model, name=model)}
    config = tiny_training.config(tmp_path / "run", data, **named)
    for refuse in (lambda: tiny_training.trainer(config), lambda: list(foretell(config))):
        with pytest.raises(TrainingError, match=rf"its {name} has \d+ numbers a token, this model reads \d+"):
            refuse()
    held_out = tiny_training.config(tmp_path / "run", fine, **named)
    held_out = replace(held_out, data=replace(held_out.data, validation=(str(data),)))
    with pytest.raises(TrainingError, match=f"its {name} has"):
        tiny_training.trainer(held_out)
    with pytest.raises(TrainingError, match=f"its {name} has"):
        list(foretell(held_out))
