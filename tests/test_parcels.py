# SPDX-License-Identifier: Apache-2.0
"""Parcels hold what was put into them, wherever they are."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from idlora.networks import parcels
from idlora.networks.parcels import Parcel, _forget_error
from idlora.networks.streaming import BlockStream

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
GPU = torch.device("cuda")
DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.int32, torch.float64, torch.bool]


def filled(dtype: torch.dtype, shape: Sequence[int], seed: int) -> Tensor:
    numbers = torch.randint(2, 100, tuple(shape), generator=torch.Generator().manual_seed(seed))
    return numbers.to(dtype)


def bits(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous().flatten().view(torch.uint8)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 7), max_size=3)), max_size=6))
def test_tensors_of_any_kind_are_in_it(kinds: list[tuple[torch.dtype, list[int]]]) -> None:
    tensors = [filled(dtype, shape, seed) for seed, (dtype, shape) in enumerate(kinds)]
    parcel = Parcel(tensors)
    for home, tensor in zip(parcel.views(parcel.content.clone()), tensors, strict=True):
        assert (home.dtype, home.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(bits(home), bits(tensor))


def test_what_is_turned_in_memory_keeps_its_numbers() -> None:
    turned = torch.arange(12.0).view(3, 4).t()
    (home,) = Parcel([turned]).views(Parcel([turned]).content)
    assert torch.equal(home, turned)


def test_a_system_that_locks_nothing_copies_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        return 1

    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=refuse))
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    monkeypatch.setattr(parcels, "_forget_error", refuse)
    real = torch.empty

    def empty(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        if pin_memory:
            raise torch.OutOfMemoryError("no page can be locked")
        return real(*size, **options)

    monkeypatch.setattr(torch, "empty", empty)
    parcel = Parcel([torch.arange(1000.0)], GPU)
    assert torch.equal(parcel.views(parcel.content)[0], torch.arange(1000.0))


@on_gpu
def test_memory_is_locked_for_as_long_as_the_parcel_is_there() -> None:
    def locks_anew(pages: Tensor) -> bool:
        code = int(torch.cuda.cudart().cudaHostRegister(pages.data_ptr(), pages.numel(), 0))
        if code:
            _forget_error(GPU)
        else:
            torch.cuda.cudart().cudaHostUnregister(pages.data_ptr())
        return code == 0

    parcel = Parcel([torch.arange(100_000.0)], GPU)
    (home,) = parcel.views(parcel.content)
    assert not locks_anew(home)
    del parcel
    gc.collect()
    assert locks_anew(home)
    assert torch.equal(home, torch.arange(100_000.0))


@on_gpu
def test_what_cannot_be_locked_is_copied_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = torch.cuda.cudart(), []

    def register(*where: int) -> int:
        real.cudaHostRegister(*where)
        refused.append(int(real.cudaHostRegister(*where)))  # what is locked already
        real.cudaHostUnregister(where[0])
        return refused[-1]

    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=register))
    parcel = Parcel([torch.arange(1000.0)], GPU)
    assert refused[0] != 0
    assert parcel.content.is_pinned()
    assert torch.equal(parcel.views(parcel.content.to(GPU))[0].sqrt().cpu(), torch.arange(1000.0).cuda().sqrt().cpu())


@on_gpu
def test_blocks_come_to_a_gpu_and_go_again() -> None:
    blocks = [nn.Linear(64, 64) for _ in range(4)]
    x, stream = torch.randn(8, 64), BlockStream(blocks, GPU)
    expected = x
    for block in blocks:
        expected = block(expected)
    for _ in range(2):
        found = x.to(GPU)
        for block in blocks:
            with stream.at(block):
                found = block(found)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
    stream.close()
    assert {block.weight.device.type for block in blocks} == {"cpu"}
