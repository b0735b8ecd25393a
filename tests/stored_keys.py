# SPDX-License-Identifier: Apache-2.0
"""The published lists of names, shapes and configurations that several tests read."""

import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"


def stored(name: str) -> dict[str, Any]:
    """One JSON file of `golden/keys`."""
    data: dict[str, Any] = json.loads((GOLDEN / f"keys/{name}.json").read_text(encoding="utf-8"))
    return data
