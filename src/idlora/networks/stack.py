# SPDX-License-Identifier: Apache-2.0
"""Several adapters in one transformer: identity, distilled and styles, each at a strength that a stage may change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from idlora.networks.adapter import IDENTITY, Adapter, AdapterWeights, inject_adapter

DISTILLED = "distilled"


class AdapterStack:
    """The adapters of a transformer by name."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self._adapters: dict[str, Adapter] = {}

    def add(self, name: str, weights: AdapterWeights, strength: float = 1.0) -> Adapter:
        """Put one more in, beside those that are there.

        Raises:
            WeightsError: it is one of another network, or there is one of that name.
        """
        self._adapters[name] = inject_adapter(self._transformer, weights, strength, name=name)
        return self._adapters[name]

    def get(self, name: str) -> Adapter | None:
        """The adapter of that name, if there is one."""
        return self._adapters.get(name)

    @property
    def strengths(self) -> dict[str, float]:
        """How strong each one is now."""
        return {name: adapter.strength for name, adapter in self._adapters.items()}

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
    def bare(self) -> Iterator[None]:
        """The transformer without any branches inside this context."""
        kept = {name: (adapter.weights(), adapter.strength) for name, adapter in self._adapters.items()}
        for adapter in self._adapters.values():
            adapter.remove()
        self._adapters = {}
        try:
            yield
        finally:
            for name, (weights, strength) in kept.items():
                self.add(name, weights, strength)
