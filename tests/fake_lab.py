# SPDX-License-Identifier: Apache-2.0
"""A laboratory whose clips are levels and whose judge reads them back; in processes of their own too."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from idlora.data.prompt import Prompt
from idlora.errors import InputError
from idlora.evaluation.judges import Footage, JudgeRecord, Reference
from idlora.evaluation.reproduction.arms import Arm, Extent
from idlora.evaluation.reproduction.run import Laboratory
from idlora.evaluation.reproduction.studio import Studio
from idlora.evaluation.reproduction.trials import Owner
from idlora.evaluation.store import Values
from idlora.pipeline import Request, Settings

TINY = Extent("quick", speakers=5, prompts=1, steps=1, scales=(0.0, 1.0, 3.0), seconds=(1.0, 4.0), batch=3, held_out=4)
KEYS = {"claim", "paper", "ours", "interval", "n", "verdict", "command"}
GOODNESS = {"base": 0.5, "cascade": 0.6, "scale 0": 0.65, "reference 1 s": 0.6}  # planted similarity; else 0.8


@dataclass
class FakeMaker:
    """Sounds that carry what a judge is to say of them: the planted similarity as their level."""

    broken: tuple[int, ...] = ()
    stops_at: str = ""
    deadly: Path | None = None  # while this file is there, making the cascade ends the process
    made: list[str] = field(default_factory=list)

    def make(self, arm: Arm, requests: Sequence[Request], adapter: Path | None = None) -> list[Footage]:
        assert (adapter is None) == (arm.adapter == "")
        if arm.name == self.stops_at:
            raise KeyboardInterrupt
        if arm.name == "cascade" and self.deadly is not None and self.deadly.exists():
            if self.deadly.read_text() == "once":
                self.deadly.unlink()
            os._exit(1)
        if any(request.settings.seed in self.broken for request in requests):
            raise InputError("this clip is broken")
        self.made += [arm.name] * len(requests)
        return [self._clip(arm, request.settings.seed) for request in requests]

    def _clip(self, arm: Arm, seed: int) -> Footage:
        level = GOODNESS.get(arm.name, 0.8) - 0.1 * arm.adapter.startswith("shared")
        level *= 1 + 0.01 * (seed % 5 - 2)  # arms differ by other amounts for other speakers, on the mean as planted
        return Footage(samples=np.full(16_000, level, np.float32))

    def losses(self, who: int, settings: Settings, adapter: Path | None = None) -> Values:
        assert adapter is None or adapter.is_file()
        worse = 0.05 * (settings.reference_time == "far")
        return {"right": 0.2 + worse + 0.001 * who, "wrong": 0.3 + worse + 0.001 * who}


class LevelJudge:
    """Reads the planted similarity back."""

    record = JudgeRecord("level", "1", "sounds of these tests alone")

    def score(self, clip: Footage, reference: Reference, prompt: Prompt | None) -> Values:
        assert prompt is not None
        assert reference.truth is not None
        return {"truth": float(clip.sound[0]), "similarity": float(clip.sound[0])}


def lab(maker: FakeMaker) -> Laboratory:
    return Laboratory(maker, Settings(), Owner({"model": "0" * 64}, {"speaker": LevelJudge()}))


def rows_in(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return found


def opened(extent: Extent, deadly: Path) -> Studio:
    """Of a process of a crew."""
    return Studio(FakeMaker(deadly=deadly), Settings(), extent, {"speaker": LevelJudge()})
