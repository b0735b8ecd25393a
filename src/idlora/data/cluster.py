# SPDX-License-Identifier: Apache-2.0
"""Tasks done by workers of a Ray cluster, each of which makes ready once; a worker that dies costs its task one try."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from idlora.errors import SettingsError

Task = TypeVar("Task")
Told = TypeVar("Told")


@dataclass(frozen=True)
class Lost:
    """What is told of a task at which workers died as often as it was tried; why, in Ray's words."""

    reason: str


def on_cluster(
    tasks: Sequence[Task],
    make: Callable[[], Callable[[Task], Told]],
    workers: int,
    *,
    gpus: float = 0,
    tries: int = 2,
) -> Iterator[tuple[int, Told | Lost]]:
    """Yield the place of each task with what was told of it, in whatever order they end.

    Args:
        tasks: all of them; each goes to whoever is free.
        make: makes the function that does a task; called once by every worker, at its first task.
        workers: at once.
        gpus: that each worker needs for itself; may be a share of one.
        tries: of a task at which a worker dies.

    Raises:
        SettingsError: Ray is not installed.
        Exception: what a task raised.
    """
    try:
        import ray
    except ImportError as error:
        raise SettingsError("a Ray cluster needs ray: pip install 'idlora[ray]', or leave --ray out") from error
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    try:
        kind = ray.remote(_Worker).options(num_gpus=gpus)
        yield from _shared_out(ray, tasks, lambda: kind.remote(make), min(workers, len(tasks)), tries)
    finally:
        if started:
            ray.shutdown()


def _shared_out(
    ray: Any, tasks: Sequence[Task], fresh: Callable[[], Any], workers: int, tries: int
) -> Iterator[tuple[int, Any]]:
    waiting, deaths = deque(range(len(tasks))), Counter[int]()
    running: dict[Any, tuple[int, Any]] = {}

    def give(worker: Any) -> None:
        if waiting:
            place = waiting.popleft()
            running[worker.do.remote(tasks[place])] = (place, worker)

    for _ in range(max(1, workers)):
        give(fresh())
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        place, worker = running.pop(done)
        try:
            told = ray.get(done)
        except ray.exceptions.RayActorError as error:
            worker, told = fresh(), Lost(" ".join(str(error).split())[:300])
            deaths[place] += 1
            if deaths[place] < tries:
                waiting.appendleft(place)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        if not isinstance(told, Lost) or deaths[place] == tries:
            yield place, told
        give(worker)


class _Worker(Generic[Task, Told]):
    """An actor; it makes ready at its first task, so that a fault there is told as the task's."""

    def __init__(self, make: Callable[[], Callable[[Task], Told]]) -> None:
        self._make = make
        self._own: Callable[[Task], Told] | None = None

    def do(self, task: Task) -> Told:
        self._own = self._own or self._make()
        return self._own(task)
