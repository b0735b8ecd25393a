# SPDX-License-Identifier: Apache-2.0
"""Weights in few bits: as small as foretold, as near as their bits allow, and the same wherever the blocks wait."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tiny_pipeline
from idlora.errors import SettingsError, WeightsError
from idlora.networks.adapter import fuse_adapter
from idlora.networks.footprint import weight_bytes
from idlora.networks.packing import STORAGES, PackedLinear, smaller_storage, store_small, stored_bytes, stored_small
from idlora.pipeline import IDLoraPipeline, Placement, Result
from idlora.pipeline.plan import demand_of
from tiny_pipeline import CARD, PICTURE, PROMPT, SETTINGS, voice

# Relative error of a Gaussian matrix: 2 / (127 sqrt 12) of the largest of a row; nf4 after Dettmers et al. 2023.
ERRORS = {"int8": 0.02, "nf4": 0.12}


def layer(out: int = 48, wide: int = 33, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(wide, out).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("storage", ["int8", "nf4"])
def test_a_packed_layer_is_small_and_near(storage: Any, dtype: torch.dtype) -> None:
    full = layer(dtype=dtype)
    packed = PackedLinear(full, storage)
    assert weight_bytes(packed) == stored_bytes(full, storage) < weight_bytes(full) == stored_bytes(full, "full")
    error = (packed.unpacked(torch.float32) - full.weight.float()).norm() / full.weight.float().norm()
    assert 0.001 < error < ERRORS[storage]
    x = torch.randn(5, 33, dtype=dtype)
    assert packed(x).dtype == dtype
    exact = nn.functional.linear(x.float(), packed.unpacked(torch.float32), full.bias.float())
    torch.testing.assert_close(packed(x).float(), exact, rtol=0.02, atol=0.02 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("storage", ["int8", "nf4"])
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
    assert [smaller_storage(storage) for storage in STORAGES] == ["fp8", "nf4", "nf4", None]


@pytest.mark.parametrize("storage", ["int8", "nf4"])
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


@pytest.mark.parametrize("storage", ["int8", "nf4"])
def test_clips_are_near_and_the_same_wherever_the_blocks_wait(storage: Any) -> None:
    exact = clip(pipeline(Placement())).video.astype(np.float64)
    clips = [clip(pipeline(Placement(where, storage))) for where in ("whole", "stream")]
    assert tiny_pipeline.digest(clips[0]) == tiny_pipeline.digest(clips[1])
    assert 0 < np.abs(clips[0].video - exact).mean() < 0.5 * exact.std()


def test_eight_bits_are_nearer_than_four() -> None:
    exact = clip(pipeline(Placement())).video.astype(np.float64)
    errors = [np.abs(clip(pipeline(Placement(storage=s))).video - exact).mean() for s in ("int8", "nf4")]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("storage", ["full", "fp8", "int8", "nf4"])
def test_the_plan_knows_the_bytes_of_every_storage(storage: Any, tmp_path: Path) -> None:
    pipeline(Placement()).save_pretrained(tmp_path / "model")
    pipe = IDLoraPipeline.from_pretrained(tmp_path / "model", placement=Placement(storage=storage))
    blueprints = pipe.components.blueprints()
    demand = demand_of(blueprints, SETTINGS, torch.float32, CARD.max_text_tokens, 4)
    found = weight_bytes(pipe.components.transformer)
    foretold = demand.weights["transformer"].resident(storage)
    widest = 0 if storage == "full" else demand.weights["transformer"].widest
    assert found == foretold - widest


def test_what_is_packed_is_not_saved_nor_added_to(tmp_path: Path) -> None:
    pipe = pipeline(Placement(storage="nf4"))
    with pytest.raises(SettingsError, match="storage full"):
        pipe.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    transformer = tiny_pipeline.transformer("2.3")
    weights = tiny_pipeline.adapter_for(transformer)
    store_small(transformer, "int8", torch.device("cpu"))
    with pytest.raises(WeightsError, match="cannot be added"):
        fuse_adapter(transformer, weights)


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SettingsError, match=r"idlora\[quant\]"):
        PackedLinear(layer(), "nf4")
