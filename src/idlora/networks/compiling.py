# SPDX-License-Identifier: Apache-2.0
"""The block function compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from idlora.errors import SettingsError, first_line
from idlora.networks.blocks import BlockOptions, Pair, StreamInputs, Streams, block_forward

_MOST_FORMS = 64  # of a block that is compiled
_BIASES = ("text_bias", "key_bias", "before_bias")


def compiled_block(settings: dict[str, Any]) -> Callable[..., Pair]:
    """The compiled block function, which tells in words that it cannot be compiled.

    Numbers of tokens are left open from the first call on, so that references, texts and clips of other lengths meet
    what is compiled already; with `dynamic=False` in the settings each length is compiled for itself.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException

    # Passes differ in options and sizes, and what is over the limit runs uncompiled without a word.
    config.recompile_limit = max(config.recompile_limit, _MOST_FORMS)
    fixed = settings.get("dynamic") is False
    compiled: Callable[..., Pair] = torch.compile(block_forward if fixed else _counted_forward, **settings)

    def run(*inputs: Any) -> Pair:
        try:
            return compiled(*(inputs if fixed else _opened(*inputs)))
        except TorchDynamoException as error:
            raise SettingsError(
                f"the blocks cannot be compiled here ({first_line(error)}): that takes a C++ compiler, on a GPU Triton "
                "as well; install them, or leave compiling out"
            ) from error

    return run


def _counted_forward(
    block: Any, xs: Pair, streams: Streams, options: BlockOptions, counts: Iterable[Tensor | None]
) -> Pair:
    """The block function, some of whose options are sizes of empty tensors."""
    hidden, textless = (0 if each is None else each.shape[0] for each in counts)
    return block_forward(block, xs, streams, options._replace(hidden_keys=hidden, textless=textless))


def _opened(block: Any, xs: Pair, streams: Streams, options: BlockOptions) -> tuple[Any, ...]:
    """The inputs of a block as those of `_counted_forward`, numbers of tokens left open.

    Options that count tokens become sizes of empty tensors, since a number would be compiled in.
    """
    counts = [_open(torch.empty(n, 1), 0) if n else None for n in (options.hidden_keys, options.textless)]
    hidden, given = tree_map_only(Tensor, _tokens_open, (xs, streams))
    return block, hidden, tuple(map(_biases_open, given)), options._replace(hidden_keys=0, textless=0), counts


def _tokens_open(tensor: Tensor) -> Tensor:
    """Tokens are the last axis but one of everything."""
    # Whether a tensor is a view of another would be compiled in too; hidden states are one in the first block alone.
    return _open(tensor if torch.is_grad_enabled() else tensor.data, -2)


def _biases_open(stream: StreamInputs) -> StreamInputs:
    """Keys are the last axis of what is added to scores."""
    for bias in (getattr(stream, name) for name in _BIASES):
        if bias is not None:
            _open(bias, -1)
    return stream


def _open(tensor: Tensor, axis: int) -> Tensor:
    """Leave a size open where the operations allow it; a size of 1 is never left open."""
    torch._dynamo.maybe_mark_dynamic(tensor, axis % tensor.ndim)
    return tensor
