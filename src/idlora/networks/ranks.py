# SPDX-License-Identifier: Apache-2.0
"""The passes of a guided step shared out over processes, each of which holds the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from idlora.core.guidance import POSITIVE, Pass
from idlora.core.reference import without_reference
from idlora.core.state import AVState
from idlora.errors import SettingsError
from idlora.networks.joint import Prediction

Run = Callable[[AVState, float, Sequence[Pass]], dict[str, Prediction]]
_START = "start them with torchrun, or unset WORLD_SIZE to work alone"
AUDIO_SHARE = 0.15  # of a pass's work that one on the audio alone has, at the published size


@dataclass(frozen=True)
class Ranks:
    """One process of a `torch.distributed` group that has been joined.

    All of them make the same clip from the same seed; each runs its own passes, and all then have all predictions.

    Attributes:
        rank: of this process, from 0.
        size: of the group.
    """

    rank: int
    size: int

    def predictions(self, run: Run, state: AVState, sigma: float, plan: Sequence[Pass]) -> dict[str, Prediction]:
        """Predictions of every pass of the plan by its name, in float32, the same in every process.

        Args:
            run: computes passes here (`Executor`).
            state: both streams, the same in every process.
            sigma: noise level.
            plan: all passes.
        """
        shares = shared_out(plan, self.size)
        own = run(state, sigma, shares[self.rank]) if shares[self.rank] else {}
        owners = {each.name: rank for rank, share in enumerate(shares) for each in share}
        return {each.name: self._told(own.get(each.name), state, each, owners[each.name]) for each in plan}

    def _told(self, own: Prediction | None, state: AVState, run: Pass, owner: int) -> Prediction:
        """What the owner of a pass predicted."""
        from torch import distributed

        seen = state if run.reference else without_reference(state)
        video, audio = seen.video.tokens, seen.audio.tokens
        parts = [torch.empty(each.shape, dtype=torch.float32, device=each.device) for each in (video, audio)]
        if own is not None:
            parts[0].copy_(own.video)
            parts[1].copy_(own.audio)
        for part in parts:
            distributed.broadcast(part, owner)
        return Prediction(*parts)


def shared_out(plan: Sequence[Pass], size: int) -> list[list[Pass]]:
    """The passes of each process: the longest first, each to whoever has least; the same in every process.

    A pass on the audio alone goes where the positive one with its adapter is, whose picture it hears.
    """
    shares: list[list[Pass]] = [[] for _ in range(size)]
    loads = [0.0] * size
    bound = [run for run in plan if run.audio_only]
    home = next((run for run in plan if run.name == POSITIVE), None)
    ordered = sorted((run for run in plan if not run.audio_only), key=lambda run: run is not home)
    for run in ordered:
        least = loads.index(min(loads))
        shares[least].append(run)
        loads[least] += 1 + (AUDIO_SHARE * len(bound) if run is home else 0)
    if bound:
        next((share for share in shares if home in share), shares[0]).extend(bound)
    return shares


def joined_ranks(environment: Mapping[str, str], device: torch.device) -> Ranks | None:
    """Join the group that a launcher such as torchrun has prepared; None where there is none, or only this process.

    Raises:
        SettingsError: the environment tells of a group in part only, or it cannot be joined.
    """
    size = _count(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        return None
    from torch import distributed

    if not distributed.is_initialized():
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise SettingsError(f"WORLD_SIZE is {size}, but {' and '.join(missing)} is missing; {_START}")
        try:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        except (ValueError, RuntimeError) as error:  # a number that is none, a port that is taken, nobody there
            raise SettingsError(f"cannot join the other {size - 1} processes ({error}); {_START}") from error
    return Ranks(distributed.get_rank(), size)


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise SettingsError(f"WORLD_SIZE is {text!r}, and must be a number of processes; {_START}")
    return int(text)
