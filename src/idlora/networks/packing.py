# SPDX-License-Identifier: Apache-2.0
"""Linear layers of a transformer's blocks whose weights are kept in few bits, computed with and trained through."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from idlora.errors import SettingsError
from idlora.networks.autocast import autocast_dtype

Storage = Literal["full", "fp8", "fp8-scaled", "int8", "nf4"]
STORAGES: tuple[Storage, ...] = get_args(Storage)

_NF4_BLOCK = 64  # weights that share a scale
_INT8_STEPS = 127
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_TILE = 16  # of the sizes that fp8 kernels take
_FP8_CAPABILITY = (8, 9)  # of Ada; Hopper and Blackwell come after it


def stored_small(block: Any) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of a block whose weights are worth storing small, by name.

    Norms are few and sensitive; so are the branches of adapters, which come in float32 or bfloat16. What is
    stored small already is left out.
    """
    for name, module in block.named_modules():
        plain = isinstance(module, nn.Linear) and not isinstance(module, PackedLinear)
        if plain and "norm" not in name and "lora_" not in name:
            yield name, module


def stored_bytes(layer: nn.Linear, storage: Storage) -> int:
    """Bytes of a layer in a storage; the bias stays as it is in all of them."""
    count, size = layer.in_features * layer.out_features, layer.weight.element_size()
    bias = 0 if layer.bias is None else layer.out_features
    return {
        "full": count * size,
        "fp8": count,
        "fp8-scaled": count + 4 * layer.out_features,
        "int8": count + 4 * layer.out_features,
        "nf4": -(-count // 2) + 4 * -(-count // _NF4_BLOCK),
    }[storage] + bias * size


class _Form(NamedTuple):
    """What a packed weight is."""

    storage: Storage
    shape: torch.Size  # (out, in)


class PackedLinear(nn.Linear):
    """A frozen linear layer whose weight is kept in few bits; gradients go through it to its input.

    `fp8` rounds to e4m3, `int8` to 255 steps of each row, `nf4` to the 4-bit NormalFloat of Dettmers et al. 2023 with a
    scale for 64 weights; the last two are packed by bitsandbytes. The weight is unpacked for every use, forward and
    backward, and let go again. It is computed in the input's dtype, or in that of autocast where this is on.

    `fp8-scaled` rounds to e4m3 with a scale for each row, and so it does with each token that comes in: in bfloat16, on
    a GPU that multiplies e4m3 (Ada, Hopper and later), nothing is unpacked in the forward pass, and products are summed
    in the fewer bits of its fast mode. Elsewhere the same numbers are multiplied in the input's dtype, to which their
    scales are rounded: slower and coarser than `fp8`.
    Gradients go through the rounding as if there were none.

    Args:
        layer: what is packed; the bias is shared with it.
        storage: any but `full`.

    Raises:
        SettingsError: bitsandbytes is needed and not installed.
    """

    scales: Tensor | None

    def __init__(self, layer: nn.Linear, storage: Storage) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.storage = layer.in_features, layer.out_features, storage
        packed, scales = _packed(layer.weight.data, storage)
        # As integers, because `.to(dtype)` of a network and PEFT would convert floats: the bits are no numbers.
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales", None if scales is None else scales.view(torch.int32))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.data, requires_grad=False)

    @property
    def form(self) -> _Form:
        """How to unpack the weight."""
        return _Form(self.storage, torch.Size((self.out_features, self.in_features)))

    def forward(self, x: Tensor) -> Tensor:
        """What the layer was, with its weight rounded."""
        dtype = _compute_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        product: Tensor = _Product.apply(x.to(dtype), self.weight, self.scales, bias, self.form)
        return product

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) as it is computed with."""
        return _unpacked(self.weight.data, self.scales, self.form, dtype)


class _Product(torch.autograd.Function):
    """x W^T + b, of which the backward pass finds W packed: autograd would keep it in full for every layer."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, form: _Form) -> Tensor:
        if form.storage == "fp8-scaled" and scales is not None:
            return _scaled_product(x, weight, scales, bias, form)
        return F.linear(x, _unpacked(weight, scales, form, x.dtype), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        _, weight, scales, _, ctx.form = inputs
        ctx.save_for_backward(weight, scales)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, scales = ctx.saved_tensors
        return grad @ _unpacked(weight, scales, ctx.form, grad.dtype), None, None, None, None


def _scaled_product(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, form: _Form) -> Tensor:
    """Multiply x (..., in) by W^T and add b, all numbers in e4m3 with a scale for each token and each row of W."""
    rounded, sizes = _scaled(x.flatten(0, -2))
    product: Tensor
    if _multiplies_fp8(x, weight):
        weight, rows = weight.view(torch.float8_e4m3fn).t(), scales.view(torch.float32)[None]
        kernel = partial(torch._scaled_mm, use_fast_accum=True)  # its public name came in PyTorch 2.10
        product = kernel(rounded, weight, scale_a=sizes[:, None], scale_b=rows, bias=bias, out_dtype=x.dtype)
    else:
        kept = rounded.to(x.dtype).mul_(sizes.to(x.dtype)[:, None])
        product = F.linear(kept, _unpacked(weight, scales, form, x.dtype), bias)
    return product.view(*x.shape[:-1], -1)


def _multiplies_fp8(x: Tensor, weight: Tensor) -> bool:
    """Whether there is a kernel for it: PyTorch's gives bfloat16 and takes sizes that tiles of 16 cover."""
    fits = x.dtype == torch.bfloat16 and all(size % _TILE == 0 for size in weight.shape)
    return fits and x.is_cuda and torch.cuda.get_device_capability(x.device) >= _FP8_CAPABILITY


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, in) in e4m3 and their scales (N,) in float32: the largest number of each is the largest of e4m3."""
    scales = (rows.abs().amax(1).float() / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    wide = rows.to(torch.float32, copy=True).div_(scales[:, None]).clamp_(-_LARGEST, _LARGEST)
    return wide.to(torch.float8_e4m3fn), scales


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What F.linear would compute in; autograd functions are not subject to autocast."""
    return autocast_dtype(x.device.type) or x.dtype


