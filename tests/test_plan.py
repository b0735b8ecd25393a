# SPDX-License-Identifier: Apache-2.0
"""The memory plan: what the meta device foretells is what the real run hands out, byte for byte within a percent."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny_pipeline
from idlora.cli import main
from idlora.cli.plan import parse_bytes
from idlora.errors import DeviceMemoryError, SettingsError
from idlora.networks.footprint import Footprint, weight_bytes
from idlora.networks.published import all_sizes
from idlora.networks.single_file import write_upsampler
from idlora.pipeline import IDLoraPipeline, Placement, Refinement, Request, Settings
from idlora.pipeline.generation import decoded
from idlora.pipeline.inputs import read_inputs
from idlora.pipeline.placement import Residence
from idlora.pipeline.plan import HEADROOM, Demand, FootprintMeter, Weights, choose, demand_of, fits, placements
from idlora.pipeline.sources import Parts, read_model
from tiny_pipeline import CARD, PICTURE, PROMPT, voice

GENERATIONS = ["2.0", "2.3", "2.5"]
CLIP = tiny_pipeline.settings(height=128, width=192, num_frames=25, num_inference_steps=3)
TWO_STAGES = replace(CLIP, refine=Refinement((0.9, 0.4, 0.0), distilled=0.0))


@torch.no_grad()
def measured(pipe: IDLoraPipeline, settings: Settings) -> dict[str, int]:
    """Peak bytes of all tensors but the weights in a real run."""
    inputs = read_inputs(Request(PROMPT, settings, PICTURE, voice(settings.max_voice_seconds)))
    with Footprint(pipe.components.modules().values()) as footprint:
        meter = FootprintMeter(footprint)
        texts = pipe.texts([inputs], meter)
        state = pipe.latents([inputs], texts, meter)
        with meter.verb("decode"):
            decoded(state, pipe.codecs, settings)
    return dict(meter.peak_bytes)


def test_a_device_that_is_full_tells_what_smaller_placements_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        monkeypatch.undo()  # the plan denoises as well
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = tiny_pipeline.real_components("2.3")
    IDLoraPipeline(made, CARD, tiny_pipeline.adapter_for(made.transformer)).save_pretrained(tmp_path / "model")
    outline = read_model(tmp_path / "model", Parts())
    demand = demand_of(outline.blueprints, CLIP, torch.float32, CARD.max_text_tokens, outline.adapter_rank)
    pipe = IDLoraPipeline.from_pretrained(tmp_path / "model")
    monkeypatch.setattr("idlora.pipeline.pipeline.denoise", full)
    with pytest.raises(DeviceMemoryError) as told:
        pipe(PROMPT, image=PICTURE, voice=voice(5.0), settings=CLIP)
    for placement in (Placement(), Placement("offload"), Placement("stream")):
        assert f"{placement} {demand.peak_bytes(placement) / 1e9:.3g} GB" in str(told.value)
    assert demand.peak_bytes(Placement("offload")) < demand.peak_bytes(Placement())


@pytest.mark.parametrize("settings", [CLIP, TWO_STAGES], ids=["one stage", "two stages"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_plan_of_a_folder_is_what_its_clip_takes(generation: str, settings: Settings, tmp_path: Path) -> None:
    made = tiny_pipeline.real_components(generation)
    IDLoraPipeline(made, CARD, tiny_pipeline.adapter_for(made.transformer)).save_pretrained(tmp_path / "model")
    outline = read_model(tmp_path / "model", Parts())
    demand = demand_of(outline.blueprints, settings, torch.float32, CARD.max_text_tokens, outline.adapter_rank)
    pipe = IDLoraPipeline.from_pretrained(tmp_path / "model")
    for name, module in pipe.components.modules().items():
        assert demand.weights[name].resident() == weight_bytes(module), name
    real = measured(pipe, settings)
    assert real.keys() == demand.working.keys()
    for stage, found in real.items():
        assert demand.working[stage] + demand.kept.get(stage, 0) == pytest.approx(found, rel=0.02), stage


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_plan_of_weights_that_come_and_go_is_what_they_take(
    generation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idlora.networks.parcels._ALIGNED", 4)  # gaps are large in networks so small
    monkeypatch.setattr(Residence, "release", lambda *_: None)  # else they would get their homes anew
    pipe = IDLoraPipeline(tiny_pipeline.real_components(generation), CARD, placement=Placement("offload"))
    pipe.save_pretrained(tmp_path / "model")
    outline = read_model(tmp_path / "model", Parts())
    demand = demand_of(outline.blueprints, CLIP, torch.float32, CARD.max_text_tokens)
    pipe(PROMPT, image=PICTURE, voice=voice(5.0), settings=CLIP)
    real = measured(pipe, CLIP)
    for stage in ("text", "connect"):
        assert demand.peak(stage, Placement("offload")) == pytest.approx(real[stage], rel=0.02), stage
        assert demand.peak(stage, Placement("offload")) < demand.peak(stage, Placement()), stage


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_published_size_is_planned_from_configurations_alone(
    generation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "plan --preset two-stage --height 512 --width 512 --frames 121 --device-memory 24GB --json"
    assert main([*command.split(), "--generation", generation]) == 0
    told = json.loads(capsys.readouterr().out)
    assert isinstance(told["peak_bytes"], int)
    assert told["peak_bytes"] == max(stage["peak_bytes"] for stage in told["stages"]) <= 24e9 * (1 - HEADROOM)
    assert told["placement"] == "stream"
    assert {stage["name"] for stage in told["stages"]} >= {"text", "denoise", "upscale", "refine", "decode"}
    assert all(sum(stage["components"].values()) <= stage["peak_bytes"] for stage in told["stages"])
    whole = next(row for row in told["alternatives"] if row["placement"] == "whole")
    assert whole["peak_bytes"] > 70e9
    assert not whole["fits"]
    assert told["components"]["transformer"]["parameters"] > 18.8e9
    smaller = [next(row for row in told["alternatives"] if row["placement"] == f"offload+{s}") for s in ("int8", "nf4")]
    assert smaller[1]["peak_bytes"] < smaller[0]["peak_bytes"] < whole["peak_bytes"] / 2


def _demand(**working: int) -> Demand:
    weights = {
        "transformer": Weights(1, 10, (100, 100, 100), saved={"fp8": 40, "nf4": 70}, widest=5),
        "vae": Weights(1, 50),
        "text_encoder": Weights(1, 20, (80, 80)),
    }
    return Demand(weights, working, {**working, "decode": working["decode"] // 4})


DEMAND = _demand(text=10, denoise=30, decode=100)


def test_the_fastest_placement_that_fits_is_chosen() -> None:
    peaks = {str(each): DEMAND.peak_bytes(each) for each in placements()}
    # All weights are 310 + 50 + 180; the transformer alone 310; streamed 10 + 2 * 100; in eight bits 60 a block.
    assert peaks["whole"] == 540 + 100
    assert peaks["whole+tiled"] == 540 + 30
    assert peaks["offload"] == 310 + 30
    assert peaks["stream"] == peaks["stream+tiled"] == 210 + 30
    assert DEMAND.peak_bytes(Placement("stream", "fp8", tiled=True)) == max(10 + 120 + 5 + 30, 20 + 160 + 10)
    assert DEMAND.peak_bytes(Placement("stream", "nf4", tiled=True)) == 20 + 160 + 10
    for memory, wanted in ((2000, "whole"), (620, "whole+tiled"), (400, "offload"), (300, "stream")):
        assert str(choose(DEMAND, memory)) == wanted
    with pytest.raises(SettingsError, match="too few"):
        choose(DEMAND, 200)


def test_fewer_bits_come_before_streaming_where_the_storage_is_chosen_too() -> None:
    # In place: 310, 310 - 3 * 40 + 5, 310 - 3 * 70 + 5 bytes of the transformer, and 30 for work.
    chosen = {memory: str(choose(DEMAND, memory, "auto")) for memory in (2000, 640, 400, 300, 230)}
    assert chosen == {2000: "whole", 640: "whole+tiled", 400: "offload", 300: "offload+fp8", 230: "offload+nf4"}
    assert {each.where for each in placements("auto")[-6:]} == {"stream"}
    with pytest.raises(SettingsError, match=r"make it smaller or shorter$"):
        choose(DEMAND, 150, "auto")


@given(st.integers(1, 2000), st.sampled_from(["full", "fp8", "auto"]))
def test_what_is_chosen_fits_and_nothing_faster_does(memory: int, storage: Any) -> None:
    options = placements(storage)
    fitting = [each for each in options if fits(DEMAND, each, memory)]
    if not fitting:
        with pytest.raises(SettingsError):
            choose(DEMAND, memory, storage)
        return
    assert choose(DEMAND, memory, storage) == fitting[0]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_has_all_its_networks_in_the_plan(generation: str) -> None:
    sizes = all_sizes(generation)
    assert sizes.keys() == {
        "transformer", "vae", "audio_vae", "vocoder", "connectors", "text_encoder", "latent_upsampler",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("24GB", 24 * 10**9), ("24GiB", 24 * 2**30), ("24 gb", 24 * 10**9), ("1.5G", 1_500_000_000), ("512", 512)],
)
def test_amounts_of_memory(text: str, wanted: int) -> None:
    assert parse_bytes(text) == wanted


@pytest.mark.parametrize(
    "arguments", ["--device-memory much", "--generation 9", "--storage int3", "--device-memory 1MB"]
)
def test_faults_are_one_line(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = "plan --model miniature " if "1MB" in arguments else "plan "
    assert main((small + arguments).split()) == 2
    told: Any = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1


def test_two_stages_without_an_upscaler_are_refused_and_with_its_file_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tiny_pipeline.components("2.3")
    IDLoraPipeline(made, CARD).save_pretrained(tmp_path / "model")
    write_upsampler(tmp_path / "upsampler.safetensors", tiny_pipeline.upsampler())
    size = ["--preset", "two-stage", "--height", "128", "--width", "128", "--frames", "9", "--stg-blocks", "1"]
    command = ["plan", "--model", str(tmp_path / "model"), *size]
    assert main(command) == 2
    assert "upscaler" in capsys.readouterr().err
    assert main([*command, "--upsampler", str(tmp_path / "upsampler.safetensors")]) == 0
    assert "upscale" in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "turned"), [(torch.bfloat16, 1), (torch.float16, 1), (torch.float32, 0)])
def test_convolutions_in_half_precision_take_their_input_and_output_twice(dtype: torch.dtype, turned: int) -> None:
    x, weight = (
        torch.empty(1, 4, 8, 8, 8, device="meta", dtype=dtype),
        torch.empty(6, 4, 3, 3, 3, device="meta", dtype=dtype),
    )
    with Footprint() as footprint:
        out = torch.nn.functional.conv3d(x, weight, padding=1)
    assert footprint.alive == out.nbytes
    assert footprint.peak == out.nbytes + turned * (x.nbytes + out.nbytes)
