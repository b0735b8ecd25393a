# SPDX-License-Identifier: Apache-2.0
"""What processes that work side by side agree on."""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
Told = TypeVar("Told")


def own_processors() -> int:
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes that begin in this context use one thread each: there are as many of them as of processors."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def pool_of(workers: int, ready: Callable[[], None] | None = None) -> Iterator[Executor]:
    """So many processes of one thread each; what has not begun when the context ends is left undone.

    Ctrl-C reaches them too: they end what they are at. `ready` is called once in each of them.
    """
    processes = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=partial(_made_ready, ready))
    with one_thread_each(), processes as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _made_ready(ready: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if ready is not None:
        ready()


def counted(work: Callable[[Task], object], tasks: Sequence[Task], workers: int) -> Iterator[int]:
    """Do every task, by several processes if `workers` is above 1; yields how many are done after each."""
    if workers <= 1:
        for number, task in enumerate(tasks, 1):
            work(task)
            yield number
        return
    with pool_of(workers) as pool:
        for number, _ in enumerate(pool.map(work, tasks, chunksize=4), 1):
            yield number


def survived(
    work: Callable[[Task], Told],
    tasks: Sequence[Task],
    workers: int,
    *,
    tries: int,
    ready: Callable[[], None] | None = None,
) -> Iterator[tuple[int, Told | None]]:
    """Yield the place of every task with what was told of it, in whatever order they end; None = it kills.

    All at once; if a process dies, what is left is done by one process in its order, so that the task that kills is
    known.

    Args:
        work: a function of a module, so that other processes find it.
        tasks: all of them.
        workers: processes.
        tries: of a task by one process before it is given up.
        ready: called once in every process.
    """
    left, deaths = dict(enumerate(tasks)), Counter[int]()
    at_once = workers
    while left:
        try:
            for place, told in _pooled(work, dict(left), at_once, ready):
                del left[place]
                yield place, told
        except BrokenProcessPool:
            logger.warning("a process died; the %d tasks that are left are done one by one", len(left))
            if at_once == 1:
                place = next(iter(left))
                deaths[place] += 1
                if deaths[place] == tries:
                    del left[place]
                    yield place, None
            at_once = 1


def _pooled(
    work: Callable[[Task], Told], tasks: Mapping[int, Task], workers: int, ready: Callable[[], None] | None
) -> Iterator[tuple[int, Told]]:
    """As they end; of one process in their order, up to the one at which it died (BrokenProcessPool)."""
    with pool_of(min(workers, len(tasks)), ready) as pool:
        places = {pool.submit(work, task): place for place, task in tasks.items()}
        for done in as_completed(places) if workers > 1 else places:
            yield places[done], done.result()
