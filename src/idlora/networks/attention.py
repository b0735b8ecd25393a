# SPDX-License-Identifier: Apache-2.0
"""Attention with the modules of diffusers' `LTX2Attention`, which keeps less for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from idlora.networks.lean import arithmetic_of, is_lean, rms_gradient

Rotary = tuple[Tensor, Tensor]


def attend(
    attention: Any,
    x: Tensor,
    context: Tensor,
    rotary: tuple[Rotary, Rotary] | None,
    bias: Tensor | None,
    long: bool = False,
) -> Tensor:
    """Attention of x (B, T, D) to a context (B, S, D_context), which may be x itself.

    Args:
        attention: a `LTX2Attention`.
        x: gives queries and gates.
        context: gives keys and values.
        rotary: of the queries and of the keys.
        bias: (B, 1 or T, S) added to the scores.
        long: one of those that `keeping_long` is about.
    """
    query_rotary, key_rotary = rotary or (None, None)
    frozen = attention.norm_q, attention.norm_k
    if is_lean(x, *frozen) or is_lean(context, *frozen):
        return _lean(attention, x, context, _Core(attention, query_rotary, key_rotary, bias, long))
    attended: Tensor = attention(
        x,
        encoder_hidden_states=None if context is x else context,
        attention_mask=bias,
        query_rotary_emb=query_rotary,
        key_rotary_emb=key_rotary,
    )
    return attended


_Kept = tuple[list[Tensor], bool]
_KEPT: ContextVar[_Kept | None] = ContextVar("_KEPT", default=None)


def keeping_long() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a checkpoint's two passes: what long attention gave in the first is not computed again."""
    outputs: list[Tensor] = []
    return _keeping((outputs, False)), _keeping((outputs, True))


@contextmanager
def _keeping(kept: _Kept) -> Iterator[None]:
    outputs, again = kept
    before = _KEPT.set((outputs[::-1], again) if again else kept)
    try:
        yield
    finally:
        _KEPT.reset(before)


