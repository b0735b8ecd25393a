# SPDX-License-Identifier: Apache-2.0
"""Works side by side, one running at a time: what else the machine does hits all of them alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


class Lanes:
    """Threads of which one runs at a time; each gives way after so many blocks."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._gates: dict[str, threading.Semaphore] = {}

    def side_by_side(self, works: Mapping[str, Callable[[], Any]], strides: Mapping[str, int]) -> dict[str, Any]:
        """What every work gives; `strides` says after how many blocks each gives way."""
        self._gates = {name: threading.Semaphore(0) for name in works}
        with ThreadPoolExecutor(len(works)) as pool:
            futures = {name: pool.submit(self._run, name, work, strides[name]) for name, work in works.items()}
            next(iter(self._gates.values())).release()
            return {name: future.result() for name, future in futures.items()}

    @torch.no_grad()
    def _run(self, name: str, work: Callable[[], Any], stride: int) -> Any:
        torch.set_num_threads(1)
        self._mine.name, self._mine.stride, self._mine.blocks = name, stride, 0
        self._gates[name].acquire()
        try:
            return work()
        finally:
            following = self._following(name)
            del self._gates[name]
            if following != name:
                self._gates[following].release()

    def _following(self, name: str) -> str:
        names = list(self._gates)
        return names[(names.index(name) + 1) % len(names)]

    def passed(self) -> None:
        """A block is done in this thread."""
        name = getattr(self._mine, "name", None)
        if name is None:
            return
        self._mine.blocks += 1
        if self._mine.blocks % self._mine.stride == 0:
            gate = self._gates[name]
            self._gates[self._following(name)].release()
            gate.acquire()
