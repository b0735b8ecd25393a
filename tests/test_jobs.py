# SPDX-License-Identifier: Apache-2.0
"""Jobs: what a line may say, that a bad one stops nothing, and that a second run makes only what is missing."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idlora.cli import main
from idlora.data.media import read_video, write_png, write_wav
from idlora.errors import DeviceMemoryError, InputError, OutputError
from idlora.networks.generations import GENERATIONS
from idlora.pipeline import IDLoraPipeline, jobs
from idlora.pipeline.jobs import read_jobs, run_jobs, run_jobs_on_cluster
from signals import RATE, gradient_frames, tone
from tiny_pipeline import SETTINGS, pipeline

GENERATION = GENERATIONS["2.3"]
PROMPT = "[SPEECH] river garden"


def written(folder: Path, *lines: dict[str, Any] | str) -> Path:
    write_png(folder / "face.png", gradient_frames(1, 64, 64)[0])
    write_wav(folder / "voice.wav", tone(1.0), RATE)
    path = folder / "jobs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def states(outcomes: list[jobs.Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.state for outcome in outcomes}


def test_a_second_run_makes_only_what_is_missing(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": PROMPT, "voice": "voice.wav", "keyframes": [{"image": "face.png", "frame": -1, "strength": 0.5}]},
        {"prompt": PROMPT, "name": "second", "settings": {"seed": 4}},
        {"prompt": PROMPT, "image": "absent.png"},
    ]
    path, out, pipe = written(tmp_path, *lines), tmp_path / "out", pipeline()
    first = run_jobs(pipe, read_jobs(path, SETTINGS, GENERATION), out)
    assert states(first) == {"0001": "done", "second": "done", "0003": "failed"}
    assert "absent.png" in first[2].reason
    assert read_video(out / "second.mp4").frames.shape == (9, 64, 96, 3)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [entry["state"] for entry in report] == ["done", "done", "failed"]
    before = (out / "0001.mp4").stat().st_mtime_ns
    again = run_jobs(pipe, read_jobs(path, SETTINGS, GENERATION), out)
    assert states(again) == {"0001": "skipped", "second": "skipped", "0003": "failed"}
    assert (out / "0001.mp4").stat().st_mtime_ns == before
    lines[1]["settings"] = {"seed": 5}
    write_wav(tmp_path / "other.wav", tone(1.0, 200.0), RATE)
    lines[0]["voice"] = "other.wav"
    changed = run_jobs(pipe, read_jobs(written(tmp_path, *lines), SETTINGS, GENERATION), out)
    assert states(changed) == {"0001": "done", "second": "done", "0003": "failed"}


def test_what_was_killed_halfway_is_made_again(tmp_path: Path) -> None:
    path, out, pipe = (
        written(tmp_path, {"prompt": PROMPT}, {"prompt": PROMPT, "name": "b"}),
        tmp_path / "out",
        pipeline(),
    )
    seen: list[jobs.Outcome] = []

    def kill(outcome: jobs.Outcome) -> None:
        seen.append(outcome)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(pipe, read_jobs(path, SETTINGS, GENERATION), out, kill)
    assert states(seen) == {"0001": "done"}
    (out / "b.mp4").write_bytes(b"half a clip without a sidecar")
    assert states(run_jobs(pipe, read_jobs(path, SETTINGS, GENERATION), out)) == {"0001": "skipped", "b": "done"}
    (out / "b.mp4.json").write_text("{", encoding="utf-8")
    assert states(run_jobs(pipe, read_jobs(path, SETTINGS, GENERATION), out)) == {"0001": "skipped", "b": "done"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1"),
        ('["prompt"]', "no object with a prompt"),
        ({"prompt": 3}, "no object with a prompt"),
        ({"promt": "x", "prompt": "y"}, "did you mean 'prompt'"),
        ({"prompt": "x", "preset": "quick"}, "choose one of one-stage"),
        ({"prompt": "x", "settings": {"sed": 1}}, "did you mean 'seed'"),
        ({"prompt": "x", "name": "../x"}, "cannot be one of a file"),
        ({"prompt": "x", "image": 5}, "name of a file is needed"),
        ({"prompt": "x", "keyframes": ["face.png"]}, "must be an object of image, frame"),
        ({"prompt": "x", "keyframes": [{"image": "face.png", "frame": 99}]}, "no frame 99"),
        ({"prompt": "x", "keyframes": [{"image": "face.png", "frame": 1, "strength": "x"}]}, "line 1"),
        ({"prompt": "x", "keyframes": 4}, "line 1"),
        ({"prompt": "x", "settings": {"height": 70}}, "multiple of 32"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_a_bad_line_is_told_and_stops_nothing(tmp_path: Path, line: Any, words: str) -> None:
    path = written(tmp_path, line, {"prompt": PROMPT})
    outcomes = run_jobs(pipeline(), read_jobs(path, SETTINGS, GENERATION), tmp_path / "out")
    assert states(outcomes) == {"0001": "failed", "0002": "done"}
    assert words in outcomes[0].reason


@pytest.mark.parametrize("below", ["", "x"])
def test_a_folder_that_is_a_file_is_told(tmp_path: Path, below: str) -> None:
    path, out = written(tmp_path, {"prompt": PROMPT}), tmp_path / "out.mp4"
    out.write_bytes(b"a clip")
    asked = read_jobs(path, SETTINGS, GENERATION)
    with pytest.raises(OutputError, match=r"cannot make the folder .* of the clips: .*; choose another --out"):
        run_jobs(pipeline(), asked, out / below)
    with pytest.raises(OutputError, match="cannot make the folder"):
        run_jobs_on_cluster(pipeline, asked, out / below, workers=1)
    assert out.read_bytes() == b"a clip"


def test_a_clip_that_does_not_fit_the_device_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, make = pipeline(), IDLoraPipeline.generate_batch

    def full(self: IDLoraPipeline, requests: Any) -> Any:
        if requests[0].settings.num_frames > 9:
            raise DeviceMemoryError("the device ran out of memory")
        return make(self, requests)

    monkeypatch.setattr(IDLoraPipeline, "generate_batch", full)
    path = written(tmp_path, {"prompt": PROMPT, "settings": {"num_frames": 17}}, {"prompt": PROMPT})
    outcomes = run_jobs(pipe, read_jobs(path, SETTINGS, GENERATION), tmp_path / "out")
    assert states(outcomes) == {"0001": "failed", "0002": "done"}
    assert "out of memory" in outcomes[0].reason
    assert (tmp_path / "out" / "report.json").is_file()


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the jobs"):
        read_jobs(tmp_path / "absent.jsonl", SETTINGS, GENERATION)
    with pytest.raises(InputError, match="no jobs"):
        read_jobs(written(tmp_path, ""), SETTINGS, GENERATION)
    with pytest.raises(InputError, match="two jobs called 'a'"):
        read_jobs(written(tmp_path, *[{"prompt": "x", "name": "a"}] * 2), SETTINGS, GENERATION)


def test_the_command_does_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline().save_pretrained(tmp_path / "model")
    path = written(tmp_path, {"prompt": PROMPT, "preset": "distilled"}, {"prompt": PROMPT, "voice": "voice.wav"})
    arguments = ["generate", "--model", str(tmp_path / "model"), "--jobs", str(path), "--out", str(tmp_path / "clips")]
    assert main([*arguments, "--frames", "17"]) == 2
    printed = capsys.readouterr()
    assert "1 of 2 jobs failed" in printed.err
    assert "0001: failed" in printed.out
    assert "--distilled" in printed.out
    assert read_video(tmp_path / "clips/0002.mp4").frames.shape[0] == 17
    path.write_text(json.dumps({"prompt": PROMPT, "name": "0002", "voice": "voice.wav"}), encoding="utf-8")
    assert main([*arguments, "--frames", "17"]) == 0
    assert "0002: skipped" in capsys.readouterr().out
    for wrong in (["--prompt", PROMPT], ["--voice", "voice.wav"]):
        assert main([*arguments, *wrong]) == 2
        assert "--jobs" in capsys.readouterr().err
    assert main(["generate", "--model", str(tmp_path / "model")]) == 2
    assert "--prompt" in capsys.readouterr().err


class Dying(IDLoraPipeline):
    """Its process dies at a prompt that says so: once, or always."""

    def generate_batch(self, requests: Any, callback: Any = None) -> Any:
        for word in ("once", "always"):
            marker = Path(os.environ["IDLORA_DIES"]) / word
            if f"die {word}" in requests[0].prompt and (word == "always" or not marker.exists()):
                marker.write_text("", encoding="utf-8")
                os._exit(1)
        return super().generate_batch(requests, callback)


def test_workers_of_a_cluster_do_what_one_does_and_what_kills_them_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setenv("IDLORA_DIES", str(tmp_path))
    # Ray's workers find this module by it.
    paths = filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    pipeline().save_pretrained(tmp_path / "model")
    said = ["river", "die once", "", "die always", "garden"]
    path = written(tmp_path, *({"prompt": f"[SPEECH] {each}" if each else ""} for each in said))
    read = partial(read_jobs, path, SETTINGS, GENERATION)
    load = partial(Dying.from_pretrained, tmp_path / "model")
    seen: list[str] = []
    told = run_jobs_on_cluster(load, read(), tmp_path / "out", 2, lambda outcome: seen.append(outcome.name))
    assert list(states(told).values()) == ["done", "done", "failed", "failed", "done"]
    assert sorted(seen) == [outcome.name for outcome in told]
    assert "its worker died" in told[3].reason
    assert [each["name"] for each in json.loads((tmp_path / "out" / "report.json").read_text())] == sorted(seen)
    alone = run_jobs(IDLoraPipeline.from_pretrained(tmp_path / "model"), read()[:2], tmp_path / "alone")
    for outcome in alone:
        one, other = (read_video(tmp_path / where / f"{outcome.name}.mp4").frames for where in ("out", "alone"))
        assert np.array_equal(one, other)