@dataclass(frozen=True, eq=False)
class _Core:
    """Queries and keys after norm and rotation, and the weighted sum of values."""

    attention: Any
    query_rotary: Rotary | None
    key_rotary: Rotary | None
    bias: Tensor | None
    long: bool

    def turned(self, query: Tensor, key: Tensor) -> list[Tensor]:
        """Queries and keys (B, T or S, D) as they are compared."""
        norms = self.attention.norm_q(query), self.attention.norm_k(key)
        return [self._rotate(*each) for each in zip(norms, self._rotaries, strict=True)]

    def gradients(self, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """From those of what `turned` gives to those of its inputs: a rotation's transpose turns the other way."""
        norms = self.attention.norm_q, self.attention.norm_k
        return [
            None if each is None else rms_gradient(norm, x, self._rotate(each, rotary and (rotary[0], -rotary[1])))
            for norm, x, each, rotary in zip(norms, inputs, gradients, self._rotaries, strict=True)
        ]

    @property
    def _rotaries(self) -> tuple[Rotary | None, Rotary | None]:
        return self.query_rotary, self.key_rotary

    def _rotate(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        from diffusers.models.transformers import transformer_ltx2 as ltx

        if rotary is None:
            return x
        split = self.attention.rope_type == "split"
        turned: Tensor = (ltx.apply_split_rotary_emb if split else ltx.apply_interleaved_rotary_emb)(x, rotary)
        return turned

    def summed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The kernel, (B, T, D)."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        mask, heads = None, self.attention.heads
        if self.bias is not None:
            mask = self.attention.prepare_attention_mask(self.bias, key.shape[1], len(key))
            mask = mask.view(len(key), heads, -1, mask.shape[-1])
        split = (each.unflatten(2, (heads, -1)) for each in (query, key, value))
        backend = self.attention.processor._attention_backend
        out: Tensor = dispatch_attention_fn(*split, attn_mask=mask, backend=backend)
        return out.flatten(2, 3)


def _lean(attention: Any, x: Tensor, context: Tensor, core: _Core) -> Tensor:
    out: Tensor = _Attention.apply(core, attention.to_q(x), attention.to_k(context), attention.to_v(context))
    if attention.to_gate_logits is not None:
        gates = 2.0 * attention.to_gate_logits(x).sigmoid()
        out = (out.unflatten(2, (attention.heads, -1)) * gates[..., None]).flatten(2)
    projected: Tensor = attention.to_out[0](out)
    return projected


class _Attention(torch.autograd.Function):
    """Norm, rotation and attention of queries, keys and values, all (B, T or S, D) and kept as they are given."""

    @staticmethod
    def forward(ctx: Any, core: _Core, *inputs: Tensor) -> Tensor:
        kept = _KEPT.get() if core.long else None
        outputs, again = kept or ([], False)
        ctx.core, ctx.arithmetic = core, arithmetic_of(inputs[0])
        if again:
            ctx.save_for_backward(*inputs)
            return outputs.pop().detach()
        kernel = ctx.kernel = _Kernel(core, inputs, ctx.needs_input_grad[1:])
        output, own = kernel.release()
        if kept is not None:
            outputs.append(output.detach())
            ctx.own, own = own, []
        ctx.save_for_backward(*inputs, *own)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *own = ctx.saved_tensors
        with ctx.arithmetic():
            turned = ctx.core.turned(query, key)
            *compared, values = ctx.kernel.backward(gradient, (*turned, value), own or ctx.own)
            del turned, own
            return None, *ctx.core.gradients((query, key), compared), values


class _Kernel:
    """A run of the attention kernel whose graph lets go of its inputs until the backward pass brings them again."""

    def __init__(self, core: _Core, inputs: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        query, key, value = (each.detach() for each in inputs)
        turned = [*core.turned(query, key), value]
        self._store = _Store()
        with torch.enable_grad():
            anchor = torch.zeros((), requires_grad=True)
            begun = [_Source.apply(anchor, each) if want else each for each, want in zip(turned, wanted, strict=True)]
            with saved_tensors_hooks(self._store.packer(begun), self._store.unpack):
                out = core.summed(*begun)
        self._begun = [get_gradient_edge(each) if want else None for each, want in zip(begun, wanted, strict=True)]
        self._out = get_gradient_edge(out)
        self.output = out.detach()

    def release(self) -> tuple[Tensor, list[Tensor]]:
        """Hand over the output, and what else is to be brought for the backward pass."""
        output, own = self.output, list(self._store.own)
        del self.output
        self._store.own.clear()
        return output, own

    def backward(self, gradient: Tensor, inputs: Sequence[Tensor], own: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients of the turned queries and keys, and of the values."""
        self._store.inputs = inputs
        self._store.own.extend(own)
        asked = [edge for edge in self._begun if edge is not None]
        found = iter(torch.autograd.grad(self._out, asked, gradient))
        self._store.inputs = ()
        self._store.own.clear()
        return [None if edge is None else next(found) for edge in self._begun]


class _Store:
    """What a kernel keeps: views of its inputs by their number, all else as it is.

    It does not know the kernel: the graph holds it, and a circle through a graph is never freed.
    """

    def __init__(self) -> None:
        self.inputs: Sequence[Tensor] = ()
        self.own: list[Tensor] = []

    def packer(self, inputs: Sequence[Tensor]) -> Callable[[Tensor], Any]:
        """What puts a tensor away."""
        storages = [each.untyped_storage()._cdata for each in inputs]

        def pack(tensor: Tensor) -> Any:
            storage = tensor.untyped_storage()._cdata
            if storage in storages:
                return storages.index(storage), (tensor.shape, tensor.stride(), tensor.storage_offset())
            self.own.append(tensor.detach())
            return len(self.own) - 1, None

        return pack

    def unpack(self, packed: Any) -> Tensor:
        """The tensor again."""
        index, view = packed
        tensor: Tensor = self.own[index] if view is None else self.inputs[index].as_strided(*view)
        return tensor


class _Source(torch.autograd.Function):
    """A tensor as the beginning of a graph that does not hold it."""

    @staticmethod
    def forward(_ctx: Any, _anchor: Tensor, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(_ctx: Any, *_gradients: Tensor) -> tuple[None, None]:
        return None, None
