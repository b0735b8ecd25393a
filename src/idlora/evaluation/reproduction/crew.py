# SPDX-License-Identifier: Apache-2.0
"""A reproduction's tasks shared out over processes, each with a studio of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from idlora.data.processes import survived
from idlora.evaluation.reproduction.claims import Row
from idlora.evaluation.reproduction.studio import Fault, Studio, Task, Work
from idlora.evaluation.reproduction.trials import Trials

Opening = Callable[[], Studio]
_OWN: list[Studio | Exception] = []  # of this process, when it is one of a crew: or why there is none


@dataclass(frozen=True)
class Crew:
    """Processes that make and judge side by side.

    Attributes:
        opening: makes a studio, once in each process; other processes must find it.
        workers: how many.
    """

    opening: Opening
    workers: int

    def through(self, trials: Trials, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows in their order, each when what it needs is known, but for what needs an adapter that is not there.

        A task that kills its process each time is told as faults.

        Raises:
            SettingsError: an arm cannot be made at all.
        """
        needs = {row: tuple(tasks_of(trials, row)) for row in rows}
        tasks = list(dict.fromkeys(task for several in needs.values() for task in several))
        left, coming = set(tasks), self._done(tasks)
        for row, needed in needs.items():
            while not left.isdisjoint(needed):
                task, work = next(coming)
                trials.keep(work)
                left.remove(task)
                trials.moved(f"{len(tasks) - len(left)} of {len(tasks)} batches ({task.name})")
            yield row

    def _done(self, tasks: list[Task]) -> Iterator[tuple[Task, Work]]:
        if tasks:
            ready = partial(_open, self.opening)
            for place, work in survived(_do, tasks, self.workers, tries=2, ready=ready):
                yield tasks[place], _killed(tasks[place]) if work is None else work


def tasks_of(trials: Trials, row: Row) -> Iterator[Task]:
    """What must be done for a row and can be."""
    for arm in row.arms:
        if trials.has(arm.adapter):
            yield from trials.missing(arm)
    for adapter in row.held_out:
        if trials.has(adapter):
            yield from trials.missing_losses(adapter)


def _killed(task: Task) -> Work:
    return Work([], [Fault(task.name, *place, "its process died each time") for place in task.places])


def _open(opening: Opening) -> None:
    try:
        _OWN[:] = [opening()]
    except Exception as error:  # noqa: BLE001 - told by the first task; here it would look as if the process had died
        _OWN[:] = [error]


def _do(task: Task) -> Work:
    if isinstance(own := _OWN[0], Exception):
        raise own
    return own.done(task)
