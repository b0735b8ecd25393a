# SPDX-License-Identifier: Apache-2.0
"""Mining that is ended by SIGKILL within a stage, and a stage whose worker dies once. Other processes import it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from idlora.mining.scenes import scenes_of
from mined import mined


def killed_in(stage: str, videos: Path, out: Path) -> None:
    """Mine until something is known of a stage that was not known before."""

    def end(name: str, done: int, _total: int) -> None:
        if name == stage and done:
            os.kill(os.getpid(), signal.SIGKILL)

    mined(videos, out, notice=end)


def scenes_once(item: dict[str, Any]) -> dict[str, Any]:
    """The stage of scenes by processes, the first of which dies at the first file that it is given."""
    try:
        (Path(item["path"]).parents[1] / "died").touch(exist_ok=False)
    except FileExistsError:
        return scenes_of(item)
    os._exit(1)
