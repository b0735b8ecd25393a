# SPDX-License-Identifier: Apache-2.0
"""What every test shares: one thread, so that results and times do not depend on the machine; no network."""

import os

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray has it so; else its processes wait behind all others

# No deadline: the machines that run this are shared. No database: a checkout stays as it was.
settings.register_profile("idlora", deadline=None, max_examples=40, derandomize=True, database=None)
settings.load_profile("idlora")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDLORA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
