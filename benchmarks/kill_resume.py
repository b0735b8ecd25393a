# SPDX-License-Identifier: Apache-2.0
"""A run that is killed and resumed ends with the bits of one that never was: how often, and where it was killed.

    python benchmarks/kill_resume.py --runs 20 --json > kill-resume.json

Each run trains an adapter of the miniature on random latents, in float32 with one thread. It is killed (SIGKILL) up to
four times: at a random moment, or while a file is written (a state, the best adapter, the finished one), or as that is
moved to its place. Then it is resumed to its end. Adapter, best adapter, average and optimiser of the last state, and
the losses in the log must be equal bit for bit. Lives are forked from a server that has imported the package and done
nothing else. Needs POSIX.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Literal

import numpy as np

Target = Literal["moment", "state", "best", "adapter"]

STEPS = 8
MOST_KILLS = 4
POLL_SECONDS = 0.0003
PATIENCE_SECONDS = 600.0  # of a life that hangs
PRELOADED = (
    "idlora.training.identity.run",
    "accelerate",
    "diffusers.models.transformers.transformer_ltx2",
    "diffusers.pipelines.ltx2.connectors",
    "peft",
    "torch.utils.tensorboard",
    "yaml",
)
# What a run writes, by the beginning of the temporary name that each file has until it is whole.
PHASES: Mapping[str, str] = {
    "state": "writing a state",
    "best": "writing the best adapter",
    "adapter": "writing the finished adapter",
    "log": "cutting the log",
    "config": "writing the configuration",
}


@dataclass(frozen=True)
class Aim:
    """When a life ends.

    Attributes:
        target: at some moment, or while a file is written.
        amount: seconds of the life, or bytes of the file.
        number: which of the files of that kind in this life, from 0.
    """

    target: Target
    amount: float
    number: int = 0


@dataclass(frozen=True)
class Kill:
    """Where a run was killed: in which phase, and after how many steps by its log."""

    phase: str
    step: int


def write_latents(folder: Path, seed: int) -> Path:
    """Random encoded pairs of the miniature's widths: four to train with, one held out."""
    import torch

    from idlora.networks.generations import generation_of
    from idlora.networks.text import TextFeatures
    from idlora.pipeline.sources import PACKAGED, model_path
    from idlora.training.latents.store import Header, Latents, LatentWriter, Row

    with model_path(PACKAGED) as model:
        net, texts = (json.loads((model / name / "config.json").read_bytes()) for name in ("transformer", "connectors"))
    made = torch.Generator().manual_seed(seed)

    def normal(length: int, width: int) -> torch.Tensor:
        return torch.randn(length, width, generator=made)

    def text(words: int) -> TextFeatures:
        return TextFeatures(normal(words, texts["video_hidden_dim"]), normal(words, texts["audio_hidden_dim"]))

    header = Header(generation_of(net).name, texts["connector_rope_base_seq_len"])
    writer = LatentWriter(folder, header, torch.float32)
    for index in range(5):
        sound, voice = (normal(length, net["audio_in_channels"]) for length in (10, 8 + index))
        sample = Latents(normal(8, net["in_channels"]), sound, voice, text(3 + index))
        split = "validation" if index == 4 else "train"
        writer.add(Row(f"pair-{index}", f"{index}", (2, 2, 2), 10, 8 + index, 25.0, 9, split=split), sample)
    writer.flush()
    writer.write_no_text(text(1))
    return folder


def configuration(out: Path, data: Path) -> Any:
    """A short run in which everything takes part that a resumed run must find again."""
    from idlora.training.identity.config import (
        AdapterShape,
        Data,
        Engine,
        ObjectiveOptions,
        Optimization,
        Saving,
        TrainingConfig,
        Watching,
    )

    return TrainingConfig(
        data=Data((str(data),), (str(data),)),
        out=str(out),
        steps=STEPS,
        adapter=AdapterShape(rank=8, dropout=0.1),
        objective=ObjectiveOptions(reference_seconds=(0.2, 0.5)),
        optimization=Optimization(learning_rate=1e-3, warmup=3, ema=0.9),
        engine=Engine(batch=1, accumulate=2, precision="fp32", device="cpu", checkpointing="none"),
        saving=Saving(every=2, keep_last=2, keep_best="validation_loss"),
        watching=Watching(log_every=1, validate_every=3),
    )


