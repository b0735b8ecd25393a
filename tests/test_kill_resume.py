# SPDX-License-Identifier: Apache-2.0
"""A run that is killed with SIGKILL wherever it may be, and resumed, ends with the bits of one that never was."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a matter of POSIX")


@pytest.fixture
def kill_resume(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark; its processes find it by the same path."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("kill_resume")


def test_killed_and_resumed_runs_have_the_same_bits(kill_resume: Any, tmp_path: Path) -> None:
    told = kill_resume.rehearse(tmp_path, runs=3, seed=1)
    assert (told["identical"], told["different"]) == (3, {})
    assert sum(told["kills_by_phase"].values()) == told["kills"] == len(told["steps_at_kill"])
    assert min(told["kills_by_run"]) >= 1
    # Of the two runs that nobody killed: the comparison sees a single bit of any kind.
    whole, other = tmp_path / "whole", tmp_path / "first"
    assert kill_resume.differences(whole, other) == []
    state = f"state-{kill_resume.STEPS:06d}.safetensors"
    for kind in ("adapter/", "average/", "optimizer/exp_avg_sq/"):
        flip(other / state, kind)
    (other / ".tmpABCDEF").touch()
    (other / "log.jsonl").write_text((whole / "log.jsonl").read_text().replace('"step": 1,', '"step": 9,'))
    found = kill_resume.differences(whole, other)
    starts = (
        "log.jsonl",
        f"{state}: adapter/",
        f"{state}: average/",
        f"{state}: metadata",
        f"{state}: optimizer/",
        ".tmp",
    )
    assert [name.startswith(start) for name, start in zip(found, starts, strict=True)] == [True] * len(starts)


def flip(path: Path, kind: str) -> None:
    """Turn the lowest bit of the first tensor of that kind, and lose the metadata."""
    tensors = load_file(path)
    name = next(key for key in sorted(tensors) if key.startswith(kind))
    tensors[name].reshape(-1)[:1].view(torch.int32).bitwise_xor_(1)
    save_file(tensors, path)
