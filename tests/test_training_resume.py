# SPDX-License-Identifier: Apache-2.0
"""What a run goes on with: after a fault of what looks on, past damaged states, and with the same samples alone."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny_training
from idlora.errors import SettingsError, TrainingError
from idlora.training.identity.config import Saving, Watching
from idlora.training.identity.engine import Trainer
from idlora.training.identity.journal import Journal
from idlora.training.latents.store import INDEX_NAME, LatentStore, LatentWriter


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_training.store(tmp_path / "data")


def states(made: Trainer) -> list[str]:
    return sorted(path.name for path in made.folder.glob("state-*"))


class Faulty:
    """Measures every step; at one of them it fails."""

    def __init__(self, at: int) -> None:
        self.at = at

    def due(self, _step: int) -> bool:
        return True

    def look(self, step: int, _journal: Journal) -> Mapping[str, float]:
        if step == self.at:
            raise SettingsError("this clip cannot be judged")
        return {"validation_loss": float(step == 1)}


@pytest.mark.parametrize("every", [1, 100])
def test_a_fault_of_what_looks_on_costs_no_step(every: int, data: Path, tmp_path: Path) -> None:
    """Whether the state was due or not; what is best is in it."""
    saving = Saving(every=every, keep_best="validation_loss")
    config = tiny_training.config(tmp_path / "run", data, saving=saving)
    whole = tiny_training.trainer(replace(config, out=str(tmp_path / "whole")))
    whole.run()
    made = tiny_training.trainer(config)
    made.job = replace(made.job, watchers=(Faulty(3),))
    with pytest.raises(SettingsError, match="cannot be judged"):
        made.run()
    assert states(made)[-1] == "state-000003.safetensors"
    resumed = tiny_training.trainer(config)
    assert (resumed.step, resumed.best) == (3, {"validation_loss": 0.0})
    resumed.run()
    ours, theirs = tiny_training.weights(resumed), tiny_training.weights(whole)
    assert all(torch.equal(each, ours[name]) for name, each in theirs.items())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize("keep_last", [1, 2])
def test_a_damaged_newest_state_costs_no_other(keep_last: int, data: Path, tmp_path: Path) -> None:
    config = tiny_training.config(tmp_path / "run", data, saving=Saving(every=1))
    tiny_training.trainer(config).run()
    cut(tmp_path / "run" / "state-000004.safetensors")
    config = replace(config, saving=Saving(every=1, keep_last=keep_last))
    resumed = tiny_training.trainer(config)
    assert resumed.step == 3
    resumed.step = 2  # as if two were damaged: what is written now is older than those
    resumed.checkpoints.save(resumed._state())
    assert "state-000002.safetensors" in states(resumed)
    assert "state-000004.safetensors.damaged" in states(resumed)
    assert len([name for name in states(resumed) if name.endswith(".safetensors")]) == keep_last
    assert tiny_training.trainer(config).step in (2, 3)


def test_what_cannot_be_set_aside_costs_no_other(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_self: Path, _target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    config = tiny_training.config(tmp_path / "run", data, saving=Saving(every=1, keep_last=3))
    made = tiny_training.trainer(config)
    made.run()
    cut(made.folder / "state-000004.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refused)
        resumed = tiny_training.trainer(replace(config, saving=Saving(every=1, keep_last=1)))
    resumed.step = 2
    resumed.checkpoints.save(resumed._state())
    assert "state-000002.safetensors" in states(resumed)


def test_if_all_are_damaged_none_is_set_aside(data: Path, tmp_path: Path) -> None:
    """Else the next call would begin anew."""
    config = tiny_training.config(tmp_path / "run", data)
    tiny_training.trainer(config).run()
    for path in (tmp_path / "run").glob("state-*"):
        cut(path)
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"every state in .* is damaged"):
            tiny_training.trainer(config)


def shuffled(data: Path) -> None:
    """The index in another order, as healing leaves it."""
    path = data / INDEX_NAME
    content = json.loads(path.read_text())
    content["samples"].reverse()
    path.write_text(json.dumps(content))


def test_the_order_of_the_index_is_of_no_effect(data: Path, tmp_path: Path) -> None:
    def seen(limit: int = 0) -> list[str]:
        config = tiny_training.config(tmp_path / "run", data)
        made = tiny_training.trainer(replace(config, data=replace(config.data, limit=limit)))
        return [visit.row.id for step in range(6) for visit in made.job.sampler.visits(step)]

    before = seen(), seen(3)
    assert set(before[1]) == {"pair-0", "pair-1", "pair-2"}  # the first samples alone
    assert set(before[0]) == {f"pair-{number}" for number in range(6)}
    shuffled(data)
    assert LatentStore(data).rows[0].id == "pair-7"
    assert (seen(), seen(3)) == before


def with_other(data: Path, index: int, *, split: str = "train", key: str = "") -> None:
    """A pair in a folder anew, made from something else, or one more."""
    writer = LatentWriter(data, LatentStore(data).header, torch.float32)
    made = tiny_training.latents(index, "2.3", reference=8 + index)
    row = tiny_training.row(index, made, split)
    writer.add(replace(row, key=key or row.key), made)
    writer.flush()


def gone(data: Path) -> None:
    writer = LatentWriter(data, LatentStore(data).header, torch.float32)
    writer.keep({row.id for row in writer.rows} - {"pair-3"})


def replaced(data: Path) -> None:
    with_other(data, 2, key="another")


def added(data: Path) -> None:
    with_other(data, 8)


def held_out(data: Path) -> None:
    with_other(data, 1, split="validation")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (gone, r"data \(6 samples, now 5\)"),
        (replaced, r"data \(6 samples, not the same\)"),
        (added, r"data \(6 samples, now 7\)"),
        (held_out, r"data \(6 samples, now 5\)"),
    ],
)
def test_a_run_is_not_gone_on_with_by_other_samples(change: Any, words: str, data: Path, tmp_path: Path) -> None:
    kept = Path(shutil.copytree(data, tmp_path / "kept"))
    config = tiny_training.config(tmp_path / "run", data)
    made = tiny_training.trainer(config)
    made.run()
    change(data)
    with pytest.raises(SettingsError, match=f"run was begun with other samples in .*{words}; put those back"):
        tiny_training.trainer(replace(config, steps=6))
    shutil.rmtree(data)
    shutil.copytree(kept, data)
    shuffled(data)
    with_other(data, 3)  # healed: the same, in another place
    with_other(data, 9, split="validation")
    assert tiny_training.trainer(replace(config, steps=6)).step == 4


def test_an_older_state_that_knows_no_data_is_gone_on_with(data: Path, tmp_path: Path) -> None:
    config = tiny_training.config(tmp_path / "run", data)
    tiny_training.trainer(config).run()
    for path in (tmp_path / "run").glob("state-*"):
        with safe_open(path, "pt") as file:
            told = {name: value for name, value in file.metadata().items() if name != "data"}
        assert told.keys() == {"step", "size", "numbers", "best"}
        save_file({name: each.clone() for name, each in load_file(path).items()}, path, metadata=told)
    gone(data)
    assert tiny_training.trainer(replace(config, steps=6)).step == 4


def test_a_limit_is_another_set_of_samples(data: Path, tmp_path: Path) -> None:
    config = tiny_training.config(tmp_path / "run", data, watching=Watching(log_every=1, validate_every=0))
    tiny_training.trainer(config).run()
    with pytest.raises(SettingsError, match=r"6 samples, now 4"):
        tiny_training.trainer(replace(config, data=replace(config.data, limit=4)))
