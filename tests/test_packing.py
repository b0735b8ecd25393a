# SPDX-License-Identifier: Apache-2.0
"""Weights in few bits: as small as foretold, near, the same wherever the blocks wait, and small under gradients."""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import tiny
import tiny_pipeline
from idlora.errors import SettingsError, WeightsError
from idlora.networks import packing
from idlora.networks.adapter import fuse_adapter, inject_adapter, new_adapter
from idlora.networks.footprint import Footprint, weight_bytes
from idlora.networks.joint import JointModel
from idlora.networks.packing import STORAGES, PackedLinear, smaller_storage, store_small, stored_bytes, stored_small
from idlora.pipeline import IDLoraPipeline, Placement, Result
from idlora.pipeline.plan import demand_of
from tiny_pipeline import CARD, PICTURE, PROMPT, SETTINGS, voice

SMALL = STORAGES[1:]
# Relative error of a Gaussian matrix: 2^-4 / sqrt 3 at most where e4m3 is normal; 2 / (127 sqrt 12) of the largest of a
# row; nf4 after Dettmers et al. 2023.
ERRORS = {"fp8": 0.037, "fp8-scaled": 0.037, "int8": 0.02, "nf4": 0.12}


def layer(out: int = 48, wide: int = 33, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(wide, out).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("storage", SMALL)
def test_a_packed_layer_is_small_and_near(storage: Any, dtype: torch.dtype) -> None:
    full = layer(dtype=dtype)
    packed = PackedLinear(full, storage)
    assert weight_bytes(packed) == stored_bytes(full, storage) < weight_bytes(full) == stored_bytes(full, "full")
    error = (packed.unpacked(torch.float32) - full.weight.float()).norm() / full.weight.float().norm()
    assert 0.001 < error < ERRORS[storage]
    assert torch.equal(packed.bias, full.bias)
    x = torch.randn(5, 33, dtype=dtype)
    assert packed(x).dtype == dtype
    exact = nn.functional.linear(taken(x.float(), storage), packed.unpacked(torch.float32), full.bias.float())
    torch.testing.assert_close(packed(x).float(), exact, rtol=0.02, atol=0.02 if dtype == torch.bfloat16 else 1e-5)


def taken(x: torch.Tensor, storage: Any) -> torch.Tensor:
    """What a layer multiplies of what it is given (..., in): all, or what e4m3 keeps of it with a scale a token."""
    if storage != "fp8-scaled":
        return x
    scale = x.detach().float().abs().amax(-1, keepdim=True).clamp_min(1e-30) / 448
    kept = ((x.detach().float() / scale).to(torch.float8_e4m3fn).to(x.dtype)) * scale.to(x.dtype)
    return x + (kept - x).detach() if x.requires_grad else kept


def test_products_in_eight_bits_take_any_scale_of_weights_and_tokens() -> None:
    full = layer(32, 48)
    x = torch.randn(2, 5, 48)
    tokens, rows = torch.logspace(-12, 8, 10).reshape(2, 5, 1), torch.logspace(-6, 6, 32)
    with torch.no_grad():
        full.weight *= rows[:, None]
        full.bias.zero_()
        exact, found = (each(x * tokens) / tokens / rows for each in (full, PackedLinear(full, "fp8-scaled")))
    error = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.max() < 0.06
    assert error.min() > 1e-2
    assert torch.equal(PackedLinear(full, "fp8-scaled")(torch.zeros(1, 48)), torch.zeros(1, 32))


def test_the_fp8_kernel_gives_what_its_emulation_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch has the kernel on a CPU too, where nothing is gained by it.
    packed, x = PackedLinear(layer(32, 48, torch.bfloat16), "fp8-scaled"), torch.randn(2, 5, 48).bfloat16()
    emulated = packed(x)
    monkeypatch.setattr(packing, "_multiplies_fp8", lambda *_: True)
    try:
        found = packed(x)
    except RuntimeError as error:
        if "per-tensor scaling" not in str(error):
            raise
        pytest.skip("this PyTorch has no such kernel on a CPU")
    torch.testing.assert_close(found, emulated, rtol=0.02, atol=0.02)
    assert not torch.equal(found, emulated)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@torch.no_grad()
def test_on_a_gpu_products_in_fp8_are_near_and_compile_as_one_graph() -> None:
    packed = PackedLinear(layer(256, 512, torch.bfloat16), "fp8-scaled")
    x = torch.randn(2, 50, 512).bfloat16()
    expected, there = packed(x.float()), packed.to("cuda")  # whose scales are not rounded
    assert packing._multiplies_fp8(x.cuda(), there.weight) == (torch.cuda.get_device_capability() >= (8, 9))
    torch.compiler.reset()
    for found in (there(x.cuda()), torch.compile(there, fullgraph=True)(x.cuda())):
        assert (found.cpu() - expected).norm() < 0.005 * expected.norm()


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("storage", SMALL)
def test_a_packed_layer_compiles_as_one_graph(storage: Any, autocast: bool) -> None:
    packed, x = PackedLinear(layer(32, 48), storage), torch.randn(2, 5, 48, requires_grad=True)
    torch.compiler.reset()  # only so many forms of a function are compiled
    compiled = torch.compile(packed, backend="eager", fullgraph=True)
    with mixed(autocast):
        expected, found = packed(x), compiled(x)
    assert torch.equal(found, expected)
    grads = [torch.autograd.grad(out.float().square().sum(), x)[0] for out in (expected, found)]
    assert torch.equal(*grads)


@pytest.mark.parametrize("storage", SMALL)
def test_the_weights_of_nought_and_of_one_scale_come_back(storage: Any) -> None:
    full = layer()
    with torch.no_grad():
        full.weight.zero_()
        full.weight[::2] = 0.5
    packed = PackedLinear(full, storage)
    torch.testing.assert_close(packed.unpacked(torch.float32), full.weight.data, rtol=0, atol=1e-3)


def test_storages_go_down_to_the_smallest() -> None:
    block = layer(64, 64, torch.bfloat16)
    sizes = [stored_bytes(block, storage) for storage in ("full", "fp8", "nf4")]
    assert sizes == sorted(sizes, reverse=True)
    assert [smaller_storage(storage) for storage in STORAGES] == ["fp8", "nf4", "nf4", "nf4", None]


@pytest.mark.parametrize("storage", SMALL)
def test_only_the_large_linear_layers_are_packed(storage: Any) -> None:
    transformer = tiny_pipeline.transformer("2.3")
    expected = {name for name, _ in stored_small(transformer.transformer_blocks)}
    outside = {name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    store_small(transformer, storage, torch.device("cpu"))
    packed = {name for name, module in transformer.named_modules() if isinstance(module, PackedLinear)}
    assert packed == {f"transformer_blocks.{name}" for name in expected}
    assert outside > packed


def pipeline(placement: Placement) -> IDLoraPipeline:
    made = tiny_pipeline.real_components("2.3")
    return IDLoraPipeline(made, CARD, tiny_pipeline.adapter_for(made.transformer), placement=placement)


def clip(pipe: IDLoraPipeline) -> Result:
    return pipe(PROMPT, image=PICTURE, voice=voice(), settings=SETTINGS)


@pytest.mark.parametrize("storage", SMALL)
def test_clips_are_near_and_the_same_wherever_the_blocks_wait(storage: Any) -> None:
    exact = clip(pipeline(Placement())).video.astype(np.float64)
    clips = [clip(pipeline(Placement(where, storage))) for where in ("whole", "stream")]
    assert tiny_pipeline.digest(clips[0]) == tiny_pipeline.digest(clips[1])
    assert 0 < np.abs(clips[0].video - exact).mean() < 0.5 * exact.std()


def test_eight_bits_are_nearer_than_four() -> None:
    exact = clip(pipeline(Placement())).video.astype(np.float64)
    errors = [np.abs(clip(pipeline(Placement(storage=s))).video - exact).mean() for s in SMALL]
    assert max(errors[:-1]) < errors[-1]


@pytest.mark.parametrize("storage", STORAGES)
def test_the_plan_knows_the_bytes_of_every_storage(storage: Any, tmp_path: Path) -> None:
    pipeline(Placement()).save_pretrained(tmp_path / "model")
    pipe = IDLoraPipeline.from_pretrained(tmp_path / "model", placement=Placement(storage=storage))
    blueprints = pipe.components.blueprints()
    demand = demand_of(blueprints, SETTINGS, torch.float32, CARD.max_text_tokens, 4)
    found = weight_bytes(pipe.components.transformer)
    foretold = demand.weights["transformer"].resident(storage)
    widest = 0 if storage == "full" else demand.weights["transformer"].widest
    assert found == foretold - widest


@pytest.mark.parametrize("storage", SMALL)
def test_what_is_packed_is_not_saved_nor_added_to(storage: Any, tmp_path: Path) -> None:
    pipe = pipeline(Placement(storage=storage))
    with pytest.raises(SettingsError, match="storage full"):
        pipe.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    transformer = tiny_pipeline.transformer("2.3")
    weights = tiny_pipeline.adapter_for(transformer)
    store_small(transformer, storage, torch.device("cpu"))
    with pytest.raises(WeightsError, match=rf"{storage}.* cannot be added"):
        fuse_adapter(transformer, weights)


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SettingsError, match=r"idlora\[quant\]"):
        PackedLinear(layer(), "nf4")
    assert PackedLinear(layer(), "fp8").scales is None


@pytest.mark.parametrize("storage", SMALL)
def test_another_dtype_of_the_network_leaves_the_packed_weight(storage: Any) -> None:
    packed = PackedLinear(layer(), storage)
    before = packed.unpacked(torch.float32)
    assert packed.to(torch.bfloat16).bias.dtype == torch.bfloat16
    assert weight_bytes(packed) == stored_bytes(layer(dtype=torch.bfloat16), storage)
    assert torch.equal(packed.unpacked(torch.float32), before)


def rounded(packed: PackedLinear, dtype: torch.dtype, compute: torch.dtype) -> nn.Linear:
    """A plain layer with the weight that a packed one computes with, and its inputs rounded as there."""
    plain = nn.Linear(packed.in_features, packed.out_features, dtype=dtype)
    plain.weight.data = packed.unpacked(compute).to(dtype)
    plain.bias.data = packed.bias.data.clone()
    plain.register_forward_pre_hook(lambda _, inputs: taken(inputs[0].to(compute), packed.storage))
    return plain.requires_grad_(requires_grad=False)


def mixed(on: bool) -> AbstractContextManager[None]:
    return torch.autocast("cpu", torch.bfloat16) if on else nullcontext()


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("storage", SMALL)
def test_the_gradient_is_that_of_the_rounded_weight(
    storage: Any, dtype: torch.dtype, autocast: bool, again: bool
) -> None:
    packed = PackedLinear(layer(dtype=dtype), storage)
    plain = rounded(packed, dtype, torch.bfloat16 if autocast else dtype)
    outs, grads = [], []
    for network in (packed, plain):
        x = torch.randn(2, 5, 33, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with mixed(autocast):
            out = checkpoint(network, x, use_reentrant=False) if again else network(x)
        out.float().square().sum().backward()
        assert x.grad is not None
        outs.append(out.detach())
        grads.append(x.grad)
    assert grads[0].dtype == dtype
    assert grads[0].abs().max() > 0.1
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=1e-6)
    assert packed.bias.grad is None


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("storage", SMALL)
def test_for_the_backward_pass_only_the_packed_weights_are_kept(storage: Any, autocast: bool) -> None:
    full = [layer(256, 256) for _ in range(4)]
    network = nn.Sequential(*(PackedLinear(each, storage) for each in full))
    wide = full[0].weight.nbytes
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    x = torch.randn(1, 256, requires_grad=True)
    with Footprint([network]) as footprint:
        with mixed(autocast), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = network(x)
        assert sum(kept.values()) == weight_bytes(network) - sum(each.bias.nbytes for each in full)
        assert footprint.alive == out.nbytes
        out.float().sum().backward()
    assert wide / 2 <= footprint.peak < 2 * wide  # of four


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("storage", SMALL)
def test_an_adapter_learns_through_packed_layers(storage: Any, base: torch.dtype, dtype: torch.dtype) -> None:
    packed = tiny.fresh_transformer("2.3").to(base)
    weights = tiny_pipeline.adapter_for(packed)
    store_small(packed, storage, torch.device("cpu"))
    plain = tiny.fresh_transformer("2.3").to(base)
    for name, module in list(packed.named_modules()):
        if isinstance(module, PackedLinear):
            plain.set_submodule(name, rounded(module, base, base))
    found, expected = (adapter_gradients(network, weights, dtype) for network in (packed, plain))
    assert found.keys() == expected.keys() == weights.layers.keys()
    for name, pair in found.items():
        for grad, wanted in zip(pair, expected[name], strict=True):
            assert grad.dtype == dtype
            assert grad.abs().max() > 0, name
            torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)


