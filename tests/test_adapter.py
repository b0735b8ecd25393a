# SPDX-License-Identifier: Apache-2.0
"""The adapter: published layout, branches, fusion, switching, and refusal of what does not fit."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import tiny
from idlora.core.guidance import Pass
from idlora.errors import WeightsError
from idlora.networks.adapter import (
    IDENTITY_TARGETS,
    AdapterWeights,
    LowRank,
    check_adapter,
    fuse_adapter,
    inject_adapter,
    new_adapter,
    read_adapter,
    write_adapter,
)
from idlora.networks.adapter_info import describe_adapter
from idlora.networks.executor import Executor
from idlora.networks.joint import JointModel

KEYS = Path(__file__).parent / "golden" / "keys"
SIGMA = torch.tensor([0.3, 0.8])


@pytest.fixture
def network() -> Any:
    """A network of its own for each test, since adapters change it."""
    return deepcopy(tiny.transformer("2.3"))


def random_weights(network: Any, rank: int = 2) -> AdapterWeights:
    layers: dict[str, LowRank] = {}
    for block in range(len(network.transformer_blocks)):
        for target in IDENTITY_TARGETS:
            name = f"transformer_blocks.{block}.{target}"
            rows, columns = network.get_submodule(name).weight.shape
            seed = len(layers)
            a, b = tiny.normal(rank, columns, seed=seed), 0.1 * tiny.normal(rows, rank, seed=seed + 99)
            layers[name] = LowRank(a.bfloat16().float(), b.bfloat16().float())
    return AdapterWeights(layers, {"base": "2.3"})


@torch.no_grad()
def forward(network: Any, **settings: Any) -> torch.Tensor:
    found = JointModel(network, **settings).velocity(tiny.state(), SIGMA, tiny.context("2.3"))
    return torch.cat([found.video.flatten(), found.audio.flatten()])


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_branches_equal_the_fused_weights(network: Any, strength: float) -> None:
    base, weights = forward(network), random_weights(network)
    fused = fuse_adapter(network, weights, strength)
    expected = forward(network)
    assert (expected - base).abs().max() > 1e-2
    fused.undo()
    assert torch.equal(forward(network), base)
    inject_adapter(network, weights, strength)
    torch.testing.assert_close(forward(network), expected, rtol=0, atol=2e-5)


def test_bf16_fusion_differs_from_fp32_and_can_be_undone(network: Any) -> None:
    base, weights = forward(network), random_weights(network)
    fuse_adapter(network, weights).undo()
    fused = fuse_adapter(network, weights, precision="official-bf16")
    layer = network.get_submodule(next(iter(weights.layers)))
    assert torch.equal(layer.weight, layer.weight.bfloat16().float())
    fused.undo()
    assert torch.equal(forward(network), base)


def test_switched_off_is_the_base_and_removed_too(network: Any) -> None:
    base = forward(network)
    adapter = inject_adapter(network, random_weights(network), trainable=True)
    with adapter.disabled():
        assert torch.equal(forward(network), base)
    assert not torch.equal(forward(network), base)
    assert all(parameter.requires_grad for parameter in adapter.parameters())
    adapter.remove()
    assert torch.equal(forward(network), base)
    assert network.state_dict().keys() == tiny.transformer("2.3").state_dict().keys()


def test_switching_does_not_make_a_frozen_adapter_trainable(network: Any) -> None:
    adapter = inject_adapter(network, random_weights(network))
    with adapter.disabled():
        pass
    assert not any(parameter.requires_grad for parameter in adapter.parameters())


@torch.no_grad()
def test_a_pass_can_leave_the_adapter_out(network: Any) -> None:
    context, state = tiny.context("2.3"), tiny.state()
    base = JointModel(network).velocity(state, SIGMA, context)
    adapter = inject_adapter(network, random_weights(network))
    model = JointModel(network, without_adapter=adapter.disabled)
    found = Executor(model, context)(state, SIGMA, [Pass("with"), Pass("without", adapter=False), Pass("again")])
    assert torch.equal(found["without"].audio, base.audio)
    assert not torch.equal(found["with"].audio, base.audio)
    assert torch.equal(found["with"].audio, found["again"].audio)


def test_a_new_adapter_changes_nothing_and_alone_is_trainable(network: Any) -> None:
    base = forward(network)
    adapter = new_adapter(network, rank=4)
    assert torch.equal(forward(network), base)
    trainable = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for parameter in adapter.parameters()}
    assert len(trainable) == 2 * 2 * len(IDENTITY_TARGETS)


def test_saved_and_read_again_it_is_the_same(network: Any, tmp_path: Path) -> None:
    path, weights = tmp_path / "adapter.safetensors", random_weights(network)
    inject_adapter(network, weights).save(path)
    found = read_adapter(path)
    assert found.layers.keys() == weights.layers.keys()
    for name, layer in found.layers.items():
        assert torch.equal(layer.a.float(), weights.layers[name].a)
        assert torch.equal(layer.b.float(), weights.layers[name].b)
    assert found.metadata["base"] == "2.3"
    assert found.metadata["rank"] == "2"
    assert set(json.loads(found.metadata["targets"])) == set(IDENTITY_TARGETS)


def test_the_file_has_the_published_layout(network: Any, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    write_adapter(path, random_weights(network))
    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
        assert file.get_tensor(next(iter(keys))).dtype == torch.bfloat16
    published = json.loads((KEYS / "keys_lora_2.3.json").read_text(encoding="utf-8"))
    stem = "diffusion_model.transformer_blocks"
    assert keys == {key for key in published if key.startswith((f"{stem}.0.", f"{stem}.1."))}


def test_stacked_blocks_are_read_as_what_they_were(network: Any, tmp_path: Path) -> None:
    paths = [tmp_path / "plain.safetensors", tmp_path / "stacked.safetensors"]
    weights = AdapterWeights(random_weights(network).layers, {"rank": "2"})
    some = dict(weights.layers)
    some.pop("transformer_blocks.0.audio_attn1.to_q")  # of one block alone: stays as it is
    for each in (weights.layers, some):
        for path in paths:
            write_adapter(path, AdapterWeights(each, weights.metadata), stacked=path is paths[1])
        plain, stacked = (read_adapter(path) for path in paths)
        assert stacked.layers.keys() == plain.layers.keys() == each.keys()
        assert (stacked.digest, stacked.metadata) == (plain.digest, plain.metadata)
        assert paths[1].stat().st_size < paths[0].stat().st_size
    with safe_open(paths[1], framework="pt") as file:
        keys = set(file.keys())
    stem = "diffusion_model.transformer_blocks"
    assert {f"{stem}.*.audio_attn1.to_k.lora_A.weight", f"{stem}.1.audio_attn1.to_q.lora_A.weight"} <= keys


def test_the_digest_is_of_names_and_numbers(network: Any) -> None:
    weights = random_weights(network)
    name, layer = next(iter(weights.layers.items()))
    assert AdapterWeights(dict(reversed(list(weights.layers.items()))), {"seed": "1"}).digest == weights.digest
    other = LowRank(layer.a.clone(), layer.b)
    other.a[0, 0] += 1e-3
    assert AdapterWeights({**weights.layers, name: other}).digest != weights.digest
    assert AdapterWeights({**weights.layers, name: LowRank(layer.b.T, layer.a.T)}).digest != weights.digest


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_published_adapters_fit_the_full_size_network(generation: str, full_size: Any) -> None:
    shapes = json.loads((KEYS / f"keys_lora_{generation}.json").read_text(encoding="utf-8"))
    modules = {key.rsplit(".lora_", 1)[0] for key in shapes}
    layers = {
        module.removeprefix("diffusion_model."): LowRank(
            torch.empty(shapes[f"{module}.lora_A.weight"], device="meta"),
            torch.empty(shapes[f"{module}.lora_B.weight"], device="meta"),
        )
        for module in modules
    }
    assert len(layers) == 864
    check_adapter(full_size(generation), AdapterWeights(layers))


@pytest.fixture
def full_size() -> Any:
    """Builds the network at its published size without memory."""
    from diffusers import LTX2VideoTransformer3DModel

    def build(generation: str) -> Any:
        config = json.loads((KEYS / f"config_{generation}.json").read_text(encoding="utf-8"))["transformer"]
        with torch.device("meta"):
            return LTX2VideoTransformer3DModel(**config)

    return build


def test_an_adapter_of_another_model_is_refused_by_layer(network: Any) -> None:
    fitting = random_weights(network)
    name = next(iter(fitting.layers))
    wrong_shape = LowRank(torch.zeros(2, 999), fitting.layers[name].b)
    weights = AdapterWeights({**fitting.layers, name: wrong_shape, "transformer_blocks.7.attn9.to_q": wrong_shape})
    before = network.state_dict().keys()
    for use in (inject_adapter, fuse_adapter):
        with pytest.raises(WeightsError, match=r"attn9\.to_q \(no such layer\)") as caught:
            use(network, weights)
        assert name in str(caught.value)
    assert network.state_dict().keys() == before


def test_an_adapter_tells_what_it_is_and_what_it_does_not_say(network: Any, tmp_path: Path) -> None:
    path, weights = tmp_path / "adapter.safetensors", random_weights(network)
    write_adapter(path, AdapterWeights(weights.layers))
    told = describe_adapter(path)
    assert (told["kind"], told["ranks"], told["blocks"], told["generation"]) == ("identity", [2], [0, 1], None)
    assert told["layers"] == len(weights.layers)
    assert told["parameters"] == sum(part.numel() for each in weights.layers.values() for part in (each.a, each.b))
    assert len(told["unknown"]) == 3
    inject_adapter(network, AdapterWeights(weights.layers, {"positions": "negative"})).save(path)
    told = describe_adapter(path)
    assert (told["generation"], told["metadata"]["rank"], told["unknown"]) == ("2.3", "2", [])
    for layer, generation in (("blocks.0.attn1.to_gate_logits", "2.3 or 2.5"), ("caption_projection.x", "2.0")):
        write_adapter(path, AdapterWeights({layer: LowRank(torch.zeros(1, 2), torch.zeros(2, 1))}))
        told = describe_adapter(path)
        assert (told["kind"], told["generation"], told["blocks"]) == ("other", generation, [])


def test_files_that_are_no_adapters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(WeightsError, match="cannot be read"):
        read_adapter(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_adapter(path)
    save_file({"diffusion_model.a.lora_A.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsError, match="lora_B"):
        read_adapter(path)
