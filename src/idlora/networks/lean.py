# SPDX-License-Identifier: Apache-2.0
"""Steps of a block with gradients of their own, which keep little for the backward pass.

They serve a network whose weights are frozen but for an adapter's; what is trained itself takes PyTorch's own way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from idlora.networks.autocast import autocast_dtype

Map = Callable[..., Tensor]


def is_lean(x: Tensor, *frozen: Any) -> bool:
    """Whether a gradient is wanted for x and none for these tensors and modules, and no compiler is at work."""
    if not torch.is_grad_enabled() or not x.requires_grad or torch.compiler.is_compiling():
        return False
    return not any(_wants_gradient(each) for each in frozen if each is not None)


def _wants_gradient(each: Any) -> bool:
    if isinstance(each, Tensor):
        return each.requires_grad
    return any(parameter.requires_grad for parameter in each.parameters())


def normed(norm: Any, x: Tensor, rows: Sequence[Tensor], then: Map, back: Map) -> Tensor:
    """then(norm(x), *rows), of which only x and the rows are kept.

    Args:
        norm: over the root mean square, of the last axis.
        x: (..., D).
        rows: tensors that `then` takes; they get no gradient.
        then: affine in its first argument.
        back: the transpose of its linear part: back(gradient, *rows).
    """
    if not is_lean(x, norm, *rows):
        return then(norm(x), *rows)
    out: Tensor = _Normed.apply(norm, then, back, x, *rows)
    return out


class _Normed(torch.autograd.Function):
    """See `normed`."""

    @staticmethod
    def forward(ctx: Any, norm: Any, then: Map, back: Map, x: Tensor, *rows: Tensor) -> Tensor:
        ctx.save_for_backward(x, *rows)
        ctx.norm, ctx.back = norm, back
        return then(norm(x.detach()), *rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, *rows = ctx.saved_tensors
        found = rms_gradient(ctx.norm, x, ctx.back(gradient, *rows))
        return None, None, None, found, *(None for _ in rows)


def rms_gradient(norm: Any, x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of x, with y = w x / rms(x): (h - y mean(h y)) / rms, where h = w gradient and y is without w."""
    if norm.weight is not None:
        gradient = gradient * norm.weight
    wide = torch.promote_types(x.dtype, torch.float32)
    y, h = x.to(wide), gradient.to(wide)
    eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
    inverse = torch.linalg.vecdot(y, y)[..., None].div_(x.shape[-1]).add_(eps).rsqrt_()
    share = torch.linalg.vecdot(h, y)[..., None].mul_(inverse * inverse).div_(-x.shape[-1])
    return torch.addcmul(h, y, share).mul_(inverse).to(x.dtype)


def gated_sum(x: Tensor, added: Tensor, gate: Tensor, spread: Map) -> Tensor:
    """The sum x + added * spread(gate), of which only the gate is kept.

    Args:
        x: (B, T, D).
        added: (B, T, D).
        gate: what `spread` makes (B, T or 1, D) of.
        spread: deterministic.
    """
    if not is_lean(added, gate):
        return torch.addcmul(x, added, spread(gate))
    out: Tensor = _GatedSum.apply(x, added, gate, spread)
    return out


