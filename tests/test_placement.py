# SPDX-License-Identifier: Apache-2.0
"""Placements: the same clip, bit for bit, wherever the networks wait; eight bits change it little."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tiny_pipeline
from idlora.errors import DeviceMemoryError, SettingsError
from idlora.networks.footprint import tensors_of, weight_bytes
from idlora.networks.streaming import BlockStream, Guest
from idlora.networks.text import PromptEncoder
from idlora.pipeline import IDLoraPipeline, Placement, Refinement, Result
from tiny_pipeline import CARD, PICTURE, PROMPT, settings, voice

GENERATIONS = ["2.0", "2.3", "2.5"]
TWO_STAGES = settings(height=128, width=128, refine=Refinement((0.9, 0.4, 0.0), distilled=0.0))


def pipeline(generation: str, placement: Placement) -> IDLoraPipeline:
    made = tiny_pipeline.real_components(generation)
    return IDLoraPipeline(made, CARD, tiny_pipeline.adapter_for(made.transformer), placement=placement)


def clip(pipe: IDLoraPipeline) -> Result:
    return pipe(PROMPT, image=PICTURE, voice=voice(), settings=TWO_STAGES)


@pytest.fixture(params=GENERATIONS)
def generation(request: Any) -> str:
    found: str = request.param
    return found


@pytest.mark.parametrize("where", ["offload", "stream"])
def test_wherever_the_networks_wait_the_clip_is_the_same(generation: str, where: Any) -> None:
    whole, elsewhere = pipeline(generation, Placement()), pipeline(generation, Placement(where))
    weights = {name: weight_bytes(module) for name, module in elsewhere.components.modules().items()}
    expected = tiny_pipeline.digest(clip(whole))
    assert [tiny_pipeline.digest(clip(elsewhere)) for _ in range(2)] == [expected, expected]
    for name, module in elsewhere.components.modules().items():
        gaps = 256 * len([*tensors_of(module)])  # of parcels
        assert weights[name] <= weight_bytes(module) <= weights[name] + gaps


def test_an_adapter_may_come_after_a_clip(tmp_path: Any) -> None:
    from idlora.networks.adapter import write_adapter

    write_adapter(tmp_path / "style.safetensors", tiny_pipeline.adapter_for(tiny_pipeline.transformer("2.3"), seed=7))
    clips = []
    for placement in (Placement(), Placement("stream")):
        pipe = pipeline("2.3", placement)
        before = clip(pipe)
        pipe.add_adapter("style", tmp_path / "style.safetensors")
        clips.append((tiny_pipeline.digest(before), tiny_pipeline.digest(clip(pipe))))
    assert clips[0] == clips[1]
    assert clips[0][0] != clips[0][1]


def test_at_most_two_blocks_are_there_at_a_time() -> None:
    blocks = [nn.Linear(2, 2) for _ in range(5)]
    stream = BlockStream(blocks, torch.device("cpu"))
    homes = [block.weight.data_ptr() for block in blocks]
    for _ in range(2):
        for index, block in enumerate(blocks):
            with stream.at(block):
                assert stream.present == sorted({index, (index + 1) % 5})
                away = [number for number, each in enumerate(blocks) if each.weight.data_ptr() != homes[number]]
                assert away == stream.present
    stream.close()
    assert [block.weight.data_ptr() for block in blocks] == homes


def test_nobody_asks_the_embeddings_where_the_text_encoder_works(
    generation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They wait in main memory, and they are the first weights of most text encoders.
    pipe, asked = pipeline(generation, Placement("offload")), list[str]()

    def device(_encoder: nn.Module) -> torch.device:
        asked.append("device")
        return torch.device("cpu")

    monkeypatch.setattr(type(pipe.components.text_encoder), "device", property(device))
    clip(pipe)
    assert asked == []
    assert pipe.components.text_encoder.device == torch.device("cpu")
    assert asked == ["device"]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_only_what_is_called_of_the_connectors_comes(generation: str) -> None:
    pipe = pipeline(generation, Placement("offload"))
    connectors, seen = pipe.components.connectors, dict[str, list[int]]()
    layers = {name: module for name, module in connectors.named_children() if isinstance(module, nn.Linear)}
    with pipe.residence.at_work("connect"):
        pass  # they get their homes
    homes = {name: layer.weight.data_ptr() for name, layer in layers.items()}
    hidden = torch.randn(1, 8, connectors.config.caption_channels, connectors.config.text_proj_in_factor)
    encoder, mask = PromptEncoder(pipe.components.tokenizer, None, connectors), torch.ones(1, 8)
    for part in (connectors.video_connector, connectors.audio_connector, *layers.values()):
        part.register_forward_hook(
            lambda *_: seen.setdefault("away", []).append(
                sum(layer.weight.data_ptr() != homes[name] for name, layer in layers.items())
            )
        )
    with torch.no_grad():
        with pipe.residence.at_work("connect"):
            features = encoder.features(hidden, mask)
        assert seen.pop("away") == [1] * len(layers)
        with pipe.residence.at_work("connect"):
            attended = encoder.attended(features, mask)
        assert seen.pop("away") == [0, 0]
        expected = PromptEncoder(
            pipe.components.tokenizer, None, pipeline(generation, Placement()).components.connectors
        )
        torch.testing.assert_close(attended.video, expected.connected(hidden, mask).video, rtol=0, atol=0)


def test_a_block_that_fails_goes_home() -> None:
    blocks = [nn.Linear(2, 2) for _ in range(3)]
    stream = BlockStream(blocks, torch.device("cpu"))
    homes = [block.weight.data_ptr() for block in blocks]
    with pytest.raises(ZeroDivisionError), stream.at(blocks[1]):
        raise ZeroDivisionError
    stream.close()
    assert [block.weight.data_ptr() for block in blocks] == homes


def test_what_is_written_on_the_device_is_not_carried_back() -> None:
    layer = nn.Linear(2, 2)
    guest = Guest(layer.parameters(), torch.device("cpu"))
    before = layer.weight.data.clone()
    guest.fetch()
    layer.weight.data.zero_()
    guest.drop()
    assert torch.equal(layer.weight.data, before)


@pytest.mark.parametrize("where", ["whole", "stream"])
def test_eight_bits_halve_the_blocks_and_change_the_clip_little(generation: str, where: Any) -> None:
    exact, small = pipeline(generation, Placement()), pipeline(generation, Placement(where, storage="fp8"))
    blocks = [pipe.components.transformer.transformer_blocks for pipe in (exact, small)]
    linear = [_linear_bytes(each) for each in blocks]
    assert linear[1] * 4 == linear[0]  # from float32
    adapters = [
        {layer: branch.a for layer, branch in pipe.adapters.get("identity").weights().layers.items()}  # type: ignore[union-attr]
        for pipe in (exact, small)
    ]
    assert all(torch.equal(adapters[0][layer], adapters[1][layer]) for layer in adapters[0])
    wanted, found = (clip(pipe).video.astype(np.float64) for pipe in (exact, small))
    spread = wanted.std()
    assert 0 < np.abs(wanted - found).mean() < 0.5 * spread
    assert tiny_pipeline.digest(clip(small)) == tiny_pipeline.digest(clip(small))


def _linear_bytes(blocks: Any) -> int:
    layers = [(name, module) for name, module in blocks.named_modules() if isinstance(module, nn.Linear)]
    return sum(module.weight.nbytes for name, module in layers if "lora_" not in name and "norm" not in name)


@pytest.mark.parametrize(
    ("placement", "remedy"),
    [
        (Placement(), "--placement offload"),
        (Placement("stream"), "--storage fp8"),
        (Placement("stream", "fp8"), "--storage nf4"),
        (Placement("stream", "nf4"), "smaller"),
    ],
)
def test_a_device_that_is_full_says_what_to_do(
    placement: Placement, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    pipe = pipeline("2.3", placement)
    monkeypatch.setattr("idlora.pipeline.pipeline.denoise", full)
    with pytest.raises(DeviceMemoryError, match="'denoise'") as told:
        clip(pipe)
    assert remedy in str(told.value)
    monkeypatch.undo()
    assert clip(pipe).video.shape == (9, 128, 128, 3)


@pytest.mark.parametrize("wrong", [{"where": "moon"}, {"storage": "int3"}])
def test_unknown_placements_are_refused(wrong: Any) -> None:
    with pytest.raises(SettingsError, match="choose one of"):
        Placement(**wrong)


def test_placements_have_names() -> None:
    assert str(Placement()) == "whole"
    assert str(Placement("stream", "fp8", tiled=True)) == "stream+fp8+tiled"
