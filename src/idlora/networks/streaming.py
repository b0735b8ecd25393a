# SPDX-License-Identifier: Apache-2.0
"""Networks that wait in main memory and come to the device for as long as they work: whole, or block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from idlora.networks.footprint import tensors_of
from idlora.networks.parcels import Parcel


class Guest:
    """Weights whose home is main memory: on the device they are a copy, which is dropped, not carried back.

    Args:
        tensors: parameters and buffers, in main memory.
        device: where they are wanted.
    """

    def __init__(self, tensors: Iterable[Tensor], device: torch.device) -> None:
        self._tensors, self._device = list(tensors), device
        self._homes = [tensor.data for tensor in self._tensors]

    @property
    def names(self) -> frozenset[int]:
        """The identities of its tensors."""
        return frozenset(map(id, self._tensors))

    def fetch(self) -> None:
        """Copy them to the device."""
        for tensor, home in zip(self._tensors, self._homes, strict=True):
            tensor.data = home.to(self._device, copy=True, non_blocking=True)

    def drop(self) -> None:
        """Back to main memory."""
        for tensor, home in zip(self._tensors, self._homes, strict=True):
            tensor.data = home


class ParcelGuest(Guest):
    """Weights that come often: their home is a parcel of their own, which takes the place of where they were.

    On CUDA `fetch` returns before the copy is done.
    """

    def __init__(self, tensors: Iterable[Tensor], device: torch.device) -> None:
        super().__init__(tensors, device)
        self._parcel = Parcel(self._homes, device if device.type == "cuda" else None)
        self._homes = self._parcel.views(self._parcel.content)
        self._copy: Tensor | None = None
        self.drop()

    def fetch(self) -> None:
        """Copy them to the device, all at once."""
        self._copy = self._parcel.content.to(self._device, copy=True, non_blocking=True)
        for tensor, there in zip(self._tensors, self._parcel.views(self._copy), strict=True):
            tensor.data = there

    def drop(self) -> None:
        """Back to main memory."""
        if self._copy is not None and self._copy.is_cuda:
            # The memory may be given out again only when the work that reads it is done.
            self._copy.record_stream(torch.cuda.current_stream(self._device))
        self._copy = None
        super().drop()


class BlockStream:
    """Runs a long list of blocks with at most two of them on the device.

    While a block computes, the next one is copied; on CUDA in a stream of its own, so that neither waits for the other.

    Args:
        blocks: run one after the other, from the first to the last, as often as wanted.
        device: where they work.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._device = device
        self._order = {id(block): index for index, block in enumerate(blocks)}
        self._guests = [ParcelGuest(tensors_of(block), device) for block in blocks]
        self._copies = torch.cuda.Stream(device) if on_gpu else None
        self._there: dict[int, Any] = {}  # by number, what tells that the block has arrived

    @property
    def names(self) -> frozenset[int]:
        """The identities of its tensors."""
        return frozenset().union(*(guest.names for guest in self._guests))

    @property
    def present(self) -> list[int]:
        """The numbers of the blocks that are on the device or on their way."""
        return sorted(self._there)

    @contextmanager
    def at(self, block: nn.Module) -> Iterator[None]:
        """The block is on the device inside this context, and the next one on its way."""
        index = self._order[id(block)]
        self._fetch(index)
        self._fetch((index + 1) % len(self._guests))
        arrived = self._there[index]
        if arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(arrived)
        try:
            yield
        finally:
            self._drop(index)

    def close(self) -> None:
        """All blocks back in main memory, which no copy reads any more."""
        if self._copies is not None:
            self._copies.synchronize()
        for index in self.present:
            self._drop(index)

    def _fetch(self, index: int) -> None:
        if index in self._there:
            return
        copies = self._copies
        with nullcontext() if copies is None else torch.cuda.stream(copies):
            self._guests[index].fetch()
            self._there[index] = None if copies is None else copies.record_event()

    def _drop(self, index: int) -> None:
        self._there.pop(index, None)
        self._guests[index].drop()
