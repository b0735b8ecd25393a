# SPDX-License-Identifier: Apache-2.0
"""One function over many items: in this process, in several, or by Ray Data; the same outcomes in every way.

Items and outcomes are what JSON can say, so that they cross processes and machines alike. What an item is at fault for
is part of its outcome; a process that dies is another matter: its items are done again, by themselves.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from idlora.data.processes import survived
from idlora.errors import IDLoraError, SettingsError, WeightsError

logger = logging.getLogger(__name__)

Item = dict[str, Any]
Outcome = dict[str, Any]
Work = Callable[[Item], Outcome]
Done = Iterator[tuple[int, Outcome]]  # the place of an item, and what came of it

FAULT = "fault"
"""Key of an outcome that says why there is none."""

DIED = "the process that worked on it died, twice"


def mapped(work: Work, items: Sequence[Item], workers: int = 1, *, ray: bool = False) -> Done:
    """Yield the place and the outcome of every item, in whatever order they end.

    Args:
        work: a function of a module, so that other processes find it. It raises `IDLoraError` for what an item is at
            fault for; the outcome is then `{"fault": why}`.
        items: what JSON can say.
        workers: processes, or tasks at once on the cluster; 1 = this process.
        ray: by Ray Data, on the cluster that `ray.init()` finds or starts here. Every node must see the files.

    Raises:
        SettingsError: Ray is not installed, or the work itself cannot be done here.
        WeightsError: the weights that the work needs cannot be used.
    """
    if ray:
        yield from _by_ray(work, items, workers)
    elif workers <= 1 or len(items) <= 1:
        for place, item in enumerate(items):
            yield place, attempted(work, item)
    else:
        yield from _by_processes(work, items, workers)


def attempted(work: Work, item: Item) -> Outcome:
    """The outcome of one item; its fault where it has one."""
    try:
        return work(item)
    except (SettingsError, WeightsError):
        raise  # of the whole stage: every other item would meet it too
    except IDLoraError as error:
        return {FAULT: " ".join(str(error).split())[:300]}
    except (ValueError, OSError, ArithmeticError, LookupError) as error:  # of a codec or library, on this file
        logger.warning("an item failed", exc_info=True)
        return {FAULT: f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _by_processes(work: Work, items: Sequence[Item], workers: int) -> Done:
    for place, outcome in survived(partial(attempted, work), items, workers, tries=2):
        yield place, {FAULT: DIED} if outcome is None else outcome


@contextmanager
def cluster(workers: int, *, ray: bool) -> Iterator[Any]:
    """Ray for all that is mapped in this context: the cluster that is there, or one that is started here and ended.

    Raises:
        SettingsError: Ray is not installed.
    """
    if not ray:
        yield None
        return
    try:
        import ray as module
        import ray.data as _  # noqa: F401 - it needs packages of its own
    except ImportError as error:
        raise SettingsError("--ray needs Ray Data: pip install 'idlora[ray,mining]', or leave it out") from error
    started = not module.is_initialized()
    if started:
        module.init(num_cpus=workers, log_to_driver=False, configure_logging=False, include_dashboard=False)
    try:
        yield module
    finally:
        if started:
            module.shutdown()


def _by_ray(work: Work, items: Sequence[Item], workers: int) -> Done:
    """A task of Ray an item; Ray does it again if its process or machine dies."""
    with cluster(workers, ray=True) as ray:
        if items:
            yield from _on_cluster(ray, work, items, workers)


def _on_cluster(ray: Any, work: Work, items: Sequence[Item], workers: int) -> Done:
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"place": place, "item": json.dumps(item)} for place, item in enumerate(items)]
    blocks = min(len(rows), max(1, 4 * workers))
    dataset = ray.data.from_items(rows, override_num_blocks=blocks)
    for row in dataset.map(partial(_row_of, work), concurrency=workers).iter_rows():
        outcome = json.loads(row["outcome"])
        if FAULT in outcome and outcome.get("whole"):
            raise SettingsError(outcome[FAULT])
        yield int(row["place"]), outcome


def _row_of(work: Work, row: dict[str, Any]) -> dict[str, Any]:
    try:
        outcome = attempted(work, json.loads(row["item"]))
    except (SettingsError, WeightsError) as error:  # told here: Ray would do it again and again
        outcome = {FAULT: str(error), "whole": True}
    return {"place": row["place"], "outcome": json.dumps(outcome)}
