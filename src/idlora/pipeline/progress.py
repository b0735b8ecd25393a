# SPDX-License-Identifier: Apache-2.0
"""A bar that shows how far a generation is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idlora.core.samplers import Callback, Step


@contextmanager
def progress_bar(title: str = "denoising") -> Iterator[Callback]:
    """A bar on stderr, moved by the callback that comes with it; nothing where that is no terminal.

    `with progress_bar() as callback: pipe(prompt, callback=callback)`.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def moved(step: Step) -> None:
            bar.update(task, total=step.num_steps, completed=step.number)

        yield moved
        bar.update(task, completed=bar.tasks[0].total)  # a step is told of before it is taken
