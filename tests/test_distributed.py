# SPDX-License-Identifier: Apache-2.0
"""Two processes that train together do what one does alone: copies of the model (DDP), and shards of it (FSDP2)."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny_training
import train_worker
from idlora.errors import SettingsError
from idlora.training.identity.config import Engine

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
STATES = ("state-000002.safetensors", "state-000004.safetensors")
Tensors = dict[str, torch.Tensor]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and signals as on POSIX")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_training.store(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, whose first gradient lies beside its states."""
    from safetensors.torch import save_file

    out = tmp_path_factory.mktemp("alone")
    made = tiny_training.trainer(train_worker.config(out, data, train_worker.GLOBAL_BATCH))
    save_file(train_worker.gradient(made), out / "gradient.safetensors")
    made.run()
    return out


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(out: Path, data: Path, extra: dict[str, str]) -> dict[str, Any]:
    """Two processes of the worker; what they told."""
    launched([train_worker.__file__, str(out), str(data), "2"], {**os.environ, **extra})
    told: dict[str, Any] = json.loads((out / "facts.json").read_text())
    return told


def launched(worker: list[str], environment: dict[str, str]) -> None:
    """Two processes of a script with its arguments, to their end."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [*start, *worker]
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, errors = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:  # one waits for the other
            process.terminate()  # torch.distributed.run ends its processes
            raise
    assert process.returncode == 0, errors[-3000:]


def apart(ours: Tensors, theirs: Tensors) -> float:
    """Largest difference of any entry, relative to the largest entry of all."""
    assert ours.keys() == theirs.keys()
    largest = max(float(each.abs().max()) for each in theirs.values())
    return max(float((ours[name] - each).abs().max()) for name, each in theirs.items()) / largest


def adapter(path: Path) -> Tensors:
    return {name: each for name, each in load_file(path).items() if name.startswith("adapter/")}


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_do_what_one_does(sharded: bool, alone: Path, data: Path, tmp_path: Path) -> None:
    begun = tmp_path / "resumed"
    begun.mkdir()
    shutil.copy(alone / STATES[0], begun)
    told = together(tmp_path, data, FSDP if sharded else {})
    resumed_and_stopped = {"resumed_at": 2, "stopped_at": 1}
    if sharded:
        # Each process holds half; a block's parameters come together when it is called, again in the backward pass.
        assert told.pop("share") < 0.6
        spread = {"type": "FSDP", "sharded_parameters": True, "sharded_blocks": True, "block_calls": 2}
    else:
        assert told.pop("share") == 1
        spread = {"type": "MULTI_CPU", "sharded_parameters": False, "sharded_blocks": False, "block_calls": 0}
    assert told == {"processes": 2, **spread, **resumed_and_stopped}
    gradients = [load_file(folder / "gradient.safetensors") for folder in (tmp_path, alone)]
    assert apart(*gradients) < (1e-5 if sharded else 1e-6)
    for state in STATES:
        assert load_file(tmp_path / "first" / state).keys() == load_file(alone / state).keys()
    for folder in (tmp_path / "first", begun):
        assert apart(adapter(folder / STATES[1]), adapter(alone / STATES[1])) < 1e-3
        saved, wanted = (load_file(each / "adapter.safetensors") for each in (folder, alone))
        assert {name: each.shape for name, each in saved.items()} == {name: each.shape for name, each in wanted.items()}
    assert [path.name for path in (tmp_path / "stopped").glob("*.safetensors")] == ["state-000001.safetensors"]


def test_another_number_of_samples_a_step_is_refused(alone: Path, data: Path) -> None:
    engine = Engine(batch=2, precision="fp32", device="cpu")
    with pytest.raises(SettingsError, match="begun with 4 samples a step, now there are 2"):
        tiny_training.trainer(tiny_training.config(alone, data, engine=engine))
