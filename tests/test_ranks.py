# SPDX-License-Identifier: Apache-2.0
"""Passes shared out over processes: the same clip as one makes, each process with less to do."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import ranks_worker
import tiny_pipeline
from idlora.core.guidance import POSITIVE, Pass
from idlora.errors import SettingsError
from idlora.networks.ranks import Ranks, joined_ranks, shared_out
from idlora.pipeline import Settings
from idlora.pipeline.checks import check_ranks
from test_distributed import launched

CPU = torch.device("cpu")


@given(st.integers(1, 6), st.integers(0, 5), st.booleans())
def test_every_pass_has_one_home_and_the_sound_alone_is_with_the_positive_one(
    size: int, others: int, alone: bool
) -> None:
    plan = [Pass(POSITIVE), *(Pass(f"{number}") for number in range(others))]
    plan += [Pass("identity", reference=False, audio_only=True)] * alone
    shares = shared_out(plan, size)
    assert len(shares) == size
    assert sorted(run.name for share in shares for run in share) == sorted(run.name for run in plan)
    home = next(share for share in shares if plan[0] in share)
    assert all(run in home for run in plan if run.audio_only)
    full = [sum(not run.audio_only for run in share) for share in shares]
    assert max(full) - min(full) <= 1
    assert shares == shared_out(plan, size)


def test_without_a_launcher_there_is_no_group() -> None:
    assert joined_ranks({}, CPU) is None
    assert joined_ranks({"WORLD_SIZE": "1"}, CPU) is None


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR and MASTER_PORT is missing; start them with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT is missing"),
    ],
)
def test_a_group_of_which_only_part_is_told_is_refused(environment: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        joined_ranks(environment, CPU)


def test_a_group_that_cannot_be_joined_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"WORLD_SIZE": "2", "RANK": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="cannot join the other 1 processes"):
        joined_ranks(environment, CPU)


def test_several_processes_do_not_cache_by_the_first_block() -> None:
    pipe = tiny_pipeline.pipeline("2.3")
    check_ranks(Settings(first_block_cache=0.1), None)
    pipe.ranks = Ranks(0, 2)
    with pytest.raises(SettingsError, match="2 processes share them out; use --first-block-cache 0, or one process"):
        pipe(tiny_pipeline.PROMPT, settings=replace(tiny_pipeline.SETTINGS, first_block_cache=0.1))


@pytest.mark.skipif(sys.platform == "win32", reason="gloo as on POSIX")
def test_two_processes_make_the_clip_of_one(tmp_path: Path) -> None:
    (tmp_path / "together").mkdir()
    launched([ranks_worker.__file__, str(tmp_path / "together")], dict(os.environ))
    before = torch.get_num_threads()
    ranks_worker.main(tmp_path)
    torch.set_num_threads(before)
    alone = load_file(tmp_path / "0.safetensors")
    for rank in (0, 1):
        told = load_file(tmp_path / "together" / f"{rank}.safetensors")
        assert (told["video"].int() - alone["video"].int()).abs().max() <= 1
        assert torch.allclose(told["audio"], alone["audio"], atol=1e-4)
        assert told["blocks"] < alone["blocks"]
