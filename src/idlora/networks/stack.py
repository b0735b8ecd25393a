# SPDX-License-Identifier: Apache-2.0
"""Several adapters in one transformer: identity, distilled and styles, each at a strength that a stage may change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from idlora.errors import WeightsError
from idlora.networks.adapter import IDENTITY, Adapter, AdapterWeights, check_adapter, fuse_adapter, inject_adapter

DISTILLED = "distilled"


class AdapterStack:
    """The adapters of a transformer by name.

    Args:
        transformer: where they work; None if it is still to come, then they wait for `attach`.
        shapes: makes a network without weights for adapters to be checked against while they wait.
    """

    def __init__(self, transformer: Any, shapes: Callable[[], Any] | None = None) -> None:
        self._transformer, self._shapes = transformer, shapes
        self._adapters: dict[str, Adapter] = {}
        self._waiting: dict[str, tuple[AdapterWeights, float]] = {}
        self._fused: dict[str, float] = {}
        self._to_fuse: list[str] = []

    def attach(self, transformer: Any) -> None:
        """Put those that wait into the transformer that has come."""
        self._transformer = transformer
        waiting, self._waiting = self._waiting, {}
        for name, (weights, strength) in waiting.items():
            self.add(name, weights, strength)
        to_fuse, self._to_fuse = self._to_fuse, []
        for name in to_fuse:
            self.fuse(name)

    def fuse(self, name: str) -> None:
        """Add an adapter to the weights for good, at its strength; it is no branch any more.

        Raises:
            WeightsError: the weights are kept in few bits.
        """
        if self._transformer is None:
            self._to_fuse.append(name)
        elif name in self._adapters:
            adapter = self._adapters.pop(name)
            weights, self._fused[name] = adapter.weights(), adapter.strength
            adapter.remove()
            fuse_adapter(self._transformer, weights, adapter.strength, keep=False)

    @property
    def fused(self) -> frozenset[str]:
        """Those that are in the weights, or will be."""
        return frozenset(self._fused) | frozenset(self._to_fuse)

    def add(self, name: str, weights: AdapterWeights, strength: float = 1.0) -> None:
        """Put one more in, beside those that are there.

        Raises:
            WeightsError: it is one of another network, or there is one of that name.
        """
        if name in self._fused:
            raise WeightsError(f"there is an adapter {name!r} in the weights already; give this one another name")
        if self._transformer is not None:
            self._adapters[name] = inject_adapter(self._transformer, weights, strength, name=name)
            return
        if self._shapes is not None:
            check_adapter(self._shapes(), weights)
        if name in self._waiting:
            raise WeightsError(f"there is an adapter {name!r} already; give this one another name")
        self._waiting[name] = weights, strength

    def adopt(self, adapter: Adapter) -> None:
        """Take in one that somebody put into the transformer, and goes on training."""
        self._adapters[adapter.name] = adapter

    def get(self, name: str) -> Adapter | None:
        """The adapter of that name, if it is in the transformer."""
        return self._adapters.get(name)

    @property
    def strengths(self) -> dict[str, float]:
        """How strong each one is now, or will be."""
        waiting = {name: strength for name, (_, strength) in self._waiting.items()}
        return waiting | self._fused | {name: adapter.strength for name, adapter in self._adapters.items()}

    @contextmanager
    def at(self, strengths: Mapping[str, float]) -> Iterator[None]:
        """Other strengths inside this context; adapters not named keep theirs, names without an adapter do nothing."""
        with ExitStack() as stack:
            for name, strength in strengths.items():
                if name in self._adapters:
                    stack.enter_context(self._adapters[name].at(strength))
            yield

    def without_identity(self) -> AbstractContextManager[None]:
        """The network without the identity adapter inside this context; the others stay."""
        identity = self.get(IDENTITY)
        return nullcontext() if identity is None else identity.disabled()

    @contextmanager
    def exchanged(self, name: str, weights: AdapterWeights) -> Iterator[None]:
        """Another adapter at full strength in the place of one, or of none, inside this context.

        Raises:
            WeightsError: it is one of another network, or the one of that name is in the weights.
        """
        kept = self._adapters.pop(name, None)
        before = None if kept is None else (kept.weights(), kept.strength)
        if kept is not None:
            kept.remove()
        try:
            self.add(name, weights)
            yield
        finally:
            if name in self._adapters:
                self._adapters.pop(name).remove()
            if before is not None:
                self.add(name, *before)

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The transformer without any branches inside this context; what is fused stays."""
        kept = {name: (adapter.weights(), adapter.strength) for name, adapter in self._adapters.items()}
        for adapter in self._adapters.values():
            adapter.remove()
        self._adapters = {}
        try:
            yield
        finally:
            for name, (weights, strength) in kept.items():
                self.add(name, weights, strength)
