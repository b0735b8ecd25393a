# SPDX-License-Identifier: Apache-2.0
"""Attention in two halves, so that keys and values can serve many queries; modules and kernels are diffusers' own.

In training it keeps queries and keys as they are before norm and rotation, and what the fused kernel gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_ltx2 import apply_interleaved_rotary_emb, apply_split_rotary_emb
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from idlora.networks.kernels import or_without_cudnn, proven_kernels
from idlora.networks.lean import arithmetic_of, is_lean, normed, rms_gradient

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class _Turn:
    """Norm and rotation of queries or keys (B, T, D)."""

    norm: Any
    split: bool
    rotary: Rotary | None

    def __call__(self, x: Tensor) -> Tensor:
        return normed(self.norm, x, self.rotary or (), self._rotated, self._back)

    def gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of x."""
        return rms_gradient(self.norm, x, self._back(gradient, *(self.rotary or ())))

    def before(self, other: _Turn) -> _Turn:
        """That of queries or keys with others behind them; tokens are the last axis but one of rotary tables."""
        if self.rotary is None or other.rotary is None:
            return self
        first, second = (torch.cat(parts, dim=-2) for parts in zip(self.rotary, other.rotary, strict=True))
        return _Turn(self.norm, self.split, (first, second))

    def _rotated(self, x: Tensor, *rotary: Tensor) -> Tensor:
        if not rotary:
            return x
        rotated: Tensor = (apply_split_rotary_emb if self.split else apply_interleaved_rotary_emb)(x, rotary)
        return rotated

    def _back(self, gradient: Tensor, *rotary: Tensor) -> Tensor:
        """A rotation's transpose turns the other way."""
        return self._rotated(gradient, rotary[0], -rotary[1]) if rotary else gradient


class KeysValues(NamedTuple):
    """What queries meet."""

    key: Tensor  # (B, S, D)
    value: Tensor  # (B, S, D)
    turn: _Turn | None = None  # what the keys still need, in training alone

    def turned(self) -> KeysValues:
        """With keys that need nothing more."""
        return self if self.turn is None else KeysValues(self.turn(self.key), self.value)


def joined(first: KeysValues, second: KeysValues) -> KeysValues:
    """What stands in front, and then what stands behind it, of one attention."""
    if first.turn is None or second.turn is None:
        first, second = first.turned(), second.turned()
    turn = None if first.turn is None or second.turn is None else first.turn.before(second.turn)
    key, value = (torch.cat(parts, dim=1) for parts in zip(first[:2], second[:2], strict=True))
    return KeysValues(key, value, turn)


def keys_values(attention: Any, context: Tensor, rotary: Rotary | None = None) -> KeysValues:
    """Keys and values of a `LTX2Attention` for a context (B, S, D_context)."""
    key, turn = _prepared(attention, attention.norm_k, attention.to_k(context), rotary)
    return KeysValues(key, attention.to_v(context), turn)


def attend(
    attention: Any,
    x: Tensor,
    memory: KeysValues,
    bias: Tensor | None = None,
    rotary: Rotary | None = None,
    long: bool = False,
) -> Tensor:
    """What a `LTX2Attention` makes of queries x (B, T, D) with keys and values that are there already, (B, T, D).

    Args:
        attention: the modules.
        x: (B, T, D).
        memory: of the context.
        bias: (B, 1 or T, S), added to the scores.
        rotary: turns the queries.
        long: one of those that `keeping_long` is about.
    """
    query, turn = _prepared(attention, attention.norm_q, attention.to_q(x), rotary)
    if turn is None and memory.turn is None:
        attended = _weighed(attention, bias, query, memory.key, memory.value)
    else:
        step = _Step(attention, bias, (turn, memory.turn, None), long)
        attended = _Attention.apply(step, query, memory.key, memory.value)
    return projected(attention, x, attended)


def projected(attention: Any, x: Tensor, attended: Tensor) -> Tensor:
    """Gate by the queries' input x, if the generation has gates, and output projection of heads (B, T, H, D_head)."""
    if attention.to_gate_logits is not None:
        attended = attended * (2 * torch.sigmoid(attention.to_gate_logits(x)))[..., None]
    out: Tensor = attention.to_out[0](attended.flatten(2))
    return out


def _prepared(attention: Any, norm: Any, x: Tensor, rotary: Rotary | None) -> tuple[Tensor, _Turn | None]:
    """Queries or keys as they are compared, or as they are kept for the backward pass and how they are to be turned.

    Plain products keep scores and take long to be computed again: they keep their inputs too.
    """
    turn = _Turn(norm, attention.rope_type == "split", rotary)
    if is_lean(x, norm) and torch.backends.cuda.flash_sdp_enabled():  # which goes for every device
        return x, turn
    return turn(x), None


