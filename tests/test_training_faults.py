# SPDX-License-Identifier: Apache-2.0
"""What goes wrong while an adapter is trained: one line that helps, nothing half written, what was saved stays good."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import tiny_pipeline
import tiny_training
from idlora.cli import main
from idlora.errors import OutputError, TrainingError
from idlora.training.identity.config import (
    AdapterShape,
    Model,
    Optimization,
    Saving,
    Watching,
    config_to_json,
)
from idlora.training.identity.engine import Trainer
from idlora.training.identity.journal import Journal
from idlora.training.latents.store import Latents, LatentWriter

STEADY = Optimization(learning_rate=1e-2, schedule="constant", ema=0.9)  # whatever number of steps a run is to have
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="limits and signals as on POSIX")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline.pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_training.store(tmp_path_factory.mktemp("data") / "latents")


@pytest.fixture
def data(shared: Path, tmp_path: Path) -> Path:
    """Encoded pairs that a test may damage."""
    return Path(shutil.copytree(shared, tmp_path / "data"))


def written(model: Path, out: Path, data: Path, **changes: Any) -> Path:
    """A configuration's file."""
    made = tiny_training.config(out, data, model=Model(str(model)), optimization=STEADY, **changes)
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config_to_json(made)))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that `idlora train` says to a fault of the user."""
    capsys.readouterr()
    assert main(["train", *map(str, arguments)]) == 2
    return only_line(capsys.readouterr().err)


def only_line(errors: str) -> str:
    """The command's line; a bar may stand before it."""
    assert "Traceback" not in errors
    lines = errors.splitlines()
    assert [line.startswith("idlora: ") for line in lines].count(True) == 1, errors
    assert lines[-1].startswith("idlora: ")
    return lines[-1]


def command(before: str, *arguments: str | Path) -> list[str]:
    """`idlora train` in another process that does something before."""
    code = f"import sys\nfrom idlora.cli import main\n{before}\nsys.exit(main())"
    return [sys.executable, "-c", code, "train", *map(str, arguments)]


def states(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("state-*"))}


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def assert_same_end(run: Path, model: Path, data: Path, **changes: Any) -> None:
    """The last state of a run has the bits of one that nothing happened to."""
    whole = run.with_name("undisturbed")
    assert main(["train", str(written(model, whole, data, **changes))]) == 0
    (name, *_), (wanted, *_) = (sorted(states(folder), reverse=True) for folder in (run, whole))
    assert name == wanted
    ours, theirs = load_file(run / name), load_file(whole / name)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], each) for key, each in theirs.items())


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"  # a state has 100 kB


