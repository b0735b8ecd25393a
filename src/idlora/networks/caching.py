# SPDX-License-Identifier: Apache-2.0
"""First-block caching: where the first block does much as it did before, the others are taken to do so too.

An approximation, after FBCache (ParaAttention, 2024) and TeaCache (Liu et al. 2024): what blocks add to the hidden
states changes slowly from step to step, and the first block tells how fast.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from idlora.networks.blocks import Pair

States = Mapping[str, Pair]  # of every pass by its name: video and audio, (B, T, C)


class FirstBlock:
    """What the blocks added in the last step that went through all of them.

    Args:
        threshold: a step whose first block adds something that differs by less than this share of what it added then
            takes the rest from there. The stream that changed more decides.

    Attributes:
        taken: steps that were cut short.
        steps: all of them.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.taken = self.steps = 0
        self._first: dict[str, Pair] = {}  # what the first block added
        self._rest: dict[str, Pair] = {}  # what all others added

    def rest(self, before: States, after: States) -> dict[str, Pair] | None:
        """The states behind the last block, if they can be told from those before and behind the first one."""
        self.steps += 1
        added = {name: _minus(after[name], before[name]) for name in after}
        if not self._alike(added):
            self._first = added
            return None
        self.taken += 1
        return {name: _plus(after[name], self._rest[name]) for name in after}

    def remember(self, first: States, last: States) -> None:
        """What the other blocks added in a step that went through them."""
        self._rest = {name: _minus(last[name], first[name]) for name in last}

    def _alike(self, added: States) -> bool:
        if not all(name in self._rest and _same_shapes(pair, self._first[name]) for name, pair in added.items()):
            return False
        changes = [_change(*each) for name, pair in added.items() for each in zip(pair, self._first[name], strict=True)]
        return bool(torch.stack(changes).max() < self.threshold)


def _minus(one: Pair, other: Pair) -> Pair:
    return one[0] - other[0], one[1] - other[1]


def _plus(one: Pair, other: Pair) -> Pair:
    return one[0] + other[0], one[1] + other[1]


def _same_shapes(one: Pair, other: Pair) -> bool:
    return all(a.shape == b.shape for a, b in zip(one, other, strict=True))


def _change(now: Tensor, then: Tensor) -> Tensor:
    return (now - then).abs().mean(dtype=torch.float32) / then.abs().mean(dtype=torch.float32).clamp(min=1e-12)
