# SPDX-License-Identifier: Apache-2.0
"""What autocast is set to, asked so that compiled code can ask as well."""

from __future__ import annotations

import torch


def autocast_dtype(kind: str) -> torch.dtype | None:
    """The dtype of autocast on a kind of device such as `cuda`; None where it is off or there is none.

    `torch.amp.is_autocast_available` would break the graph of compiled code in PyTorch 2.11.
    """
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