def live(out: Path, data: Path, step: Any) -> None:
    """One life of a run, in a process of its own; it tells its step in shared memory."""
    import torch

    from idlora.training.identity.run import run_training

    def moved(done: int, _values: Mapping[str, float]) -> None:
        step.value = done

    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    run_training(configuration(out, data), moved)


def fork_server() -> ForkServerContext:
    """Processes that begin with everything imported: a life is then mostly training, and so are the moments in it."""
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def one_life(context: ForkServerContext, out: Path, data: Path, aim: Aim | None = None) -> Kill | None:
    """Begin or resume a run; where it was killed, or None if it came to its end before.

    Raises:
        RuntimeError: it ended otherwise.
    """
    before, step = names_in(out), context.RawValue("i", -1)
    process = context.Process(target=live, args=(out, data, step))
    process.start()
    if aim is not None:
        await_aim(process, out, before, aim)
        process.kill()
    process.join(PATIENCE_SECONDS)
    code = process.exitcode
    if code == 0:
        return None
    if aim is None or code != -signal.SIGKILL:
        process.kill()
        raise RuntimeError(f"a life of the run in {out} ended with exit code {code}")
    return Kill(phase_of(names_in(out) - before, step.value), max(step.value, newest_state(out)))


def await_aim(process: Any, out: Path, before: set[str], aim: Aim) -> None:
    """Return when it is time to kill a process, or when it has ended."""
    until = time.monotonic() + aim.amount
    seen: set[str] = set()
    while process.is_alive():
        if aim.target == "moment":
            hit = time.monotonic() >= until
        else:
            hidden = {name for name in names_in(out) - before if name.startswith(".")}
            now = {name for name in hidden if name.startswith(f".{aim.target}")}
            seen |= now
            # All hidden files count: safetensors fills one of its own, `.tmp` and six letters, which replaces ours.
            # Gone again = moved to its place: that is the moment after the last byte.
            hit = len(seen) > aim.number and (not now or bytes_of(out, hidden) >= aim.amount)
        if hit:
            return
        time.sleep(POLL_SECONDS)


