# SPDX-License-Identifier: Apache-2.0
"""The optimiser of a run, and the running average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from idlora.errors import SettingsError
from idlora.training.identity.config import Optimization

Parameters = Mapping[str, nn.Parameter]


def make_optimizer(parameters: Parameters, options: Optimization, *, sharded: bool = False) -> torch.optim.Optimizer:
    """The optimiser of named parameters.

    Raises:
        SettingsError: eight bits are wanted and bitsandbytes is not installed.
    """
    values: dict[str, Any] = {
        "lr": options.learning_rate,
        "betas": tuple(options.betas),
        "weight_decay": options.weight_decay,
    }
    if options.optimizer == "adamw":
        return torch.optim.AdamW(list(parameters.values()), fused=not sharded, **values)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise SettingsError(
            f"adamw8bit needs bitsandbytes, which is not here ({error}): pip install 'idlora[quant]', or take adamw"
        ) from error
    found: torch.optim.Optimizer = AdamW8bit(list(parameters.values()), **values)
    return found


class Average:
    """An exponential running average of parameters; its decay grows to `decay`, so that early weights are forgotten.

    Args:
        parameters: by name.
        decay: 0 = the average is the parameters themselves.
    """

    def __init__(self, parameters: Parameters, decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = {name: each.detach().clone() for name, each in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step`, counted from 1."""
        if self.values:
            decay = min(self.decay, (1 + step) / (10 + step))
            current = [each.detach() for each in self.parameters.values()]
            torch._foreach_lerp_(list(self.values.values()), current, 1.0 - decay)

    def best(self) -> Mapping[str, Tensor]:
        """What is worth saving: the average, or the parameters where there is none."""
        return self.values or self.parameters

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters have the average's values inside this context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self.values.items():
            before = self.parameters[name].detach().clone()
            self.parameters[name].copy_(value)
            value.copy_(before)
