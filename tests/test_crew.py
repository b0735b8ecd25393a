# SPDX-License-Identifier: Apache-2.0
"""`idlora reproduce` by several processes: the rows of one, and a task that kills costs itself alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from fake_lab import TINY, FakeMaker, lab, opened, rows_in
from idlora.evaluation.reproduction import run
from idlora.evaluation.reproduction.crew import Crew
from idlora.evaluation.reproduction.run import reproduce


@pytest.mark.parametrize("dies", ["once", "each time"])
def test_a_crew_finds_the_same_and_loses_only_what_kills(
    dies: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "drawings", lambda *_: [])  # plots take most of the time of such small calls
    extent = replace(TINY, batch=TINY.speakers)
    whole, out, deadly = (tmp_path / name for name in ("whole", "out", "deadly"))
    reproduce(lab(FakeMaker()), extent, whole)
    deadly.write_text(dies)
    elsewhere = FakeMaker(broken=tuple(range(TINY.speakers)))  # nothing is made in this process
    reproduce(lab(elsewhere), extent, out, crew=Crew(partial(opened, extent, deadly), 2))
    lost = {
        row["claim"]
        for row in rows_in(out)
        if row["remark"] == "no clip could be made and judged in this call; call again"
    }
    assert len(lost) == (0 if dies == "once" else 3)
    found, expected = ([row for row in rows_in(folder) if row["claim"] not in lost] for folder in (out, whole))
    assert [{**row, "command": ""} for row in found] == [{**row, "command": ""} for row in expected]
    assert ("its process died each time" in (out / "results.md").read_text(encoding="utf-8")) == (dies != "once")
    again = FakeMaker()
    reproduce(lab(again), extent, out)
    assert again.made == ([] if dies == "once" else ["cascade"] * TINY.speakers)
