# SPDX-License-Identifier: Apache-2.0
"""Tensors side by side in one piece of main memory, which goes to a device in a single copy."""

from __future__ import annotations

import logging
import mmap
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_ALIGNED = 256  # bytes, as the devices' own allocators have it


class _Place(NamedTuple):
    """Where a tensor is."""

    start: int
    stop: int
    dtype: torch.dtype
    shape: torch.Size


class Parcel:
    """A copy of tensors, all in one.

    Args:
        tensors: in main memory, of any dtypes and shapes.
        device: a CUDA device for which the memory is page-locked, so that it can copy while it computes; None where
            nobody waits for copies. What the system will not lock is copied more slowly.

    Attributes:
        content: the bytes, (N,) uint8.
    """

    def __init__(self, tensors: Sequence[Tensor], device: torch.device | None = None) -> None:
        self._places, end = list[_Place](), 0
        for tensor in tensors:
            start = -(-end // _ALIGNED) * _ALIGNED
            end = start + tensor.numel() * tensor.element_size()
            self._places.append(_Place(start, end, tensor.dtype, tensor.shape))
        self.content = torch.empty(end, dtype=torch.uint8) if device is None else self._locked(end, device)
        for home, tensor in zip(self.views(self.content), tensors, strict=True):
            home.copy_(tensor)

    def views(self, content: Tensor) -> list[Tensor]:
        """The tensors in a copy of the content, wherever that is."""
        return [content[each.start : each.stop].view(each.dtype).view(each.shape) for each in self._places]

    def _locked(self, size: int, device: torch.device) -> Tensor:
        """Page-locked bytes.

        PyTorch's own take several times as long to get: fresh pages come one after the other, and there are as many as
        the next power of two.
        """
        memory = torch.empty(size + 2 * mmap.PAGESIZE, dtype=torch.uint8)
        start = -memory.data_ptr() % mmap.PAGESIZE
        pages = memory[start : start + -(-size // mmap.PAGESIZE) * mmap.PAGESIZE]
        pages.fill_(0)  # by all threads: they come into being
        with torch.cuda.device(device):
            code = int(torch.cuda.cudart().cudaHostRegister(pages.data_ptr(), pages.numel(), 0))
            if code:
                log.info("main memory could not be locked where it is (CUDA error %d); other memory is used", code)
                _forget_error(device)
                return _pinned(size)
        # Before the memory goes: whoever gets it next could not lock it.
        weakref.finalize(self, _unlock, pages, device).atexit = False
        return pages[:size]


def _pinned(size: int) -> Tensor:
    """PyTorch's page-locked bytes, or plain ones where there are none left."""
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        log.info("main memory could not be locked at all (%s)", error)
        return torch.empty(size, dtype=torch.uint8)


def _unlock(pages: Tensor, device: torch.device) -> None:
    if int(torch.cuda.cudart().cudaHostUnregister(pages.data_ptr())):
        _forget_error(device)


def _forget_error(device: torch.device) -> None:
    """What a failed call leaves behind would be told by the next kernel."""
    with suppress(RuntimeError):
        torch.ones(1, device=device).add_(1)
