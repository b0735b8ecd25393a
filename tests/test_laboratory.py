# SPDX-License-Identifier: Apache-2.0
"""`idlora evaluate`: manifests and folders read, bad clips told and never counted, resumed, compared and reported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from idlora.cli import main
from idlora.data.media import write_mp4, write_png, write_wav
from idlora.data.prompt import Prompt
from idlora.data.world.captions import caption
from idlora.data.world.clip import render_picture, render_sound
from idlora.data.world.speakers import clip
from idlora.data.world.voice import SAMPLE_RATE
from idlora.errors import InputError, OutputError, SettingsError, WeightsError
from idlora.evaluation.judges import Footage, Judge, JudgeRecord, Reference
from idlora.evaluation.judges.base import Unjudged, Verdict
from idlora.evaluation.judges.conditions import ConditionsJudge
from idlora.evaluation.judges.levels import LevelsJudge
from idlora.evaluation.judges.lips import LipJudge
from idlora.evaluation.judges.sounds import rms
from idlora.evaluation.judges.world_faces import WorldFacesJudge
from idlora.evaluation.judges.world_sounds import WorldSoundsJudge
from idlora.evaluation.laboratory.bench import content_of, judge_entry, judge_footage, judge_key
from idlora.evaluation.laboratory.manifest import Entry, read_entries
from idlora.evaluation.laboratory.panel import OFFERS, Panel
from idlora.evaluation.laboratory.results import Judged, Results
from idlora.evaluation.laboratory.run import Order, judge_all, write_report
from idlora.evaluation.store import Values

Sound = NDArray[np.float32]
SYSTEMS, NUM = ("good", "late"), 6
LIGHT: dict[str, Judge] = {"lips-world": LipJudge(), "levels": LevelsJudge(), "face-world": WorldFacesJudge()}
LATE = 1280  # samples: 80 ms


@cache
def scene(index: int) -> tuple[NDArray[np.uint8], Sound, str]:
    spec = replace(clip("test", index), object="none", style="calm")
    sound = render_sound(spec)
    return render_picture(spec, sound), sound.samples.astype(np.float32), caption(spec)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Clips of two systems, written below a folder, and the lines that name them."""
    found: list[dict[str, Any]] = []
    for index in range(NUM):
        frames, sound, prompt = scene(index)
        name = f"clip{index}"
        write_wav(folder / f"{name}.wav", np.roll(sound, 5)[None], SAMPLE_RATE)
        write_png(folder / f"{name}.png", frames[0])
        for system in SYSTEMS:
            (folder / system).mkdir(exist_ok=True)
            moved = np.roll(sound, LATE) if system == "late" else sound
            write_mp4(folder / system / f"{name}.mp4", frames, 25, moved[None], SAMPLE_RATE)
            line = {"system": system, "id": name, "clip": f"{system}/{name}.mp4", "speaker": f"speaker{index % 3}"}
            line |= {"prompt": prompt, "reference": f"{name}.wav", "picture": f"{name}.png", "truth": f"{name}.wav"}
            found.append(line | {"recording": "a", "reference_recording": "ab"[index % 2]})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest of good clips."""
    path = tmp_path_factory.mktemp("clips")
    (path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(path)))
    return path


@pytest.fixture(scope="module")
def evaluated(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    out = tmp_path_factory.mktemp("report")
    return out, write_report(folder, Order(out, workers=1), Panel({**LIGHT, "conditions": ConditionsJudge()}))


# Bad clips


def test_recordings_make_the_split(folder: Path) -> None:
    entries, _ = read_entries(folder)
    assert [entry.split for entry in entries[::2]] == ["easy", "hard"] * 3


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad")
    frames, sound, _ = scene(0)
    noise = np.random.default_rng(0).integers(0, 255, frames.shape).astype(np.uint8)
    write_mp4(path / "silent.mp4", frames, 25, 0 * sound[None], SAMPLE_RATE)
    write_mp4(path / "mute.mp4", frames, 25)
    write_mp4(path / "no face.mp4", noise, 25, sound[None], SAMPLE_RATE)
    write_mp4(path / "fast.mp4", np.repeat(frames, 2, axis=0), 50, sound[None], SAMPLE_RATE)
    write_mp4(path / "one frame.mp4", frames[:1], 25, sound[None, :640], SAMPLE_RATE)
    write_wav(path / "empty.wav", np.zeros((1, 0), np.float32), SAMPLE_RATE)
    (path / "junk.mp4").write_bytes(b"junk" * 100)
    (path / "zero.mp4").touch()
    return path


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("silent.mp4", {"lips-world": "level is below", "levels": "level is below", "sounds-world": "level is below"}),
        ("mute.mp4", {"lips-world": "no audio track", "levels": "no audio track", "sounds-world": "no audio track"}),
        ("no face.mp4", {"lips-world": "no face", "face-world": "no face"}),
        ("one frame.mp4", {"lips-world": "does not open", "levels": "s long", "sounds-world": "s long"}),
        ("empty.wav", dict.fromkeys(("lips-world", "levels", "face-world", "sounds-world"), "0 s long|no sound")),
        ("junk.mp4", dict.fromkeys(("lips-world", "levels", "face-world", "sounds-world"), "cannot be decoded")),
        ("zero.mp4", dict.fromkeys(("lips-world", "levels", "face-world", "sounds-world"), "cannot read")),
        ("absent.mp4", dict.fromkeys(("lips-world", "levels", "face-world", "sounds-world"), "cannot read")),
    ],
)
def test_a_bad_clip_is_a_reason_and_never_a_number(bad: Path, name: str, told: dict[str, str]) -> None:
    write_png(bad / "face.png", scene(0)[0][0])
    entry = Entry(name, "bad", bad / name, "anna", scene(0)[2], picture=bad / "face.png")
    outcome = judge_entry(entry, {**LIGHT, "sounds-world": WorldSoundsJudge()})
    assert {judge for judge, said in outcome.items() if "unjudged" in said} == set(told)
    for judge, reason in told.items():
        assert re.search(reason, outcome[judge]["unjudged"]), outcome[judge]


def test_another_frame_rate_is_no_fault(bad: Path) -> None:
    values = judge_entry(Entry("f", "bad", bad / "fast.mp4", "anna"), LIGHT)["lips-world"]["values"]
    assert values["offset"] == pytest.approx(0, abs=0.02)
    assert values["correlation"] > 0.85


class Odd:
    """A judge that fails as it is told to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    @property
    def record(self) -> JudgeRecord:
        return JudgeRecord("odd", "1", "none")

    def score(self, clip: Footage, reference: Reference, prompt: Prompt | None) -> Values:
        _ = clip, reference, prompt
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"value": self.answer}


