# SPDX-License-Identifier: Apache-2.0
"""Tensors of all blocks of a transformer as one: names and offsets of a small adapter are an eighth of its file."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_EVERY = "transformer_blocks.*."


def stacked_blocks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What blocks 0, 1, ... all have in one shape and type as one tensor (blocks, ...), `*` for the number."""
    blocks: dict[str, dict[int, Tensor]] = {}
    for key, value in tensors.items():
        if found := re.fullmatch(r"(.*transformer_blocks\.)(\d+)(\..*)", key):
            blocks.setdefault(f"{found[1]}*{found[3]}", {})[int(found[2])] = value
    whole = {
        key: torch.stack([several[block] for block in range(len(several))])
        for key, several in blocks.items()
        if set(several) == set(range(len(several))) and len({(v.shape, v.dtype) for v in several.values()}) == 1
    }
    within = unstacked(whole).keys()
    return whole | {key: value for key, value in tensors.items() if key not in within}


def unstacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `stacked_blocks`; what is not stacked stays."""
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if _EVERY in key and value.dim():
            found.update((key.replace("*", str(block)), each) for block, each in enumerate(value))
        else:
            found[key] = value
    return found
