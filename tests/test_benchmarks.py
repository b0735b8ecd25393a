# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run: what they measure is not tested here, only that they come to their end and say it as JSON."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPT = BENCHMARKS / "rehearsal.py"
TINY = "--scale tiny --device cpu --height 128 --width 128 --frames 9 --steps 1".split()


def test_the_rehearsal_tells_what_a_preset_costs() -> None:
    command = [sys.executable, str(SCRIPT), "2.3", "--preset", "two-stage", *TINY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["seconds"].keys() == {"text", "connect", "prepare", "denoise", "upscale", "refine", "decode"}
    assert told["weights_bytes"].keys() >= {"transformer", "text_encoder", "latent_upsampler"}
    assert (told["scale"], told["size"]) == ("tiny", [9, 128, 128])


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a matter of POSIX")
def test_killed_runs_tell_where_they_were_killed() -> None:
    command = [sys.executable, str(BENCHMARKS / "kill_resume.py"), "--runs", "1", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (told["runs"], told["identical"], told["different"]) == (1, 1, {})
    assert sum(told["kills_by_phase"].values()) == len(told["steps_at_kill"]) == sum(told["kills_by_run"])
    assert told["versions"].keys() >= {"torch", "safetensors"}


def test_a_step_beside_the_plain_loop_is_told_as_ratios() -> None:
    size = "--layers 2 --rank 2 --runs 1 --eager --json".split()
    command = [sys.executable, str(BENCHMARKS / "train_step.py"), *size]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["loss_apart"] < 1e-4
    assert all({"time_ratio", "memory_ratio"} <= told[name].keys() for name in ("speed", "memory"))


def test_a_guided_step_beside_the_plain_way_is_told_as_shares() -> None:
    command = [sys.executable, str(BENCHMARKS / "step.py"), "2.0", "--layers", "1", "--seconds", "1", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["2.0"]["apart"] < 1e-5
    for name in ("exact", "fast", "distilled"):
        assert told["2.0"][name]["low"] <= told["2.0"][name]["median"] <= told["2.0"][name]["high"]


def test_single_kernels_are_told() -> None:
    command = [sys.executable, str(BENCHMARKS / "kernels.py")]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["attention"].keys() == {"video", "text", "audio to video"}
    assert all(each["default"] > 0 for each in told["attention"].values())


def test_approximations_are_told_with_what_they_save() -> None:
    command = [sys.executable, str(BENCHMARKS / "approximations.py"), "--clips", "2", "--steps", "2", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["settings"]
    exact = told.pop("exact")
    assert exact["time"] == 1
    assert told.keys() >= {"text above sigma 0.5", "text below sigma 0.9", "first-block cache 0.03"}
    for name, each in told.items():
        cached = name.startswith("first-block")
        assert each["products"] <= exact["products"] < 1
        assert each["time"] > 0  # of whatever size: no test asserts a time
        assert cached or each["products"] < exact["products"]
        wanted = {"end"} if cached else {"mean", "worst_step", "end"}
        assert wanted == each["video"].keys() == each["audio"].keys()


WORKS = """
import itertools, pathlib, sys, time
import calm
calm.join()
for number in itertools.count():
    pathlib.Path(sys.argv[1]).write_text(str(number))
    time.sleep(0.01)
"""
MEASURES = """
import pathlib, sys, time
import calm
count = pathlib.Path(sys.argv[1])
with calm.calm():
    before = count.read_text()
    time.sleep(0.5)
    print(before == count.read_text(), flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGSTOP is a matter of POSIX")
def test_while_one_measures_the_others_are_halted_even_if_it_is_killed(tmp_path: Path) -> None:
    count, python = tmp_path / "count", [sys.executable, "-c"]
    environment = {**os.environ, "CALM": str(tmp_path), "PYTHONPATH": str(BENCHMARKS)}
    # Of a process that is no more, whose number is ours now: we are not halted.
    (tmp_path / f"{os.getpid()}.alive").write_text("")
    with subprocess.Popen([*python, WORKS, str(count)], env=environment) as busy:
        try:
            wait_until(count.exists)
            for seconds in ("0", "600"):
                command = [*python, MEASURES, str(count), seconds]
                with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as measuring:
                    assert measuring.stdout is not None
                    assert measuring.stdout.readline() == "True\n"
                    measuring.kill()
                wait_until(partial(goes_on, count, count.read_text()))
        finally:
            busy.kill()


def goes_on(count: Path, seen: str) -> bool:
    return count.read_text() not in ("", seen)


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
