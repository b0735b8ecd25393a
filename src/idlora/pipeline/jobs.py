# SPDX-License-Identifier: Apache-2.0
"""Many clips by one loaded model: a file of jobs, one JSON object a line, done in order and resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from idlora.data.cluster import Lost, on_cluster
from idlora.errors import IDLoraError, InputError, OutputError, nearest
from idlora.files import write_text
from idlora.networks.generations import Generation
from idlora.pipeline.inputs import Keyframe, Request
from idlora.pipeline.pipeline import IDLoraPipeline
from idlora.pipeline.presets import preset_settings
from idlora.pipeline.settings import Settings, settings_from_json

REPORT_NAME = "report.json"
State = Literal["done", "skipped", "failed"]
_KEYS: Mapping[str, str] = {
    "prompt": "text; the only one that every job needs",
    "name": "of the clip's file, without .mp4; by default the number of the line",
    "image": "file",
    "voice": "file",
    "keyframes": "list of objects image, frame, strength",
    "preset": "name",
    "settings": "object",
}


@dataclass(frozen=True)
class Job:
    """One line: what is asked for, or why it cannot be."""

    name: str
    request: Request | None
    fault: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a job; `reason` is of a failed one."""

    name: str
    state: State
    reason: str = ""
    seconds: float = 0.0