def names_in(folder: Path) -> set[str]:
    """Names of the files in a folder, which may not be there yet."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


def bytes_of(folder: Path, names: set[str]) -> int:
    """Bytes of files, any of which may be gone by now."""
    found = 0
    for name in names:
        with suppress(FileNotFoundError):
            found += (folder / name).stat().st_size
    return found


def newest_state(folder: Path) -> int:
    """Step from which a run goes on; 0 = from the start."""
    return max((int(name[6:12]) for name in names_in(folder) if name.startswith("state-")), default=0)


def phase_of(left: set[str], step: int) -> str:
    """What a process was doing when it was killed, by the files that it left and its last step, -1 before the first."""
    for name in left:
        for stem, phase in PHASES.items():
            if name.startswith(f".{stem}"):
                return phase
    return "starting" if step < 0 else "training"


@dataclass(frozen=True)
class Whole:
    """A run that was never killed.

    Attributes:
        folder: of the run.
        seconds: of its life.
    """

    folder: Path
    seconds: float

    def aims(self, dice: np.random.Generator) -> Iterator[Aim]:
        """Where to kill another one, one to four times; the finished adapter is written last."""
        targets: list[Target] = ["moment", "moment", "moment", "state", "state", "state", "best"]
        for _ in range(dice.integers(1, MOST_KILLS)):
            yield self._aim(targets[dice.integers(len(targets))], dice)
        if dice.random() < 1 / 3:
            yield self._aim("adapter", dice)

    def _aim(self, target: Target, dice: np.random.Generator) -> Aim:
        if target == "moment":
            return Aim(target, dice.random() * self.seconds)
        file = {"state": f"state-{STEPS:06d}", "best": "best", "adapter": "adapter"}[target]
        size = (self.folder / f"{file}.safetensors").stat().st_size
        share = dice.choice([0.0, dice.random(), 1.0])  # as it appears, half written, as it is moved to its place
        return Aim(target, share * size, int(dice.integers(2)) if target == "state" else 0)


def whole_run(context: ForkServerContext, folder: Path, data: Path) -> Whole:
    """A run in one life; the first life of all waits for the server, so the second one is timed."""
    one_life(context, folder / "first", data)
    started = time.monotonic()
    one_life(context, folder / "whole", data)
    found = differences(folder / "first", folder / "whole")
    assert not found, f"two runs that were not killed differ: {found}"
    return Whole(folder / "whole", time.monotonic() - started)


def killed_run(
    context: ForkServerContext, whole: Whole, out: Path, data: Path, dice: np.random.Generator
) -> list[Kill]:
    """A run killed one to four times, then resumed to its end; begun again if it came to its end before any kill."""
    kills: list[Kill] = []
    while not kills:
        shutil.rmtree(out, ignore_errors=True)
        lives = [one_life(context, out, data, aim) for aim in whole.aims(dice)]
        kills = [kill for kill in lives if kill is not None]
    one_life(context, out, data)
    return kills


def differences(first: Path, second: Path) -> list[str]:
    """What is not the same in two finished runs: tensors by their bits, metadata, losses, files left over."""
    found = []
    for name in (f"state-{STEPS:06d}.safetensors", "adapter.safetensors", "best.safetensors"):
        (tensors, told), (others, other_told) = contents(first / name), contents(second / name)
        found += [f"{name}: {key}" for key in tensors.keys() | others.keys() if tensors.get(key) != others.get(key)]
        found += [f"{name}: metadata"] if told != other_told else []
    if losses(first / "log.jsonl") != losses(second / "log.jsonl"):
        found.append("log.jsonl")
    return sorted(found) + sorted(f"{name} left over" for name in names_in(second) if name.startswith("."))


def contents(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Bits of the tensors in a file, and its metadata."""
    import torch
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        told = file.metadata()
    return {key: each.reshape(-1).view(torch.uint8).numpy().tobytes() for key, each in tensors.items()}, told


def losses(path: Path) -> list[dict[str, float]]:
    """The lines of a log without what depends on the clock and the machine."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    timed = {"tokens_per_second", "peak_memory_gb"}
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def rehearse(folder: Path, runs: int, seed: int, told: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Kill and resume so many runs in a folder; what came of it, for JSON."""
    data = write_latents(folder / "data", seed)
    context = fork_server()
    whole = whole_run(context, folder, data)
    kills: list[list[Kill]] = []
    different: dict[int, list[str]] = {}
    for number in range(runs):
        out = folder / f"killed-{number}"
        kills.append(killed_run(context, whole, out, data, np.random.default_rng([seed, number])))
        if found := differences(whole.folder, out):
            different[number] = found[:10]
        where = ", ".join(f"{each.phase} at {each.step}" for each in kills[-1])
        told(f"run {number}: {where}: {f'{len(found)} differences, first {found[0]}' if found else 'identical'}")
        shutil.rmtree(out)
    every = [kill for each in kills for kill in each]
    return {
        "runs": runs,
        "identical": runs - len(different),
        "different": different,
        "kills": len(every),
        "kills_by_phase": dict(Counter(kill.phase for kill in every).most_common()),
        "kills_by_run": [len(each) for each in kills],
        "steps_at_kill": sorted(kill.step for kill in every),
        "steps": STEPS,
        "seconds_of_a_life": round(whole.seconds, 2),
        "seed": seed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the data and of the kills")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON, no line for each run")
    arguments = parser.parse_args()
    from idlora.pipeline.output import versions

    def told(line: str) -> None:
        if not arguments.json:
            print(line, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        result = rehearse(Path(folder), arguments.runs, arguments.seed, told)
    print(json.dumps({**result, "versions": versions()}, indent=1))
    return 0 if result["identical"] == result["runs"] else 1


if __name__ == "__main__":
    sys.exit(main())