def test_a_judge_that_breaks_or_gives_no_number_is_told_and_wrong_weights_stop_everything() -> None:
    frames, sound, _ = scene(0)
    footage = Footage(frames, 25.0, sound)
    verdict = judge_footage(
        footage,
        Reference(),
        None,
        {"nan": Odd(float("nan")), "broken": Odd(RuntimeError("out of order")), "fine": Odd(2.0)},
    )
    assert verdict.scores == {"fine": {"value": 2.0}}
    reasons = {each.judge: each.reason for each in verdict.unjudged}
    assert reasons == {
        "nan": "the judge's value is not a finite number",
        "broken": "the judge failed: RuntimeError: out of order",
    }
    with pytest.raises(WeightsError, match="random"):
        judge_footage(footage, Reference(), None, {"w": Odd(WeightsError("random"))})


# Resuming


class Counting(LevelsJudge):
    """Levels, and how often they were asked for."""

    def __init__(self, version: str = "1", fail_at: int = 10**6) -> None:
        self.calls, self.version, self.fail_at = 0, version, fail_at

    @property
    def record(self) -> JudgeRecord:
        return JudgeRecord("counting", self.version, "none")

    def score(self, clip: Footage, reference: Reference, prompt: Prompt | None) -> Values:
        if self.calls >= self.fail_at:
            raise KeyboardInterrupt
        self.calls += 1
        return {"loudness": 20 * np.log10(rms(clip.audible))} if prompt or reference else {}


