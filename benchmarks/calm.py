# SPDX-License-Identifier: Apache-2.0
"""Benchmarks side by side, each of which takes its time alone.

    export CALM=/tmp/calm
    python benchmarks/step.py 2.3 --scale full --device cuda ... & python benchmarks/rehearsal.py 2.3 ... & wait

They load, compile and warm up together; while one of them measures, the others are halted (SIGSTOP), and go on when it
is done or dies. All that name the same folder wait for one another; without the variable nobody does.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

_RESUME = """
import os, signal, sys
sys.stdin.read()
for number in sys.argv[1:]:
    try:
        os.kill(int(number), signal.SIGCONT)
    except OSError:
        pass
"""
_SETTLE = 0.2  # seconds until what others began on a GPU is done
_mine: list[IO[str]] = []  # open for as long as this process lives: its lock tells that it does


def join() -> None:
    """Be one of those that wait for one another, if the variable CALM names their folder."""
    if _mine or not (folder := _folder()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{os.getpid()}.alive"
    _mine.append(path.open("w"))
    fcntl.flock(_mine[0], fcntl.LOCK_EX)
    atexit.register(path.unlink, missing_ok=True)


@contextmanager
def calm() -> Iterator[None]:
    """Nobody else of the folder works inside this context."""
    if not (folder := _folder()):
        yield
        return
    join()
    with (folder / "turn.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        others = _others(folder)
        # Another process sets them going again, at the end of its input: that comes even if this one is killed.
        command = [sys.executable, "-S", "-c", _RESUME, *(str(each.pid) for each in others)]
        with subprocess.Popen(command, stdin=subprocess.PIPE):  # noqa: S603 - numbers of processes
            for each in others:
                with suppress(psutil.Error):
                    each.suspend()
            time.sleep(_SETTLE)
            yield


def _folder() -> Path | None:
    name = os.environ.get("CALM")
    return Path(name) if name else None


def _others(folder: Path) -> list[psutil.Process]:
    """All of the folder but this process, with theirs: compilers work in processes of their own."""
    found = list[psutil.Process]()
    for path in folder.glob("*.alive"):
        number = int(path.stem)
        if number != os.getpid() and _lives(path):
            with suppress(psutil.Error):
                process = psutil.Process(number)
                found += [process, *process.children(recursive=True)]
    return found


def _lives(path: Path) -> bool:
    """Whether the process that holds the file still does: numbers of processes come again."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
