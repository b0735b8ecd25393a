# SPDX-License-Identifier: Apache-2.0
"""The state of a run in one file: adapter, average, optimiser and step; every draw is a function of the step.

A file appears whole or not at all, so that a run killed at any moment goes on from the last one.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from idlora.errors import TrainingError
from idlora.files import write_tensors

logger = logging.getLogger(__name__)

_PATTERN = re.compile(r"state-(\d+)\.safetensors")
# What `files.replacing`, and inside it safetensors, call a file until it is whole; a killed process leaves it behind.
_LEFTOVER = re.compile(
    r"\.(state-\d+|best|adapter|log|config)\.[0-9a-f]{12}\.(safetensors|jsonl|yaml)|\.tmp[0-9A-Za-z]{6}"
)


@dataclass(frozen=True, eq=False)
class State:
    """What a run consists of beside its configuration.

    Attributes:
        parameters: of the adapter, by name.
        average: their running average; may be empty.
        optimizer: of these parameters.
        step: how many steps are done.
        best: the best measure so far, by name.
        size: samples a step, over all processes; 0 = not known.
        data: of each folder that is trained on the number of samples, and the digest of which they are; empty = not
            known.
    """

    parameters: Mapping[str, nn.Parameter]
    average: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    best: Mapping[str, float] = field(default_factory=dict)
    size: int = 0
    data: tuple[tuple[int, str], ...] = ()


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its shards; every process must ask for it."""
    gather = getattr(tensor, "full_tensor", None)
    found: Tensor = tensor.detach() if gather is None else gather().detach()
    return found


def like(value: Tensor, shaped: Tensor) -> Tensor:
    """A whole tensor, sharded and placed as another is."""
    mesh = getattr(shaped, "device_mesh", None)
    if mesh is None or value.shape != shaped.shape:
        return value.to(shaped.device)
    from torch.distributed.tensor import distribute_tensor

    found: Tensor = distribute_tensor(value.to(shaped.device), mesh, shaped.placements)  # type: ignore[attr-defined]
    return found


@dataclass(frozen=True)
class Checkpoints:
    """The states of a run in a folder.

    Args:
        folder: made if missing.
        keep_last: so many stay.
        write: whether this process writes; the others only take part in gathering.
    """

    folder: Path
    keep_last: int = 3
    write: bool = True

    def files(self) -> list[Path]:
        """The states, the newest first."""
        names = {path: _PATTERN.fullmatch(path.name) for path in self.folder.glob("state-*.safetensors")}
        steps = {path: int(found[1]) for path, found in names.items() if found}
        return sorted(steps, key=steps.__getitem__, reverse=True)

    def save(self, state: State) -> None:
        """Write a state, then let the oldest go.

        Raises:
            OutputError: the disk is full or the folder not writable; earlier states are as they were.
        """
        tensors, numbers = _flat(state)
        if not self.write:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        told = {
            "step": str(state.step),
            "size": str(state.size),
            "numbers": json.dumps(numbers),
            "best": json.dumps(dict(state.best)),
            "data": json.dumps(state.data),
        }
        written = self.folder / f"state-{state.step:06d}.safetensors"
        write_tensors(written, tensors, told)
        others = [path for path in self.files() if path != written]
        for path in others[self.keep_last - 1 :]:
            path.unlink(missing_ok=True)

    def load(self, state: State) -> State | None:
        """Put the newest readable state into parameters, average and optimiser; None if there is none.

        What a killed process left half written is removed; damaged states newer than that are set aside, since they
        would count among the newest that stay.

        Raises:
            TrainingError: it is one of other parameters, or all of them are damaged.
        """
        self._sweep()
        files = self.files()
        for number, path in enumerate(files):
            try:
                stored = _read(path)
            except (OSError, SafetensorError, LookupError, ValueError, TypeError) as error:
                logger.warning("%s is damaged (%s); going on from the one before", path, error)
            else:
                self._set_aside(files[:number])
                return _restored(path, stored, state)
        if files:
            raise TrainingError(
                f"every state in {self.folder} is damaged; put one back from a copy, or choose another folder (out)"
            )
        return None

    def _set_aside(self, damaged: Sequence[Path]) -> None:
        for path in damaged if self.write else ():
            with suppress(OSError):  # it is told already, and does no harm
                path.replace(path.with_name(f"{path.name}.damaged"))

    def _sweep(self) -> None:
        if self.write and self.folder.is_dir():
            for path in self.folder.iterdir():
                if _LEFTOVER.fullmatch(path.name):
                    path.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class _Stored:
    """What a file of a state holds."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]
    step: int
    best: Mapping[str, float]
    size: int
    data: tuple[tuple[int, str], ...]


def _flat(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the numbers of the optimiser that are none; copies, since some share memory."""
    tensors: dict[str, Tensor] = {f"adapter/{name}": each for name, each in state.parameters.items()}
    tensors |= {f"average/{name}": each for name, each in state.average.items()}
    numbers = {}
    for name, parameter in state.parameters.items():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{key}/{name}"] = value
            else:
                numbers[f"{key}/{name}"] = value
    return {key: whole(value).to("cpu", copy=True).contiguous() for key, value in tensors.items()}, numbers


def _read(path: Path) -> _Stored:
    """All of a file, before any of it is used: a damaged one must leave no trace in the parameters."""
    with safe_open(path, "pt") as file:
        told = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    numbers, best = json.loads(told["numbers"]), json.loads(told["best"])
    data = tuple((int(count), str(digest)) for count, digest in json.loads(told.get("data", "[]")))
    return _Stored(tensors, numbers, int(told["step"]), best, int(told.get("size", 0)), data)


@torch.no_grad()
def _restored(path: Path, stored: _Stored, state: State) -> State:
    tensors = stored.tensors
    wanted = {f"adapter/{name}": each.shape for name, each in state.parameters.items()}
    wanted |= {f"average/{name}": state.parameters[name].shape for name in state.average}
    if wanted != {key: each.shape for key, each in tensors.items() if not key.startswith("optimizer/")}:
        raise TrainingError(f"{path} is the state of another adapter; choose another folder to train in")
    for name, parameter in state.parameters.items():
        parameter.copy_(like(tensors[f"adapter/{name}"], parameter))
        if name in state.average:
            state.average[name].copy_(like(tensors[f"average/{name}"], parameter))
    inner: dict[str, dict[str, Any]] = {name: {} for name in state.parameters}
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            entry, _, name = rest.partition("/")
            inner[name][entry] = like(value, state.parameters[name])
    for rest, number in stored.numbers.items():
        entry, _, name = rest.partition("/")
        inner[name][entry] = number
    for name, entries in inner.items():
        if entries:
            state.optimizer.state[state.parameters[name]] = entries
    told = stored.step, stored.best, stored.size, stored.data
    return State(state.parameters, state.average, state.optimizer, *told)