def _unpacked(weight: Tensor, scales: Tensor | None, form: _Form, dtype: torch.dtype) -> Tensor:
    """The weight (out, in), a new tensor."""
    if scales is None:
        return weight.view(torch.float8_e4m3fn).to(dtype)
    scales = scales.view(torch.float32)
    if form.storage == "fp8-scaled":
        return weight.view(torch.float8_e4m3fn).to(dtype).mul_(scales.to(dtype)[:, None])
    if form.storage == "int8":
        return weight.to(dtype).mul_((scales / _INT8_STEPS).to(dtype)[:, None])
    # Its operator, which compiled code takes; the library is there, for it packed the weight.
    unpacked: Tensor = torch.ops.bitsandbytes.dequantize_4bit(weight, scales, _NF4_BLOCK, "nf4", form.shape, dtype)
    return unpacked


def _packed(weight: Tensor, storage: Storage) -> tuple[Tensor, Tensor | None]:
    """A weight (out, in) in few bits, and its scales in float32 if it has any."""
    if storage == "fp8":
        return weight.to(torch.float8_e4m3fn).view(torch.uint8), None
    if storage == "fp8-scaled":
        values, scales = _scaled(weight)
        return values.view(torch.uint8), scales
    if storage == "int8":
        values, scales, _ = _bitsandbytes().int8_vectorwise_quant(weight.to(_int8_input(weight.device)))
        return values, scales
    values, state = _bitsandbytes().quantize_4bit(
        weight, blocksize=_NF4_BLOCK, compress_statistics=False, quant_type="nf4"
    )
    return values, state.absmax


def _int8_input(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.float16  # what its kernels take


def _bitsandbytes() -> Any:
    try:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses optional kernels aloud
        from bitsandbytes import functional
    except ImportError as error:
        raise SettingsError(
            f"weights in int8 and nf4 need bitsandbytes, which is not here ({error}): pip install 'idlora[quant]', or "
            "keep them in fp8"
        ) from error
    return functional


def store_small(transformer: Any, storage: Storage, device: torch.device) -> None:
    """Keep the linear layers of the blocks in few bits between their uses; adapters stay as they are.

    Args:
        transformer: changed in place, without adapters yet.
        storage: how.
        device: where they are packed; the weights come back to where they were.
    """
    if storage == "full":
        return
    for block in transformer.transformer_blocks:
        for name, layer in list(stored_small(block)):
            home = layer.weight.device
            packed = PackedLinear(layer.to(device), storage).to(home)
            parent, _, child = name.rpartition(".")
            setattr(block.get_submodule(parent), child, packed)


def smaller_storage(storage: Storage) -> Storage | None:
    """The next storage that takes less; None after the smallest."""
    smaller: dict[Storage, Storage] = {"full": "fp8", "fp8": "nf4", "fp8-scaled": "nf4", "int8": "nf4"}
    return smaller.get(storage)