def _weighed(attention: Any, bias: Tensor | None, *inputs: Tensor) -> Tensor:
    """Values by heads (B, T, H, D_head), weighed by how queries and keys agree; inputs are (B, T or S, D)."""
    query, key, value = (each.unflatten(2, (attention.heads, -1)) for each in inputs)

    def run() -> Tensor:
        made: Tensor = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=None if bias is None else bias[:, None],
            backend=attention.processor._attention_backend if bias is None else AttentionBackendName.NATIVE,
            parallel_config=attention.processor._parallel_config,
        )
        return made

    with nullcontext() if bias is None else proven_kernels(query.device):
        return or_without_cudnn(run).to(query.dtype)


class _Step(NamedTuple):
    """How queries, keys and values come together."""

    attention: Any
    bias: Tensor | None
    turns: tuple[_Turn | None, ...]
    long: bool

    def turned(self, inputs: Iterable[Tensor], wanted: Iterable[bool]) -> list[Tensor]:
        """Queries, keys and values as the kernel takes them: the beginnings of a graph."""
        made = (each if turn is None else turn(each) for each, turn in zip(inputs, self.turns, strict=True))
        return [each.detach().requires_grad_(want) for each, want in zip(made, wanted, strict=True)]

    def weighed(self, turned: Iterable[Tensor], kernel: _Kernel) -> Tensor:
        """With a graph in both passes, on which the choice of the kernel depends, and what it gives."""
        with torch.enable_grad(), kernel:
            return _weighed(self.attention, self.bias, *turned)


class _Attention(torch.autograd.Function):
    """Turns queries and keys and weighs values.

    What autograd needs is made again in the backward pass, by the same operations, but for the kernel: there, what it
    gave before takes its place. A kernel that is not known as fused is computed again.
    """

    @staticmethod
    def forward(ctx: Any, step: _Step, *inputs: Tensor) -> Tensor:
        ctx.step, ctx.arithmetic = step, arithmetic_of(inputs[0])
        kept = _KEPT.get() if step.long else None
        kernel = _Kernel([] if kept is None else kept.known())
        with ctx.arithmetic():
            out = step.weighed(step.turned(inputs, ctx.needs_input_grad[1:]), kernel).detach()
        if kept is not None:
            kept.take(kernel.results)
        leaves, ctx.form = tree_flatten(kernel.results)
        ctx.numbers = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(*inputs, *(leaf if isinstance(leaf, Tensor) else None for leaf in leaves))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        step, wanted = ctx.step, ctx.needs_input_grad[1:]
        query, key, value, *saved = ctx.saved_tensors
        leaves = [number if each is None else each for each, number in zip(saved, ctx.numbers, strict=True)]
        with ctx.arithmetic():
            turned = step.turned((query, key, value), wanted)
            out = step.weighed(turned, _Kernel(tree_unflatten(leaves, ctx.form)))
            found = iter(torch.autograd.grad(out, [each for each in turned if each.requires_grad], gradient))
            del out, turned
            gradients = [next(found) if want else None for want in wanted]
            return None, *(
                each if each is None or turn is None else turn.gradient(x, each)
                for x, each, turn in zip((query, key, value), gradients, step.turns, strict=True)
            )


_FUSED = (
    "flash_attention",
    "flash_attention_for_cpu",
    "efficient_attention",
    "cudnn_attention",
    "fused_attention_overrideable",
)
_KERNELS = frozenset(getattr(torch.ops.aten, f"_scaled_dot_product_{name}").default for name in _FUSED)


class _Kernel(TorchDispatchMode):
    """Around attention: gives the fused kernel's results if they are known, else notes them.

    Attributes:
        results: of each run of a kernel.
    """

    def __init__(self, known: list[Any]) -> None:
        super().__init__()
        self._known = iter(known)
        self.results: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, if it must be."""
        if func not in _KERNELS:
            return func(*args, **(kwargs or {}))
        known = next(self._known, None)
        made = func(*args, **(kwargs or {})) if known is None else known
        self.results.append(made)
        # Others than are kept: what is returned gets its graph in place, and would be kept in a circle.
        return tree_map_only(Tensor, Tensor.detach, made)


def keeping_long() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a checkpoint's two passes: what long attention gave in the first is not computed again."""
    results: list[list[Any]] = []
    return _Keeping(results, again=False), _Keeping(results, again=True)


class _Keeping(AbstractContextManager[None]):
    """A pass of a checkpoint, and the results of its long attentions one after the other."""

    def __init__(self, results: list[list[Any]], *, again: bool) -> None:
        self._results, self._again = results, again
        self._left: Iterator[list[Any]] = iter(())

    def __enter__(self) -> None:
        self._left = iter(self._results if self._again else ())
        self._before = _KEPT.set(self)

    def __exit__(self, *_error: object) -> None:
        _KEPT.reset(self._before)

    def known(self) -> list[Any]:
        """Results of the attention that comes next."""
        return next(self._left, [])

    def take(self, results: list[Any]) -> None:
        """Keep them in the first pass."""
        if not self._again:
            self._results.append(results)


_KEPT: ContextVar[_Keeping | None] = ContextVar("_KEPT", default=None)
