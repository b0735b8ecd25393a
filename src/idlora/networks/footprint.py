# SPDX-License-Identifier: Apache-2.0
"""How much memory tensors take while networks run, in bytes; on the meta device without computing anything."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

_QUESTIONS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
_CONVOLUTION = torch.ops.aten.convolution.default
_SINGLE = 4  # bytes
_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # keeps one float32 for each query, as all do
# What the counter of PyTorch does not know: operations of that attention, forward and backward.
ATTENTION_FLOPS: Mapping[Any, Any] = {
    _FUSED: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value)
    ),
}


def tensors_of(module: Any) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def weight_bytes(module: Any) -> int:
    """Bytes of parameters and buffers; what is shared counts once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors_of(module)}
    return sum(storages.values())


class Footprint(TorchDispatchMode):
    """Inside this context, the bytes of tensors that came into being there and are still alive.

    It counts what PyTorch hands out, and of what kernels take for themselves while they work the one large part: in
    half precision cuDNN's convolutions turn what they read and write to channels-last order in memory of their own.
    Asked for the value of a tensor on the meta device, it says False, which is the answer that takes the longer way
    everywhere in this package.

    Args:
        modules: networks whose weights are there already.

    Attributes:
        alive: now.
        peak: the most so far.
    """

    def __init__(self, modules: Iterable[Any] = ()) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for module in modules for tensor in tensors_of(module)}
        self._attention = fused_attention()

    def __enter__(self) -> Self:
        self._attention.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._attention.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it returns."""
        if func in _QUESTIONS and args[0].is_meta:
            return False
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        if func is _CONVOLUTION and out.dtype.itemsize < _SINGLE:
            self.peak = max(self.peak, self.alive + args[0].nbytes + out.nbytes)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


@contextmanager
def fused_attention() -> Iterator[None]:
    """On the meta device attention takes what the fused kernels take: the scores are never there as a whole.

    The function itself is replaced, since a mode rests in a backward pass, where blocks are computed again.
    """
    real = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        if not query.is_meta:
            return real(query, key, value, attn_mask, **options)
        attended: Tensor = _FUSED(query, key, value, attn_mask=attn_mask)[0]
        return attended

    F.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real