def adapter_gradients(network: Any, weights: Any, dtype: torch.dtype) -> dict[str, tuple[torch.Tensor, ...]]:
    """Gradients of A and B by layer."""
    adapter = inject_adapter(network, weights, trainable=True)
    for parameter in adapter.parameters():
        parameter.data = parameter.data.to(dtype)
    found = JointModel(network).velocity(tiny.state(), 0.3, tiny.context("2.3"))
    (found.video.square().mean() + found.audio.square().mean()).backward()
    trained = {id(parameter) for parameter in network.parameters() if parameter.grad is not None}
    assert trained == set(map(id, adapter.parameters()))
    layers = adapter.weights().layers
    return {name: (each.a.grad, each.b.grad) for name, each in layers.items()}  # type: ignore[misc]


@pytest.mark.parametrize("storage", SMALL)
def test_a_new_adapter_begins_beside_packed_layers_as_beside_full_ones(storage: Any) -> None:
    begun = []
    for bits in ("full", storage):
        network = tiny.fresh_transformer("2.3")
        store_small(network, bits, torch.device("cpu"))
        torch.manual_seed(0)
        begun.append(new_adapter(network, rank=4).weights().layers)
    assert begun[0].keys() == begun[1].keys()
    assert all(torch.equal(begun[0][name].a, begun[1][name].a) for name in begun[0])
