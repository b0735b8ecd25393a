# SPDX-License-Identifier: Apache-2.0
"""One resumable training loop for every stage of the miniature.

The batch of a step is a function of the seed and the step's number, so a resumed run sees what it would have seen.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from idlora.errors import TrainingError
from idlora.files import write_tensors

logger = logging.getLogger(__name__)

Losses = dict[str, Tensor]
Report = Callable[[int, dict[str, float]], None]


def silent(_step: int, _values: dict[str, float]) -> None:
    """A report that says nothing."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: optimiser steps, peak learning rate with warm-up and cosine decay, EMA and checkpoints."""

    steps: int
    learning_rate: float = 2e-3
    warmup: int = 100
    ema: float = 0.998
    max_grad_norm: float = 1.0
    weight_decay: float = 0.01
    save_every: int = 200
    seed: int = 0

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at a step: linear warm-up, then cosine to 2 %."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        return warm * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, self.steps)))))


@dataclass
class Trainer:
    """Trains the parameters of `model` that require gradients and keeps an exponential average of them.

    Args:
        model: any module; `loss` closes over it.
        loss: losses of a step by name; "loss" is the one that is minimised.
        folder: where `state.safetensors` is kept.
        bf16: compute the losses in mixed precision; weights, averages and optimiser stay float32.
    """

    model: nn.Module
    loss: Callable[[int], Losses]
    schedule: Schedule
    folder: Path
    report: Report = silent
    bf16: bool = False
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Set up the optimiser and continue from the folder's state if there is one."""
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=self.schedule.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=self.schedule.weight_decay,
            fused=True,
        )
        if self.state_file.exists():
            self._load()

    @property
    def _device(self) -> str:
        return next(iter(self.parameters.values())).device.type

    def _attention(self) -> AbstractContextManager[None]:
        """On a CPU the fused attention's backward pass takes a third of a step at this size; plain products do not."""
        return sdpa_kernel(SDPBackend.MATH) if self._device == "cpu" else nullcontext()

    @property
    def state_file(self) -> Path:
        """File of the resumable state."""
        return self.folder / "state.safetensors"

    def run(self) -> None:
        """Train to the end of the schedule; Ctrl-C saves the state and re-raises."""
        started, seen = time.monotonic(), self.step
        try:
            while self.step < self.schedule.steps:
                values = self._advance()
                values["seconds_a_step"] = (time.monotonic() - started) / (self.step - seen)
                self.report(self.step, values)
                if self.step % self.schedule.save_every == 0:
                    self.save()
        finally:
            self.save()

    def _advance(self) -> dict[str, float]:
        rate = self.schedule.learning_rate * self.schedule.factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self._device, torch.bfloat16, enabled=self.bf16), self._attention():
            losses = self.loss(self.step)
        if not torch.isfinite(losses["loss"]):
            raise TrainingError(f"the loss at step {self.step} is {losses['loss'].item()}; resume with a lower rate")
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), self.schedule.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average()
        self.step += 1
        return {name: float(value.detach()) for name, value in losses.items()} | {"norm": float(norm), "rate": rate}

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        averaged, current = list(self.average.values()), list(self.parameters.values())
        torch._foreach_lerp_(averaged, [p.detach() for p in current], 1.0 - decay)

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the model, for saving or evaluation."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.average[name])

    def save(self) -> None:
        """Write weights, average, optimiser and step, atomically."""
        tensors = {f"model/{name}": p.detach().contiguous() for name, p in self.parameters.items()}
        tensors |= {f"average/{name}": p.contiguous() for name, p in self.average.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = value.contiguous()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self.state_file, tensors, {"step": str(self.step)})

    @torch.no_grad()
    def _load(self) -> None:
        with safe_open(self.state_file, "pt") as stored:
            self.step = int(stored.metadata()["step"])
            keys = set(stored.keys())
            for name, parameter in self.parameters.items():
                parameter.copy_(stored.get_tensor(f"model/{name}"))
                self.average[name].copy_(stored.get_tensor(f"average/{name}"))
                state = {key: f"optimizer/{key}/{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
                if state["step"] in keys:
                    self.optimizer.state[parameter] = {key: stored.get_tensor(at) for key, at in state.items()}
        logger.info("resumed at step %d from %s", self.step, self.state_file)
