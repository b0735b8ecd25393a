# SPDX-License-Identifier: Apache-2.0
"""The next batch made while the last one is computed with."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Items by number, each made in a thread of its own while the one before is in use.

    A context: its thread ends with it. What an item is must follow from its number alone, for one that was not the next
    is made again.

    Args:
        make: an item of a number; what it raises, `take` raises.
        count: numbers end before this.
    """

    def __init__(self, make: Callable[[int], T], count: int) -> None:
        self._make, self._count = make, count
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="idlora-ahead")
        self._next: tuple[int, Future[T]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def settle(self) -> None:
        """Wait until nothing is being made; a fault comes when its item is taken."""
        if self._next is not None:
            wait([self._next[1]])

    def take(self, number: int) -> T:
        """The item of a number; the next one is begun."""
        waiting, self._next = self._next, None
        item = waiting[1].result() if waiting and waiting[0] == number else self._make(number)
        if number + 1 < self._count:
            self._next = number + 1, self._pool.submit(self._make, number + 1)
        return item
