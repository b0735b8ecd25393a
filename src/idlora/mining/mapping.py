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
from idlora.errors import Cancelled, DeviceMemoryError, IDLoraError, OutputError, SettingsError, WeightsError

logger = logging.getLogger(__name__)

Item = dict[str, Any]
Outcome = dict[str, Any]
Work = Callable[[Item], Outcome]
Done = Iterator[tuple[int, Outcome]]  # the place of an item, and what came of it

FAULT = "fault"
"""Key of an outcome that says why there is none."""

AGAIN = "again"
"""Key of an outcome beside its fault: the machine, not the item, may be to blame, so the next run tries again."""

DIED = "the process that worked on it died, twice"

_WHOLE = (SettingsError, WeightsError, OutputError)
"""Faults of a whole stage: every other item would meet them too."""


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
        OutputError: what the work makes cannot be written.
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
    except (*_WHOLE, Cancelled):
        raise
    except ImportError as error:
        raise SettingsError(f"a package cannot be used here ({error}); pip install 'idlora[mining]'") from error
    except Exception as error:  # of a codec or library, on this file; the others are done all the same
        told = " ".join(str(error).split())[:300]
        if not isinstance(error, IDLoraError):
            logger.warning("an item failed", exc_info=True)
            told = f"{type(error).__name__}: {told}"
        of_item = isinstance(error, (IDLoraError, ValueError, ArithmeticError, LookupError))
        return {FAULT: told} if of_item and not _of_machine(error) else {FAULT: told, AGAIN: True}


def passing(outcome: Outcome) -> bool:
    """Whether an outcome is a fault that another run may not meet."""
    return AGAIN in outcome or outcome.get(FAULT) == DIED


def _of_machine(error: BaseException | None) -> bool:
    """Whether memory, or the system's files, are at the bottom of an error; what FFmpeg says is of the file."""
    while error is not None:
        by_system = isinstance(error, OSError) and not type(error).__module__.startswith("av.")
        if by_system or isinstance(error, (MemoryError, DeviceMemoryError)):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


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
        _joined(module, workers)
    try:
        yield module
    finally:
        if started:
            module.shutdown()


def _joined(ray: Any, workers: int) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
    try:
        ray.init(num_cpus=workers, **quiet)
    except ValueError:  # a cluster is there, which has processors of its own
        try:
            ray.init(**quiet)
        except (ValueError, ConnectionError, RuntimeError) as error:
            told = " ".join(str(error).split())[:200]
            raise SettingsError(
                f"no Ray cluster can be joined ({told}); see RAY_ADDRESS, or leave --ray out"
            ) from error


def _by_ray(work: Work, items: Sequence[Item], workers: int) -> Done:
    """All at once; then an item a task what was left by workers that died, each twice before it is given up."""
    left = dict(enumerate(items))
    with cluster(workers, ray=True) as ray:
        for blocks, retries in ((4 * workers, 0), (len(items), 1)):
            for place, outcome in _on_cluster(ray, partial(_row_of, work), dict(left), (workers, blocks, retries)):
                if left.pop(place, None) is not None:
                    yield place, outcome
    for place in left:
        yield place, {FAULT: DIED}


def _on_cluster(ray: Any, work: Any, items: dict[int, Item], how: tuple[int, int, int]) -> Done:
    """Outcomes of items of which no worker dies; `how` is workers, blocks, and retries of a block."""
    if not items:
        return
    workers, blocks, retries = how
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.max_errored_blocks
    # By default Ray tries for ever, and one block that is given up ends all.
    context.enable_progress_bars, context.max_errored_blocks = False, -1
    try:
        rows = [{"place": place, "item": json.dumps(item)} for place, item in items.items()]
        dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), max(1, blocks)))
        for row in dataset.map(work, concurrency=workers, max_retries=retries).iter_rows():
            outcome = json.loads(row["outcome"])
            if whole := outcome.get("whole"):
                raise next(kind for kind in _WHOLE if kind.__name__ == whole)(outcome[FAULT])
            yield int(row["place"]), outcome
    finally:
        context.enable_progress_bars, context.max_errored_blocks = before


def _row_of(work: Work, row: dict[str, Any]) -> dict[str, Any]:
    try:
        outcome = attempted(work, json.loads(row["item"]))
    except _WHOLE as error:  # told here: Ray would take it for the block's
        kind = next(each for each in _WHOLE if isinstance(error, each))
        outcome = {FAULT: str(error), "whole": kind.__name__}
    return {"place": row["place"], "outcome": json.dumps(outcome)}
