# SPDX-License-Identifier: Apache-2.0
"""What each verb of a generation costs: seconds, and on a GPU the most memory that was in use."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Meter:
    """Seconds and peak bytes by verb; a verb that comes twice adds its seconds and keeps its higher peak.

    Attributes:
        seconds: wall time.
        peak_bytes: the most memory that tensors on the device took, the weights there included; empty but on CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}

    @contextmanager
    def verb(self, name: str) -> Iterator[None]:
        """Measure what happens inside this context."""
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        start = time.perf_counter()
        yield
        if on_gpu:
            torch.cuda.synchronize(self._device)
            peak = torch.cuda.max_memory_allocated(self._device)
            self.peak_bytes[name] = max(peak, self.peak_bytes.get(name, 0))
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
