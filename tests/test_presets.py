# SPDX-License-Identifier: Apache-2.0
"""Every preset runs on every generation through the command line, from folders and from official single files."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import tiny_pipeline
from idlora.cli import main
from idlora.data.media import read_video, write_png, write_wav
from idlora.networks.adapter import write_adapter
from idlora.networks.single_file import write_upsampler
from idlora.pipeline import PRESETS, IDLoraPipeline, Parts, Request, Settings
from idlora.pipeline.card import CARD_NAME
from signals import RATE, gradient_frames, tone

GENERATIONS = ("2.0", "2.3", "2.5")
SIZE = ("--frames", "9", "--height", "128", "--width", "128", "--stg-blocks", "1")
FEW_STEPS = {"distilled": ()}  # its levels are its own


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of every generation as users have them, their adapters, a picture and a voice."""
    folder = tmp_path_factory.mktemp("shelf")
    write_png(folder / "face.png", gradient_frames(1, 64, 64)[0])
    write_wav(folder / "voice.wav", tone(1.0), RATE)
    for generation in GENERATIONS:
        made = tiny_pipeline.real_components(generation)
        for seed, name in enumerate(("identity", "distilled", "style")):
            weights = tiny_pipeline.adapter_for(made.transformer, seed)
            write_adapter(folder / f"{name}-{generation}.safetensors", weights)
        pipe = IDLoraPipeline(made)
        pipe.save_pretrained(folder / generation)
        if generation != "2.5":
            pipe.save_single_file(folder / f"{generation}.safetensors")
        write_upsampler(folder / f"upscaler-{generation}.safetensors", made.latent_upsampler)
    return folder


def generate(shelf: Path, generation: str, model: Path, out: Path, *options: str | Path) -> int:
    given = {
        "--model": model,
        "--image": shelf / "face.png",
        "--voice": shelf / "voice.wav",
        "--adapter": shelf / f"identity-{generation}.safetensors",
        "--distilled": shelf / f"distilled-{generation}.safetensors",
        "--style": f"{shelf}/style-{generation}.safetensors:0.5",
        "--prompt": "[SPEECH] river garden",
        "--out": out,
    }
    arguments = [str(part) for pair in given.items() for part in pair]
    return main(["generate", *arguments, *SIZE, *map(str, options)])


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_from_a_folder(shelf: Path, tmp_path: Path, generation: str, preset: str) -> None:
    steps = FEW_STEPS.get(preset, ("--steps", "2"))
    out = tmp_path / "clip.mp4"
    assert generate(shelf, generation, shelf / generation, out, "--preset", preset, *steps) == 0
    clip, sidecar = read_video(out), json.loads((tmp_path / "clip.mp4.json").read_text(encoding="utf-8"))
    assert clip.frames.shape == (9, 128, 128, 3)
    assert clip.audio is not None
    rate = 24_000 if generation == "2.0" else 48_000
    assert clip.audio.sample_rate == rate
    assert sidecar["model"]["generation"] == generation
    assert sidecar["model"]["adapters"] == {"identity": 1.0, "distilled": 1.0, "style 1": 0.5}
    assert ("refine" in sidecar["timings"]) == (preset in ("two-stage", "hq"))


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_single_file_makes_what_the_folder_makes(shelf: Path, tmp_path: Path, generation: str, preset: str) -> None:
    parts = ("--text-encoder", shelf / generation / "text_encoder")
    upscaler = ("--upsampler", shelf / f"upscaler-{generation}.safetensors")
    options = ("--preset", preset, *FEW_STEPS.get(preset, ("--steps", "2")))
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    assert generate(shelf, generation, shelf / generation, first, *options) == 0
    assert generate(shelf, generation, shelf / f"{generation}.safetensors", second, *options, *parts, *upscaler) == 0
    assert first.read_bytes() == second.read_bytes()
    weights = json.loads(Path(f"{second}.json").read_text(encoding="utf-8"))["model"]["weights"]
    assert {f"{generation}.safetensors", f"upsampler: upscaler-{generation}.safetensors"} <= set(weights)
    assert any(name.startswith("text_encoder: ") for name in weights)


def test_the_full_transformer_is_another_model_than_the_distilled_one(shelf: Path, tmp_path: Path) -> None:
    model = tmp_path / "2.5"
    shutil.copytree(shelf / "2.5", model)
    (model / CARD_NAME).unlink()  # as published, where nothing says how a model wants to be used
    tiny_pipeline.transformer("2.5").save_pretrained(model / "transformer_full")
    distilled = IDLoraPipeline.from_pretrained(model)
    full = IDLoraPipeline.from_pretrained(model, parts=Parts(transformer="transformer_full"))
    assert [pipe.card.distilled for pipe in (distilled, full)] == [True, False]
    assert distilled.card.defaults.sigmas
    assert not full.card.defaults.sigmas
    used = {name.split("/")[0] for name in full.digests}
    assert "transformer_full" in used
    assert "transformer" not in used
    weights = [next(iter(pipe.components.transformer.parameters())) for pipe in (distilled, full)]
    assert not torch.equal(*weights)
    asked = Request("[SPEECH] river", Settings(num_frames=9, height=64, width=64, num_inference_steps=2))
    assert distilled.record(asked) != full.record(asked)


def test_faults_are_told_in_a_line(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, model = tmp_path / "clip.mp4", shelf / "2.3.safetensors"
    encoder = ("--text-encoder", shelf / "2.3/text_encoder")
    for options, words in (
        ((), "give the folder of Gemma 3 (--text-encoder)"),
        ((*encoder, "--preset", "two-stage"), "--upsampler"),
        ((*encoder, "--preset", "quick"), "choose one of one-stage"),
        ((*encoder, "--upsampler", model), "no latent upscaler"),
        ((*encoder, "--sigmas", "1,x,0"), "finite number"),
        ((*encoder, "--style", shelf / "absent.safetensors"), "cannot be read as safetensors"),
        ((*encoder, "--transformer", "transformer_full"), "an official single file has one transformer"),
    ):
        assert generate(shelf, "2.3", model, out, *options) == 2
        message = capsys.readouterr().err
        assert words in message
        assert message.count("\n") == 1
    assert generate(shelf, "2.0", shelf / "style-2.0.safetensors", out) == 2
    assert list(tmp_path.iterdir()) == []
