# SPDX-License-Identifier: Apache-2.0
"""Raw recordings of a hundred speakers to an adapter: an hour on two cores, so it runs where it is asked for.

IDLORA_CHAIN=1 .venv/bin/python -m pytest -n0 tests/test_chain.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "pairs_chain.py"


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("IDLORA_CHAIN") != "1", reason="takes an hour; IDLORA_CHAIN=1 runs it")
def test_mined_pairs_train_an_adapter_that_brings_unseen_voices_nearer(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--work", str(tmp_path)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert told["speakers"] >= 5
    assert told["speaker-world"]["low"] > 0