def test_scores_are_kept_by_content_and_judge(folder: Path, tmp_path: Path) -> None:
    entries, _ = read_entries(folder)
    order = Order(tmp_path)
    first = Counting(fail_at=4)
    with pytest.raises(KeyboardInterrupt):
        judge_all(entries, order, Panel({"levels": first}))
    second = Counting()
    whole = judge_all(entries, order, Panel({"levels": second}))
    assert (first.calls, second.calls) == (4, 2 * NUM - 4)
    third = Counting()
    again = judge_all(entries, order, Panel({"levels": third}))
    assert [each.verdict for each in again] == [each.verdict for each in whole]
    assert third.calls == 0
    newer = Counting("2")
    judge_all(entries[:3], order, Panel({"levels": newer}))
    assert newer.calls == 3
    entry = read_entries(folder)[0][0]
    assert content_of(entry) != content_of(replace(entry, prompt="[SPEECH] other"))
    assert content_of(entry) == content_of(replace(entry, system="other", id="other"))
    assert content_of(entry) != content_of(replace(entry, clip=Path("absent.mp4")))
    assert judge_key("levels", second) != judge_key("levels", newer)


# Results


def test_systems_are_compared_and_a_planted_delay_decides(evaluated: tuple[Path, Results]) -> None:
    _, results = evaluated
    assert results.systems == SYSTEMS
    good, late = (results.line(system, "lip offset, s") for system in SYSTEMS)
    assert good is not None
    assert late is not None
    assert good.estimate.value == pytest.approx(0, abs=0.02)
    assert late.estimate.value == pytest.approx(0.08, abs=0.02)
    assert (late.n, late.asked, late.speakers) == (NUM, NUM, 3)
    duel = next(duel for duel in results.duels if duel.measure.name == "lip correlation, world" and duel.split == "all")
    assert duel.comparison.difference.high < 0
    assert (duel.comparison.n, duel.comparison.speakers, duel.comparison.p) == (NUM, 3, 0.25)
    assert duel.verdict == "undecided"  # three speakers cannot decide anything: 2 of 8 signs
    assert duel.adjusted >= duel.comparison.p


def test_clips_are_split_by_recording_and_by_distance(evaluated: tuple[Path, Results]) -> None:
    _, results = evaluated
    sizes = {
        split: line.n for split in ("all", "easy", "hard") if (line := results.line("good", "loudness, LUFS", split))
    }
    assert sizes == {"all": 6, "easy": 3, "hard": 3}
    assert results.edges == ()  # every reference is its truth here, so there is nothing to part


def verdicts(distances: list[float], similarity: dict[str, float]) -> Iterator[Judged]:
    for index, distance in enumerate(distances):
        for system, slope in similarity.items():
            scores: dict[str, Values] = {
                "conditions": {"distance": distance},
                "speaker": {"similarity": 0.9 - slope * distance + 0.01 * (index % 5)},
            }
            entry = Entry(f"{index}", system, Path("x"), f"speaker{index % 10}")
            yield Judged(entry, Verdict(scores))


def test_a_gap_that_widens_with_distance_is_a_curve() -> None:
    distances = list(np.random.default_rng(0).uniform(0, 2, 60))
    results = Results.of(list(verdicts(distances, {"ours": 0.05, "theirs": 0.2})))
    gaps = [
        next(d for d in results.duels if d.split == split and d.measure.name == "speaker similarity").comparison
        for split in ("near", "middle", "far")
    ]
    assert [round(found.difference.value, 2) for found in gaps] == pytest.approx(
        [-0.15 * mean for mean in results.distances], abs=0.02
    )
    assert gaps[0].difference.value > gaps[1].difference.value > gaps[2].difference.value
    assert all(found.n == 20 for found in gaps)
    far = next(d for d in results.duels if d.split == "far" and d.measure.name == "speaker similarity")
    assert far.verdict == "worse"
    named = Results.of(list(verdicts(distances, {"ours": 0.05, "theirs": 0.2})), "theirs")
    assert named.systems == ("theirs", "ours")
    assert next(d for d in named.duels if d.split == "far").verdict == "better"
    with pytest.raises(InputError, match="no system 'nobody'"):
        Results.of(list(verdicts(distances, {"ours": 0.05})), "nobody")


