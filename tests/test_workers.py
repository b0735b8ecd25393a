# SPDX-License-Identifier: Apache-2.0
"""Clips judged by several processes or by Ray: the same verdicts as in one, and a process that dies stops no other."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from idlora.data.media import write_wav
from idlora.data.prompt import Prompt
from idlora.errors import SettingsError
from idlora.evaluation.judges import Footage, Reference
from idlora.evaluation.judges.levels import LevelsJudge
from idlora.evaluation.laboratory.manifest import Entry
from idlora.evaluation.laboratory.workers import Task, judged
from idlora.evaluation.store import Values
from signals import RATE, tone


class Deadly(LevelsJudge):
    """Levels, but one clip ends the process, as a fault in a codec may."""

    def score(self, clip: Footage, reference: Reference, prompt: Prompt | None) -> Values:
        if reference.said == "kill":
            os._exit(1)
        return super().score(clip, reference, prompt)


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    found: list[Task] = []
    for index in range(3):
        write_wav(tmp_path / f"{index}.wav", tone(1.0, 300 + 100 * index, gain=0.1 + 0.1 * index), RATE)
        entry = Entry(str(index), "x", tmp_path / f"{index}.wav", "anna", said="kill" if index == 1 else "")
        found.append((entry, ("levels",)))
    return found


def test_several_processes_agree_with_one_and_survive_the_death_of_one(tasks: list[Task]) -> None:
    alone = dict(judged(tasks, {"levels": LevelsJudge()}))
    assert list(alone) == [0, 1, 2]
    told = dict(judged(tasks, {"levels": Deadly()}, workers=2))
    assert told[1] == {"levels": {"unjudged": "the process that judged it died", "again": True}}
    assert (told[0], told[2]) == (alone[0], alone[2])
    assert all("values" in outcome["levels"] for outcome in alone.values())


def test_ray_agrees_with_one_process(tasks: list[Task]) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    judges = {"levels": LevelsJudge()}
    assert dict(judged(tasks, judges, workers=2, ray=True)) == dict(judged(tasks, judges))


def test_without_ray_its_option_is_refused(monkeypatch: pytest.MonkeyPatch, tasks: list[Task]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match="needs ray"):
        list(judged(tasks, {"levels": LevelsJudge()}, ray=True))