class _GatedSum(torch.autograd.Function):
    """See `gated_sum`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor, gate: Tensor, spread: Map) -> Tensor:
        ctx.save_for_backward(gate)
        ctx.spread = spread
        return torch.addcmul(x, added, spread(gate))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (gate,) = ctx.saved_tensors
        return gradient, gradient * ctx.spread(gate), None, None


@dataclass(frozen=True, eq=False)
class Residual:
    """x + last(hidden(x, ...)) * gate(...) for each token by itself, where the hidden layer is wide.

    Attributes:
        hidden: (B, T, D) and the other inputs to (B, T, D_hidden).
        last: linear layer from there to D.
        gate: the other inputs to (B, T or 1, D).
        by_token: which of the other inputs are (B, T, ...); the rest is the same for all tokens, or None.
        parts: the tokens are computed in so many portions, so that less of the hidden layer is there at once.
    """

    hidden: Map
    last: Any
    gate: Map
    by_token: tuple[bool, ...]
    parts: int = 4

    def __call__(self, x: Tensor, *others: Tensor | None) -> Tensor:
        """Plainly."""
        hidden: Tensor = self.last(self.hidden(x, *others))
        return torch.addcmul(x, hidden, self.gate(*others))

    def lean(self, x: Tensor, *others: Tensor | None) -> Tensor:
        """With x and the others kept, nothing else; the others and all weights get no gradient.

        Where this is the last step inside a checkpoint it is not computed again as a whole, but the hidden layer alone.
        """
        kept = _Keep.apply(x, *others)
        out: Tensor = _Residual.apply(self, kept.grad_fn, kept, *others)
        return out

    def gradient(self, gradient: Tensor, x: Tensor, *others: Tensor | None) -> Tensor:
        """The gradient of x."""
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            hidden = self.hidden(leaf, *others)
        inner = _through(self.last, gradient * self.gate(*others), hidden)
        (found,) = torch.autograd.grad(hidden, leaf, inner)
        return found.add_(gradient)

    def portions(self, *inputs: Any) -> list[list[Any]]:
        """The inputs of each portion: those by token first, whatever their number, then the others."""
        apart = (True,) * (len(inputs) - len(self.by_token)) + self.by_token
        split = [
            each.detach().tensor_split(self.parts, dim=1) if each is not None and cut else [each] * self.parts
            for each, cut in zip(inputs, apart, strict=True)
        ]
        return [list(each) for each in zip(*split, strict=True)]


class _Keep(torch.autograd.Function):
    """Passes its first input on and keeps all, which can be had from its node.

    It is a node of its own so that inputs are kept BEFORE the function is computed: where a checkpoint is computed
    again, PyTorch stops as soon as it has all that was kept.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, *others: Tensor | None) -> Tensor:
        ctx.save_for_backward(first, *others)
        ctx.num_others = len(others)
        return first.view_as(first)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], *(None for _ in range(ctx.num_others))


class _Residual(torch.autograd.Function):
    """See `Residual.lean`."""

    @staticmethod
    def forward(ctx: Any, step: Residual, node: Any, *inputs: Any) -> Tensor:
        ctx.step, ctx.node = step, node
        ctx.arithmetic = arithmetic_of(inputs[0])
        return _joined(inputs[0], (step(*part) for part in step.portions(*inputs)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        inputs = ctx.node.saved_tensors
        with ctx.arithmetic():
            parts = ctx.step.portions(gradient, *inputs)
            found = _joined(inputs[0], (ctx.step.gradient(*part) for part in parts))
        return None, None, found, *(None for _ in inputs[1:])


def _joined(like: Tensor, parts: Iterable[Tensor]) -> Tensor:
    """The portions as one (B, T, D), none of them kept."""
    several = iter(parts)
    part = next(several)
    whole, done = part.new_empty(like.shape), 0
    while True:
        whole[:, done : done + part.shape[1]] = part
        done += part.shape[1]
        if done == like.shape[1]:
            return whole
        part = next(several)


def _through(layer: Any, gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of a linear layer's input x; of an ordinary layer without computing it forward."""
    if type(layer) is torch.nn.Linear:
        return (gradient @ layer.weight).to(x.dtype)
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        out = layer(leaf)
    found: Tensor = torch.autograd.grad(out, leaf, gradient)[0]
    return found


def arithmetic_of(tensor: Any) -> Callable[[], AbstractContextManager[Any]]:
    """What makes the autocast context that is on now, without its cache of casts, which would keep them."""
    kind = tensor.device.type
    if kind == "meta":
        return nullcontext
    dtype = autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype, enabled=dtype is not None, cache_enabled=False)