def test_a_clip_that_was_not_judged_is_in_no_mean() -> None:
    told = list(verdicts([1.0] * 6, {"ours": 0.1}))
    told[0] = Judged(told[0].entry, Verdict({}, (Unjudged("speaker", "silent"),)))
    line = Results.of(told).line("ours", "speaker similarity")
    assert line is not None
    assert (line.n, line.asked) == (5, 6)
    assert line.estimate.value > 0.8


# The report


def test_the_report_stands_alone_and_the_files_agree(evaluated: tuple[Path, Results]) -> None:
    out, results = evaluated
    names = {path.name for path in out.iterdir()}
    assert names == {"scores.jsonl", "clips.jsonl", "results.json", "results.md", "report.html", "plots"}
    assert {path.name for path in (out / "plots").iterdir()} == {"measures.png", "measures.svg"}
    assert (out / "plots" / "measures.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "plots" / "measures.svg").read_text()
    data = json.loads((out / "results.json").read_text())
    assert data["rows"] == results.to_json()["rows"]
    assert set(data["judges"]) == {*LIGHT, "conditions"}
    assert all(
        row["interval"] is None or row["interval"][0] <= row["value"] <= row["interval"][1] for row in data["rows"]
    )
    html = (out / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert html.count("data:video/mp4;base64,") == 2 * 3
    assert "data:image/png;base64," in html
    assert "data:audio/wav;base64," in html
    text = (out / "results.md").read_text()
    for title in ("All clips", "By split", "Systems compared", "Judges"):
        assert f"## {title}" in text
        assert f"<h2>{title}</h2>" in html
    assert len((out / "clips.jsonl").read_text().splitlines()) == 2 * NUM


def test_what_strangers_wrote_is_text_in_the_report(tmp_path: Path, folder: Path) -> None:
    line = {"system": "<script>", "id": "a|b", "clip": f"{folder}/good/clip0.mp4", "prompt": "[VISUAL] <img src=x>"}
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\nrubbish\n")
    write_report(tmp_path / "m.jsonl", Order(tmp_path / "out"), Panel({"levels": LevelsJudge()}))
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<script>" not in html
    assert "<img src=x>" not in html
    assert "Lines that could not be used" in html


# The command


def test_the_command_evaluates_and_says_who_was_absent(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path / "out"), "--judge", "levels", "--judge", "lips-world", "--examples", "1"]
    assert main(["evaluate", str(folder), *options]) == 0
    printed = capsys.readouterr()
    assert "late: lip offset, s 0.080" in printed.out
    assert printed.out.splitlines()[-1].startswith(str(tmp_path / "out" / "report.html"))
    assert main(["evaluate", "--judges"]) == 0
    told = capsys.readouterr().out
    for name in OFFERS:
        assert f"{name}: " in told
    assert "lips-syncnet: absent, its weights are not given; --weights lips-syncnet=FILE" in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nothing to judge"),
        (["absent"], "cannot read"),
        (["FOLDER", "--judge", "oracle"], "no judge 'oracle'"),
        (["FOLDER", "--judge", "lips-syncnet"], "its weights are not given"),
        (["FOLDER", "--weights", "lips-syncnet"], "not JUDGE=PATH"),
        (["FOLDER", "--weights", "lips-syncnet=absent.model"], "there are no weights"),
        (["FOLDER", "--weights", "levels=x"], "needs no weights"),
        (["FOLDER", "--judge", "levels", "--baseline", "nobody"], "no system 'nobody'"),
    ],
)
def test_faults_of_the_user_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    given = [str(folder) if option == "FOLDER" else option for option in options]
    assert main(["evaluate", *given, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make"):
        write_report(folder, Order(tmp_path / "file"), Panel({"levels": LevelsJudge()}))
    with pytest.raises(SettingsError, match="at least 1"):
        Order(tmp_path, workers=0)
    with pytest.raises(SettingsError, match="no judge can work"):
        write_report(folder, Order(tmp_path / "x"), Panel({}))