@POSIX
def test_a_full_disk_is_told_and_what_was_saved_stays(model: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = written(model, run, data)
    assert main(["train", str(path), "--set", "steps=2"]) == 0
    before = states(run)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command(LIMITED, path), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    line = only_line(done.stderr)
    assert re.search(r"cannot write .*state-000004\.safetensors: .*File too large.*free space$", line)
    assert states(run) == before
    assert list(before) == ["state-000002.safetensors"]
    assert leftovers(run) == []
    assert main(["train", str(path)]) == 0
    assert_same_end(run, model, data)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_log_that_cannot_be_written_is_told_and_nothing_hides_it(tmp_path: Path) -> None:
    class Full:
        def close(self) -> NoReturn:
            raise OSError(28, "TensorBoard's own")

    journal = Journal(tmp_path, write=False)
    journal._write, journal._board, journal.path = True, Full(), Path("/dev/full")
    with pytest.raises(OutputError, match="No space left on device; free space, then resume"), journal:
        journal.line(1, {"loss": 1.0})


WAITING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
"""


@POSIX
def test_ctrl_c_ends_after_the_step_saves_and_is_resumed(model: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes: dict[str, Any] = {"steps": 40, "saving": Saving(every=1000), "watching": Watching(log_every=1)}
    path = written(model, run, data, **changes)
    with subprocess.Popen(command(WAITING, path), stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (run / "log.jsonl").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "stopped" in only_line(errors)
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert 0 < len(steps) < 40
    assert list(states(run)) == [f"state-{steps[-1]:06d}.safetensors"]
    assert leftovers(run) == []
    assert not (run / "adapter.safetensors").exists()
    assert main(["train", str(path)]) == 0
    assert_same_end(run, model, data, **changes)


FAULTY: Mapping[str, tuple[str, str]] = {
    "optimisation: {ema: 0.5}": ("no 'optimisation'", "did you mean 'optimization'?"),
    "engine: {acumulate: 2}": ("engine has no 'acumulate'", "did you mean 'accumulate'?"),
    "preset: celebvhq-2.4": ("no training preset 'celebvhq-2.4'", "did you mean 'celebvhq-2."),
    "steps: many": ("steps is 'many'", "whole number"),
    "engine: {checkpointing: some}": ("checkpointing is 'some'", "all, attention, none"),
    "data: {train: [": ("is not YAML", "correct it"),
    "just words": ("holds no named values", "model:"),
}


@pytest.mark.parametrize("text", FAULTY)
def test_a_file_that_cannot_be_used_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    line = refused(capsys, path)
    assert all(part in line for part in FAULTY[text]), line


def test_a_missing_file_and_nothing_at_all_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "check the path" in refused(capsys, tmp_path / "absent.yaml")
    assert "give a YAML file, or --preset" in refused(capsys)
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is not YAML" in refused(capsys, tmp_path / "run.yaml")


def test_data_that_is_missing_or_of_another_generation_is_refused_and_the_folder_is_not_taken(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    line = refused(capsys, written(model, run, tmp_path / "absent"))
    assert "absent holds no encoded pairs; make them with `idlora precompute`" in line
    old = tiny_training.store(tmp_path / "old", "2.0")
    line = refused(capsys, written(model, run, old))
    assert "was encoded by LTX-2.0, the model is LTX-2.3;" in line
    empty = written(model, run, data)
    assert "data.train, which is empty" in refused(capsys, empty, "--set", "data.train=[]")
    # None of them has begun anything: the right data may be trained with in the same folder.
    assert main(["train", str(written(model, run, data)), "--set", "steps=1"]) == 0


def test_a_folder_that_was_begun_otherwise_is_refused(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    path = written(model, run, data)
    assert main(["train", str(path), "--set", "steps=2"]) == 0
    before = states(run)
    line = refused(capsys, path, "--set", "optimization.ema=0.5", "--set", "seed=8", "--set", "adapter.rank=3")
    assert "begun with another seed, adapter.rank, optimization.ema; choose another folder" in line
    line = refused(capsys, path, "--set", "engine.batch=1")
    assert "was begun with 2 samples a step, now there are 1" in line
    assert states(run) == before
    # The same samples in smaller batches, another rhythm of checkpoints, and more steps are the same run.
    free = ["engine.batch=1", "engine.accumulate=2", "saving.every=1", "steps=3"]
    assert main(["train", str(path), *(word for each in free for word in ("--set", each))]) == 0
    assert "state-000003.safetensors" in states(run)


def before_and_at_the_fault(made: Trainer, match: str) -> int:
    """Run into a TrainingError; the weights are those before the step that failed, whose number is returned."""
    at: list[tuple[int, dict[str, torch.Tensor]]] = [(0, tiny_training.weights(made))]
    made.progress = lambda step, _values: at.append((step, tiny_training.weights(made)))
    with pytest.raises(TrainingError, match=match):
        made.run()
    step, weights = at[-1]
    assert all(torch.equal(weights[name], value) for name, value in tiny_training.weights(made).items())
    assert made.step == step
    return step


def with_sample(folder: Path, change: Callable[[Latents], Latents]) -> None:
    """Put a changed `pair-1` into a folder of pairs."""
    from idlora.training.latents.store import LatentStore

    header = LatentStore(folder).header
    writer = LatentWriter(folder, header, torch.float32)
    made = change(tiny_training.latents(1, "2.3", reference=9))
    writer.add(tiny_training.row(1, made), made)
    writer.flush()


def test_a_number_that_is_none_names_its_sample(data: Path, tmp_path: Path) -> None:
    def spoiled(made: Latents) -> Latents:
        made.audio[3, 5] = float("nan")
        return made

    with_sample(data, spoiled)
    made = tiny_training.trainer(tiny_training.config(tmp_path / "run", data))
    before_and_at_the_fault(made, r"audio of the sample pair-1 in shard-\d+.safetensors is not finite; precompute it")


def test_a_loss_that_is_not_finite_names_the_sample_to_blame(data: Path, tmp_path: Path) -> None:
    with_sample(data, lambda made: Latents(made.video, made.audio * 1e30, made.reference, made.text))
    made = tiny_training.trainer(tiny_training.config(tmp_path / "run", data))
    step = before_and_at_the_fault(made, r"not finite at step \d, samples pair-1; the last checkpoint is as it was")
    assert {visit.row.id for visit in made.job.sampler.visits(step)} > {"pair-1"}


def test_an_absurd_learning_rate_is_told_with_all_samples_of_the_step(data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimization": replace(STEADY, learning_rate=1e30), "saving": Saving(every=1)}
    made = tiny_training.trainer(tiny_training.config(tmp_path / "run", data, **changes))
    names = ", ".join(visit.row.id for visit in made.job.sampler.visits(1))
    assert before_and_at_the_fault(made, f"step 2, samples {names}; .* lower learning rate") == 1
    assert list(states(tmp_path / "run")) == ["state-000001.safetensors"]


def test_a_gradient_that_is_not_finite_is_never_applied(data: Path, tmp_path: Path) -> None:
    made = tiny_training.trainer(tiny_training.config(tmp_path / "run", data))
    made.accelerator.clip_grad_norm_ = lambda *_: torch.tensor(float("inf"))
    names = ", ".join(visit.row.id for visit in made.job.sampler.visits(0))
    assert before_and_at_the_fault(made, f"step 1, samples {names};") == 0


def test_a_truncated_shard_is_told(data: Path, tmp_path: Path) -> None:
    shard = data / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    made = tiny_training.trainer(tiny_training.config(tmp_path / "run", data))
    before_and_at_the_fault(made, "shard-00000.safetensors is damaged or missing .* run `idlora precompute` again")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def headless(path: Path) -> None:
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def untold(path: Path) -> None:
    save_file({name: each.clone() for name, each in load_file(path).items()}, path)


@pytest.mark.parametrize("damage", [cut, emptied, headless, untold])
def test_a_damaged_state_is_passed_over(
    damage: Callable[[Path], None], shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_training.config(tmp_path / "run", shared)
    tiny_training.trainer(config).run()
    newest, older = (tmp_path / "run" / f"state-{step:06d}.safetensors" for step in (4, 2))
    wanted = {name: each.clone() for name, each in load_file(newest).items()}  # no longer a view of the file
    damage(newest)
    with caplog.at_level(logging.WARNING, "idlora"):
        resumed = tiny_training.trainer(config)
    assert resumed.step == 2
    assert re.search(f"{re.escape(str(newest))} is damaged .*; going on from the one before", caplog.text)
    resumed.run()
    assert all(torch.equal(wanted[key], each) for key, each in load_file(newest).items())
    for path in (newest, older):
        damage(path)
    with pytest.raises(TrainingError, match=r"every state in .* is damaged; put one back"):
        tiny_training.trainer(config)


def test_a_state_of_another_adapter_is_refused_before_anything_is_changed(shared: Path, tmp_path: Path) -> None:
    tiny_training.trainer(tiny_training.config(tmp_path / "run", shared, steps=2)).run()
    with pytest.raises(TrainingError, match="state of another adapter"):
        tiny_training.trainer(tiny_training.config(tmp_path / "run", shared, adapter=AdapterShape(rank=3)))


def test_what_a_killed_process_left_half_written_goes_away(shared: Path, tmp_path: Path) -> None:
    config = tiny_training.config(tmp_path / "run", shared, steps=2)
    tiny_training.trainer(config).run()
    ours = [".state-000004.0123456789ab.safetensors", ".best.0123456789ab.safetensors", ".tmpAb3dEf"]
    theirs = [".notes", ".state-4.safetensors", ".tmp"]
    for name in [*ours, *theirs]:
        (tmp_path / "run" / name).touch()
    tiny_training.trainer(config)
    assert sorted(leftovers(tmp_path / "run")) == sorted(theirs)
    assert "state-000002.safetensors" in states(tmp_path / "run")
