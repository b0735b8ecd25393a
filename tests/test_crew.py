# SPDX-License-Identifier: Apache-2.0
"""`idlora reproduce` by several processes: the rows of one, and a task that kills costs itself alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fake_lab import TINY, FakeMaker, lab, opened, rows_in
from idlora.evaluation.reproduction import run
from idlora.evaluation.reproduction.crew import Crew
from idlora.evaluation.reproduction.run import reproduce

EXTENT = replace(TINY, batch=TINY.speakers)


@pytest.fixture(scope="module", autouse=True)
def _undrawn() -> Iterator[None]:
    """Plots take most of the time of such small calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "drawings", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process finds."""
    out = tmp_path_factory.mktemp("alone")
    reproduce(lab(FakeMaker()), EXTENT, out)
    return rows_in(out)


@pytest.mark.parametrize("dies", ["once", "each time"])
def test_a_crew_finds_the_same_and_loses_only_what_kills(
    dies: str, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    out, deadly = tmp_path / "out", tmp_path / "deadly"
    deadly.write_text(dies)
    elsewhere = FakeMaker(broken=tuple(range(TINY.speakers)))  # nothing is made in this process
    reproduce(lab(elsewhere), EXTENT, out, crew=Crew(partial(opened, EXTENT, deadly), 2))
    found = rows_in(out)
    lost = {row["claim"] for row, own in zip(alone, found, strict=True) if row["n"] and not own["n"]}
    assert len(lost) == (0 if dies == "once" else 1)  # where the one judge that there is would have done
    kept = [[{**row, "command": ""} for row in rows if row["claim"] not in lost] for rows in (found, alone)]
    assert kept[0] == kept[1]
    assert ("its process died each time" in (out / "results.md").read_text(encoding="utf-8")) == (dies != "once")
    again = FakeMaker()
    reproduce(lab(again), EXTENT, out)
    assert again.made == ([] if dies == "once" else ["cascade"] * TINY.speakers)
