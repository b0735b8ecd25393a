# SPDX-License-Identifier: Apache-2.0
"""Clips judged here, by several processes, or by a Ray cluster; each worker loads its judges once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from idlora.data.cluster import Lost, on_cluster
from idlora.data.processes import survived
from idlora.evaluation.judges.base import Judge
from idlora.evaluation.laboratory.bench import Outcome, failed, judge_entry
from idlora.evaluation.laboratory.manifest import Entry

Task = tuple[Entry, tuple[str, ...]]  # a clip, and the names of the judges that have not scored it
Judges = Mapping[str, Judge]
Told = Iterator[tuple[int, Outcome]]  # the place of a task and what was said

_OWN: dict[str, Judge] = {}  # of a worker process


def judged(tasks: Sequence[Task], judges: Judges, workers: int = 1, *, ray: bool = False) -> Told:
    """Yield the place of each task with its outcome, in whatever order they end.

    Args:
        tasks: clips with the judges to be asked.
        judges: by name; with several workers copies of them judge.
        workers: processes, or tasks at once on the cluster; 1 = this process.
        ray: on the Ray cluster that `ray.init()` finds, or starts on this machine. Every node must see the files.

    Raises:
        SettingsError: Ray is not installed.
    """
    if ray:
        yield from _by_ray(tasks, judges, workers)
    elif workers <= 1 or len(tasks) <= 1:
        for place, task in enumerate(tasks):
            yield place, _judged(task, judges)
    else:
        yield from _by_processes(tasks, judges, workers)


def _judged(task: Task, judges: Judges) -> Outcome:
    entry, names = task
    return judge_entry(entry, {name: judges[name] for name in names})


def _by_processes(tasks: Sequence[Task], judges: Judges, workers: int) -> Told:
    done = survived(_judged_by_own, tasks, workers, tries=1, ready=partial(_arm, dict(judges)))
    for place, outcome in done:
        yield place, _unjudged(tasks[place]) if outcome is None else outcome


def _arm(judges: dict[str, Judge]) -> None:
    _OWN.update(judges)


def _judged_by_own(task: Task) -> Outcome:
    return _judged(task, _OWN)


def _by_ray(tasks: Sequence[Task], judges: Judges, workers: int) -> Told:
    for place, outcome in on_cluster(tasks, partial(_bench, dict(judges)), workers):
        yield place, _unjudged(tasks[place]) if isinstance(outcome, Lost) else outcome


def _bench(judges: dict[str, Judge]) -> Callable[[Task], Outcome]:
    return partial(_judged, judges=judges)


def _unjudged(task: Task) -> Outcome:
    return {name: failed("the process that judged it died") for name in task[1]}
