# SPDX-License-Identifier: Apache-2.0
"""Networks are loaded when they are needed, and those that read prompts are let go before the others come."""

from pathlib import Path
from typing import Any

import pytest

import tiny_pipeline
from idlora.errors import WeightsError
from idlora.networks.adapter import write_adapter
from idlora.pipeline import IDLoraPipeline, Placement
from idlora.pipeline.components import load_components
from tiny_pipeline import PICTURE, PROMPT, digest, voice

READERS = {"text_encoder", "connectors"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline.saved_model(tmp_path_factory.mktemp("lazy") / "model")


def clip(pipe: IDLoraPipeline, **options: Any) -> str:
    return digest(pipe(PROMPT, image=PICTURE, voice=voice(), **options))


@pytest.mark.parametrize("where", ["offload", "stream"])
def test_readers_of_prompts_are_gone_before_the_transformer_comes(folder: Path, where: Any) -> None:
    pipe = IDLoraPipeline.from_pretrained(folder, placement=Placement(where))
    assert not pipe.components.loaded
    order: list[tuple[str, frozenset[str]]] = []
    pipe.components.on_arrival(lambda name, _: order.append((name, frozenset(pipe.components.loaded))))
    first = clip(pipe)
    arrived = dict(order)
    assert "text_encoder" not in arrived["connectors"]
    assert not READERS & arrived["transformer"]
    assert not READERS & pipe.components.loaded.keys()
    assert clip(pipe) == first == clip(IDLoraPipeline.from_pretrained(folder))


def test_the_whole_model_is_there_at_once_but_for_the_readers_of_prompts(folder: Path) -> None:
    pipe = IDLoraPipeline.from_pretrained(folder)
    assert set(pipe.components.names) - set(pipe.components.loaded) == READERS
    clip(pipe)
    assert set(pipe.components.names) == set(pipe.components.loaded)


def test_adapters_wait_for_the_transformer_and_are_checked_before(folder: Path, tmp_path: Path) -> None:
    fitting = tiny_pipeline.adapter_for(tiny_pipeline.transformer("2.3"), seed=9)
    write_adapter(tmp_path / "style.safetensors", fitting)
    clips = []
    for placement in (Placement(), Placement("stream")):
        pipe = IDLoraPipeline.from_pretrained(folder, placement=placement)
        pipe.add_adapter("style", tmp_path / "style.safetensors", 0.5)
        assert pipe.adapters.strengths == {"identity": 1.0, "style": 0.5}
        clips.append(clip(pipe))
    assert clips[0] == clips[1] != clip(IDLoraPipeline.from_pretrained(folder))
    lazy = IDLoraPipeline.from_pretrained(folder, placement=Placement("offload"))
    lazy.add_adapter("style", tmp_path / "style.safetensors")
    with pytest.raises(WeightsError, match="already"):
        lazy.add_adapter("style", tmp_path / "style.safetensors")
    write_adapter(tmp_path / "deep.safetensors", tiny_pipeline.adapter_for(tiny_pipeline.transformer("2.3", 4)))
    with pytest.raises(WeightsError, match="does not fit"):
        lazy.add_adapter("deep", tmp_path / "deep.safetensors")
    assert not lazy.components.loaded


def test_a_network_that_was_let_go_comes_again(folder: Path) -> None:
    components = load_components(folder)
    first = components.vae
    assert components.vae is first
    components.release("vae")
    assert "vae" not in components.loaded
    assert components.vae is not first
    given = tiny_pipeline.components("2.3")
    given.release("vae")
    assert "vae" in given.loaded


def test_a_component_without_weights_is_told_when_the_model_is_opened(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "model")
    next((tmp_path / "model" / "text_encoder").glob("*.safetensors")).unlink()
    with pytest.raises(WeightsError, match="no safetensors file"):
        IDLoraPipeline.from_pretrained(tmp_path / "model")
