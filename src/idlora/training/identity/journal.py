# SPDX-License-Identifier: Apache-2.0
"""What a run says of itself: `log.jsonl` always, TensorBoard where it is installed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idlora.errors import OutputError
from idlora.files import write_text
from idlora.training.identity.module import StepLosses

logger = logging.getLogger(__name__)

LOG_NAME = "log.jsonl"
SIGMA_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass
class Tally:
    """Losses since the last line of the log, kept where they were computed: reading them would make a GPU wait."""

    totals: list[Tensor] = field(default_factory=list)  # (3,): total, video, audio
    samples: list[Tensor] = field(default_factory=list)  # (B, 3): sigma, video, audio
    tokens: int = 0

    def add(self, losses: StepLosses, sigmas: Tensor, tokens: int) -> None:
        """Add a batch."""
        self.totals.append(torch.stack([losses.total, losses.video, losses.audio]).detach().float())
        by_sample = (sigmas, losses.video_by_sample, losses.audio_by_sample)
        self.samples.append(torch.stack([each.detach().float() for each in by_sample], dim=1))
        self.tokens += tokens

    def values(self) -> tuple[Tensor, Tensor]:
        """Mean losses (3,) and the samples (N, 3)."""
        return torch.stack(self.totals).mean(0), torch.cat(self.samples)


def by_sigma(samples: Tensor) -> dict[str, float]:
    """Mean losses of samples (N, 3) of sigma, video and audio loss, by quarter of sigma; quarters without any are left out."""  # noqa: E501
    found = {}
    sigma = samples[:, 0]
    for low, high in pairwise(SIGMA_EDGES):
        inside = samples[(sigma >= low) & ((sigma < high) | (high == 1.0))]
        if len(inside):
            for column, name in ((1, "video"), (2, "audio")):
                found[f"loss_{name}/sigma {low:g}-{high:g}"] = float(inside[:, column].mean())
    return found


class Journal:
    """Lines of a run's log, and the same for TensorBoard.

    Args:
        folder: of the run; lines are added to a log that is there.
        first: the step to go on from; later lines of a run that was killed are dropped.
        write: whether this process writes; the others are silent.
    """

    def __init__(self, folder: Path, first: int = 0, *, write: bool = True) -> None:
        self.path, self._write = folder / LOG_NAME, write
        self._board = _tensorboard(folder / "tensorboard", first) if write else None
        if write:
            self._drop_after(first)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._board is not None:
            # On a full disk it cannot write what it holds, which must not hide the fault that ended the run.
            with suppress(OSError):
                self._board.close()

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if (found := _step_in(line)) is not None and found <= step]
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def line(self, step: int, values: Mapping[str, float]) -> None:
        """Values after a step.

        Raises:
            OutputError: the log cannot be written.
        """
        if not self._write:
            return
        with _writing(self.path):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """A picture (H, W, 3) after a step, for TensorBoard alone."""
        if self._board is not None:
            with _writing(self.path):
                self._board.add_image(name, pixels, step, dataformats="HWC")

    def sound(self, step: int, name: str, samples: NDArray[np.float32], rate: int) -> None:
        """A sound (N,) after a step, for TensorBoard alone."""
        if self._board is not None:
            with _writing(self.path):
                self._board.add_audio(name, torch.from_numpy(samples)[None].clamp(-1, 1), step, rate)


def read_log(folder: Path) -> Sequence[Mapping[str, float]]:
    """The lines of a run's log."""
    path = folder / LOG_NAME
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; free space, then resume") from error


def _step_in(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # cut short when the process was killed
        return None


def _tensorboard(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("TensorBoard is not installed (pip install 'idlora[train]'); %s has it all", LOG_NAME)
        return None
    with _writing(folder):
        return SummaryWriter(str(folder), purge_step=first + 1)
