# SPDX-License-Identifier: Apache-2.0
"""Work that ends its process: the first time, every time, or never. Alone here, so that processes begin soon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from idlora.errors import InputError


def doubled(item: dict[str, Any]) -> dict[str, Any]:
    marker = Path(item["folder"]) / str(item["number"])
    if item["dies"] == "always":
        os._exit(1)
    if item["dies"] == "once" and not marker.exists():
        marker.touch()
        os._exit(1)
    if item["dies"] == "fault":
        raise InputError("no good; use another")
    return {"rows": [{"twice": 2 * item["number"]}]}
