# SPDX-License-Identifier: Apache-2.0
"""Official single files: full-size names and shapes on the meta device, and tiny models there and back."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny_pipeline as tiny
from idlora.errors import WeightsError
from idlora.networks.checkpoints import diffusers_config, official_config, read_official_config
from idlora.networks.published import PUBLISHED
from idlora.networks.single_file import (
    COMPONENTS,
    component_keys,
    load_single_file,
    load_upsampler,
    official_keys,
    write_single_file,
    write_upsampler,
)
from idlora.pipeline import IDLoraPipeline, Parts
from stored_keys import GOLDEN, stored

BOTH = pytest.mark.parametrize("generation", ["2.0", "2.3"])


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("generation", ["2.0", "2.3", "2.5"])
def test_published_sizes_are_those_of_the_converted_models(generation: str) -> None:
    given = {name: config for name, config in stored(f"config_{generation}").items() if not name.endswith("_renames")}
    assert given.keys() == PUBLISHED[generation].keys()
    for name, config in given.items():
        built = PUBLISHED[generation][name].on_meta().config
        assert {key: plain(built[key]) for key in config} == config


RENAMED = [
    (generation, name.removesuffix("_renames"))
    for generation in ("2.0", "2.3", "2.5")
    for name in stored(f"config_{generation}")
    if name.endswith("_renames")
]


def test_renames_are_given_for_what_a_file_holds() -> None:
    assert {pair for pair in RENAMED if pair[0] != "2.5"} == set(product(("2.0", "2.3"), COMPONENTS))
    assert {name for generation, name in RENAMED if generation == "2.5"} == set(COMPONENTS) - {"connectors"}


@pytest.mark.parametrize(("generation", "component"), RENAMED)
def test_every_full_size_name_has_one_official_name(generation: str, component: str) -> None:
    names = list(PUBLISHED[generation][component].on_meta().state_dict())
    official = official_keys(component, names)
    assert len(set(official.values())) == len(names)
    assert component_keys(component, official.values()) == {there: name for name, there in official.items()}


@pytest.mark.parametrize(("generation", "component"), RENAMED)
def test_renames_are_the_published_ones(generation: str, component: str) -> None:
    """The converter that made the diffusers folders replaces substrings in this order; its result must be ours."""
    renames: dict[str, str] = stored(f"config_{generation}")[f"{component}_renames"]
    names = list(PUBLISHED[generation][component].on_meta().state_dict())
    prefix = {"vae": "vae.", "audio_vae": "audio_vae.", "vocoder": "vocoder."}.get(component, "")
    for name, official in official_keys(component, names).items():
        converted = official.removeprefix(prefix).removeprefix("model.diffusion_model.")
        if ".ups." in f".{converted}" and "ups" not in renames:  # the converter has code for it in 2.3
            converted = converted.replace("ups.", "upsamplers.")
        if component == "transformer":  # here too, since the name is part of others
            converted = re.sub("^(audio_)?adaln_single", r"\1time_embed", converted)
        for given, wanted in renames.items():
            converted = converted.replace(f"{given}.", f"{wanted}." if wanted else "") if given else converted
            converted = converted.removesuffix(given) + wanted if converted.endswith(given) else converted
        assert converted == name


@BOTH
def test_the_configuration_maps_back(generation: str) -> None:
    official = read_official_config(GOLDEN / f"ltx{generation}/model_official.safetensors")
    from diffusers import LTX2VideoTransformer3DModel

    with torch.device("meta"):
        network = LTX2VideoTransformer3DModel(**diffusers_config(official))
    assert official_config(network.config) == official


@BOTH
def test_a_pipeline_goes_into_a_file_and_back(generation: str, tmp_path: Path) -> None:
    made = IDLoraPipeline(tiny.real_components(generation), tiny.CARD)
    made.save_single_file(tmp_path / "model.safetensors")
    made.save_pretrained(tmp_path / "folder")
    parts = Parts(text_encoder=tmp_path / "folder/text_encoder")
    loaded = IDLoraPipeline.from_pretrained(tmp_path / "model.safetensors", parts=parts)
    for component in COMPONENTS:
        before, after = made.components.modules()[component], loaded.components.modules()[component]
        assert type(before) is type(after)
        for name, tensor in before.state_dict().items():
            assert torch.equal(after.state_dict()[name], tensor), name
    options = {"settings": tiny.SETTINGS, "voice": tiny.voice(), "image": tiny.PICTURE}
    loaded = IDLoraPipeline(loaded.components, tiny.CARD)  # which has no room in the file
    assert tiny.digest(loaded(tiny.PROMPT, **options)) == tiny.digest(made(tiny.PROMPT, **options))


def test_weights_can_be_stored_smaller(tmp_path: Path) -> None:
    modules = tiny.real_components("2.3").modules()
    write_single_file(tmp_path / "model.safetensors", modules, torch.bfloat16)
    loaded = load_single_file(tmp_path / "model.safetensors", torch.float32)
    weight = modules["transformer"].proj_in.weight
    assert torch.equal(loaded["transformer"].proj_in.weight, weight.bfloat16().float())
    for name, buffer in modules["vocoder"].named_buffers():
        assert torch.equal(loaded["vocoder"].get_buffer(name), buffer)


def test_statistics_that_no_network_reads_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_single_file(path, tiny.real_components("2.0").modules())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    before = load_single_file(path)["vae"].state_dict()
    more = {f"vae.per_channel_statistics.{name}": torch.ones(2) for name in ("channel", "mean-of-stds")}
    save_file({**load_file(path), **more}, path, metadata)
    after = load_single_file(path)["vae"].state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_upscaler_goes_into_a_file_and_back(tmp_path: Path) -> None:
    for rational in (False, True):
        made = tiny.upsampler(rational=rational)
        write_upsampler(tmp_path / "up.safetensors", made)
        loaded = load_upsampler(tmp_path / "up.safetensors")
        latents = torch.randn(1, tiny.VIDEO_CHANNELS, 2, 3, 2)
        assert torch.equal(loaded(latents), made(latents))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight", "an adapter"),
        ("transformer_blocks.0.attn1.to_q.weight", "one component"),
        ("model.diffusion_model.transformer_blocks.0.attn1.to_q.weight", "without sound"),
        ("model.diffusion_model.transformer_blocks.0.attn1.to_q.weight_scale", "quantised"),
        ("model.layers.0.weight", "something else than LTX-2"),
    ],
)
def test_other_files_are_named(tmp_path: Path, key: str, words: str) -> None:
    save_file({key: torch.zeros(1)}, tmp_path / "file.safetensors")
    with pytest.raises(WeightsError, match=f"{words}.*needed is an official single file"):
        load_single_file(tmp_path / "file.safetensors")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_single_file(path, tiny.real_components("2.3").modules())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    no_vocoder = {key: value for key, value in tensors.items() if not key.startswith("vocoder.")}
    save_file(no_vocoder, path, metadata)
    with pytest.raises(WeightsError, match="without vocoder"):
        load_single_file(path)
    save_file(tensors, path, {**metadata, "config": "{"})
    with pytest.raises(WeightsError, match="no usable 'config'"):
        load_single_file(path)
    save_file(tensors, path, {"model_version": "2.3"})
    with pytest.raises(WeightsError, match="without its configuration"):
        load_single_file(path)
    first = next(key for key in tensors if key.startswith("audio_vae.encoder"))
    save_file({key: value for key, value in tensors.items() if key != first}, path, metadata)
    with pytest.raises(WeightsError, match=r"model.safetensors \(audio_vae\) lacks 1 weights"):
        load_single_file(path)
    path.write_text("no weights", encoding="utf-8")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_single_file(path)


def test_a_single_file_needs_a_text_encoder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_single_file(path, tiny.real_components("2.3").modules())
    with pytest.raises(WeightsError, match="--text-encoder"):
        IDLoraPipeline.from_pretrained(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no folder of a text encoder"):
        IDLoraPipeline.from_pretrained(path, parts=Parts(text_encoder=tmp_path / "empty"))


def test_generation_2_5_has_no_single_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no official single file"):
        write_single_file(tmp_path / "model.safetensors", tiny.components("2.5").modules())
