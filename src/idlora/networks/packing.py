# SPDX-License-Identifier: Apache-2.0
"""Linear layers of a transformer's blocks whose weights are kept in few bits and computed with as before."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idlora.errors import SettingsError

Storage = Literal["full", "fp8", "int8", "nf4"]
STORAGES: tuple[Storage, ...] = get_args(Storage)

_NF4_BLOCK = 64  # weights that share a scale
_INT8_STEPS = 127


def stored_small(block: Any) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of a block whose weights are worth storing small, by name.

    Norms are few and sensitive; so are the branches of adapters, which come in float32 or bfloat16.
    """
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear) and "norm" not in name and "lora_" not in name:
            yield name, module


def stored_bytes(layer: nn.Linear, storage: Storage) -> int:
    """Bytes of a layer in a storage; only fp8 keeps the bias smaller as well."""
    count, size = layer.in_features * layer.out_features, layer.weight.element_size()
    bias = 0 if layer.bias is None else layer.out_features
    return {
        "full": (count + bias) * size,
        "fp8": count + bias,
        "int8": count + 4 * layer.out_features + bias * size,
        "nf4": -(-count // 2) + 4 * -(-count // _NF4_BLOCK) + bias * size,
    }[storage]


class PackedLinear(nn.Linear):
    """A linear layer whose weight is kept as `int8` (a scale for each output) or `nf4` (a scale for 64 weights).

    nf4 is the 4-bit NormalFloat of Dettmers et al. 2023; both are packed by bitsandbytes. The weight is unpacked for
    every use and let go again.

    Raises:
        SettingsError: bitsandbytes is not installed.
    """

    scales: Tensor

    def __init__(self, layer: nn.Linear, storage: Storage) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.storage = layer.in_features, layer.out_features, storage
        packed, scales = _packed(layer.weight.data, storage)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales", scales)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """What the layer was, with its weight rounded."""
        return F.linear(x, self.unpacked(x.dtype), self.bias)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) as it is computed with."""
        if self.storage == "int8":
            return self.weight.to(dtype) * (self.scales / _INT8_STEPS).to(dtype)[:, None]
        library, shape = _bitsandbytes(), torch.Size((self.out_features, self.in_features))
        state = library.QuantState(self.scales, shape, blocksize=_NF4_BLOCK, quant_type="nf4", dtype=dtype)
        unpacked: Tensor = library.dequantize_4bit(self.weight, state)
        return unpacked


def _packed(weight: Tensor, storage: Storage) -> tuple[Tensor, Tensor]:
    """A weight (out, in) in few bits, and its scales in float32."""
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
        device: where `int8` and `nf4` are packed; the weights come back to where they were.
    """
    if storage == "fp8":
        _store_in_eight_bits(transformer)
    elif storage != "full":
        for block in transformer.transformer_blocks:
            _pack(block, storage, device)


def _pack(block: Any, storage: Storage, device: torch.device) -> None:
    for name, layer in list(stored_small(block)):
        home = layer.weight.device
        packed = PackedLinear(layer.to(device), storage).to(home)
        parent, _, child = name.rpartition(".")
        setattr(block.get_submodule(parent), child, packed)


def _store_in_eight_bits(transformer: Any) -> None:
    """Weights as float8 (e4m3) between their uses."""
    from diffusers.hooks import apply_layerwise_casting

    apply_layerwise_casting(
        transformer.transformer_blocks,
        storage_dtype=torch.float8_e4m3fn,
        compute_dtype=transformer.proj_in.weight.dtype,
        skip_modules_pattern=("norm", "lora_"),
    )


def smaller_storage(storage: Storage) -> Storage | None:
    """The next storage that takes less; None after the smallest."""
    smaller: dict[Storage, Storage] = {"full": "fp8", "fp8": "nf4", "int8": "nf4"}
    return smaller.get(storage)
