# SPDX-License-Identifier: Apache-2.0
"""The block function compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from idlora.errors import SettingsError
from idlora.networks.blocks import Pair, block_forward

_MOST_FORMS = 64  # of a block that is compiled


def compiled_block(settings: dict[str, Any]) -> Callable[..., Pair]:
    """The compiled block function, which tells in words that it cannot be compiled."""
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException

    # Passes differ in options and sizes, and what is over the limit runs uncompiled without a word.
    config.recompile_limit = max(config.recompile_limit, _MOST_FORMS)
    compiled: Callable[..., Pair] = torch.compile(block_forward, **settings)

    def run(*inputs: Any) -> Pair:
        try:
            return compiled(*inputs)
        except TorchDynamoException as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise SettingsError(
                f"the blocks cannot be compiled here ({reason}): that takes a C++ compiler, on a GPU Triton as well; "
                "install them, or leave compiling out"
            ) from error

    return run