def read_jobs(path: Path, base: Settings, generation: Generation) -> list[Job]:
    """The jobs of a file; a line that cannot be one is a job with a fault. Paths are relative to the file.

    Args:
        path: one JSON object a line: prompt, and if wanted name, image, voice, preset, settings. Empty lines are
            passed over.
        base: settings that a job's preset and settings go over.
        generation: which presets mean what.

    Raises:
        InputError: the file cannot be read, has no job, or gives a name twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the jobs {path} ({error}); give a text file, one JSON object a line") from error
    jobs = [_job(number, line, path.parent, base, generation) for number, line in enumerate(lines, 1) if line.strip()]
    if not jobs:
        raise InputError(f'{path} has no jobs; write one JSON object a line, such as {{"prompt": "..."}}')
    names = [job.name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path} has two jobs called {name!r}; give each its own name")
    return jobs


def _job(number: int, line: str, folder: Path, base: Settings, generation: Generation) -> Job:
    default = f"{number:04d}"
    try:
        data = json.loads(line)
        if not isinstance(data, dict) or not isinstance(data.get("prompt"), str):
            raise InputError(f'line {number} is no object with a prompt; write {{"prompt": "..."}}')
        for key in data:
            if key not in _KEYS:
                raise InputError(f"line {number} has no use for {key!r}{nearest(key, _KEYS)}")
        settings = preset_settings(data["preset"], base, generation) if "preset" in data else base
        settings = settings_from_json(data.get("settings", {}), settings)
        image, voice = (_file(data, key, folder) for key in ("image", "voice"))
        keyframes = tuple(_keyframe(each, folder) for each in data.get("keyframes", ()))
        return Job(_name(data.get("name", default)), Request(data["prompt"], settings, image, voice, keyframes))
    except (IDLoraError, ValueError, TypeError) as error:
        return Job(default, None, str(error) if isinstance(error, IDLoraError) else f"line {number}: {error}")


def _keyframe(data: Any, folder: Path) -> Keyframe:
    image = _file(data, "image", folder) if isinstance(data, dict) else None
    if image is None or not isinstance(data.get("frame"), int) or data.keys() - {"image", "frame", "strength"}:
        raise InputError(f"keyframe {data!r} must be an object of image, frame and, if wanted, strength")
    return Keyframe(image, data["frame"], float(data.get("strength", 1.0)))


def _name(name: object) -> str:
    if not isinstance(name, str) or not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"the name {name!r} cannot be one of a file; use letters and digits")
    return name


def _file(data: Mapping[str, Any], key: str, folder: Path) -> Path | None:
    value = data.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InputError(f"{key} is {value!r}; the name of a file is needed")
    return folder / value


def run_jobs(
    pipe: IDLoraPipeline, jobs: list[Job], out: Path, notice: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """Make every clip that is not there yet.

    A clip is there if its sidecar tells of the same prompt, inputs, settings and weights. A job that fails is reported,
    and the next one begins. `report.json` in the folder is kept up to date.

    Args:
        pipe: the model.
        jobs: from `read_jobs`.
        out: folder of the clips, made if it is missing.
        notice: told of each outcome.

    Raises:
        OutputError: the folder cannot be made, or a file not written.
    """
    _make(out)
    with suppress(IDLoraError):  # what stops every clip is told by each
        pipe.learn_prompts([job.request for job in jobs if job.request and not (out / f"{job.name}.mp4").is_file()])
    return _reported(((place, _outcome(job, pipe, out)) for place, job in enumerate(jobs)), out, notice)


def run_jobs_on_cluster(
    load: Callable[[], IDLoraPipeline],
    jobs: list[Job],
    out: Path,
    workers: int,
    notice: Callable[[Outcome], None] = lambda _: None,
    *,
    gpus: float = 0,
) -> list[Outcome]:
    """The same by workers of a Ray cluster, each of which loads the model once.

    A job whose worker dies is done again once by a new one. The report is in the order of the jobs.

    Args:
        load: makes the model; it and the folders must be there on every node.
        jobs: from `read_jobs`.
        out: folder of the clips, made if it is missing.
        workers: at once.
        notice: told of each outcome.
        gpus: of each worker.

    Raises:
        SettingsError: Ray is not installed.
        WeightsError: the model cannot be loaded.
        OutputError: the folder cannot be made, or a file not written.
    """
    _make(out)
    done = on_cluster(jobs, partial(_worker, load, out), workers, gpus=gpus)
    return _reported(((place, _found(jobs[place], each)) for place, each in done), out, notice)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "there is a file of that name" if folder.is_file() else error.strerror or error
        raise OutputError(f"cannot make the folder {folder} of the clips: {why}; choose another --out") from error


def _found(job: Job, told: Outcome | Lost) -> Outcome:
    if not isinstance(told, Lost):
        return told
    return Outcome(job.name, "failed", f"its worker died, and so did the one that tried again: {told.reason}")


def _worker(load: Callable[[], IDLoraPipeline], out: Path) -> Callable[[Job], Outcome]:
    return partial(_outcome, pipe=load(), out=out)


def _reported(told: Iterable[tuple[int, Outcome]], out: Path, notice: Callable[[Outcome], None]) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    for place, outcome in told:
        outcomes[place] = outcome
        notice(outcome)
        inorder = [outcomes[each] for each in sorted(outcomes)]
        report = [{key: value for key, value in vars(each).items() if value != ""} for each in inorder]
        write_text(out / REPORT_NAME, json.dumps(report, indent=1) + "\n")
    return [outcomes[place] for place in sorted(outcomes)]


def _outcome(job: Job, pipe: IDLoraPipeline, out: Path) -> Outcome:
    if job.request is None:
        return Outcome(job.name, "failed", job.fault)
    path = out / f"{job.name}.mp4"
    try:
        if is_complete(pipe, job.request, path):
            return Outcome(job.name, "skipped")
        result = pipe.generate_batch([job.request])[0]
    except IDLoraError as error:
        return Outcome(job.name, "failed", str(error))
    result.save(path)
    return Outcome(job.name, "done", seconds=round(sum(result.timings.values()), 3))


def is_complete(pipe: IDLoraPipeline, request: Request, path: Path) -> bool:
    """Whether a clip is there, made as the request would make it; raises as reading the request's inputs does."""
    sidecar = path.with_name(f"{path.name}.json")
    if not (path.is_file() and sidecar.is_file()):
        return False
    try:
        told = json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError:
        return False
    expected = pipe.record(request)
    return isinstance(told, dict) and all(told.get(key) == value for key, value in expected.items())
