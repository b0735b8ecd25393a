# SPDX-License-Identifier: Apache-2.0
"""`idlora evaluate` where files, judges, names or values are amiss: it costs no more than need be, and is told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from idlora.data.media import write_mp4, write_png, write_wav
from idlora.data.prompt import Prompt
from idlora.errors import InputError, MediaError
from idlora.evaluation.judges import Footage, Judge, JudgeRecord, Reference
from idlora.evaluation.judges.base import Unjudged, Verdict
from idlora.evaluation.judges.clap import ClapJudge
from idlora.evaluation.judges.conditions import ConditionsJudge
from idlora.evaluation.judges.levels import LevelsJudge
from idlora.evaluation.judges.world_faces import WorldFacesJudge
from idlora.evaluation.laboratory.bench import judge_entry
from idlora.evaluation.laboratory.manifest import Entry
from idlora.evaluation.laboratory.measures import MEASURES
from idlora.evaluation.laboratory.panel import Panel
from idlora.evaluation.laboratory.plots import plots
from idlora.evaluation.laboratory.results import Judged, Results
from idlora.evaluation.laboratory.run import Order, judge_all, write_report
from idlora.evaluation.laboratory.tables import sheets
from idlora.evaluation.reproduction.findings import NOT_REPRODUCED, Claim, difference_of, judged, mean_of
from idlora.evaluation.store import Values
from judged_clips import footage, heard, sound_of
from signals import RATE, tone


def told(system: str, index: int, scores: dict[str, Values], speaker: str = "") -> Judged:
    entry = Entry(f"clip{index}", system, Path("x.mp4"), speaker or f"speaker{index % 4}")
    reasons = () if "conditions" in scores else (Unjudged("conditions", "silent"),)
    return Judged(entry, Verdict(scores, reasons))


def similar(similarity: float, distance: float | None = None) -> dict[str, Values]:
    scores: dict[str, Values] = {"speaker": {"similarity": similarity}}
    return scores if distance is None else {**scores, "conditions": {"distance": distance}}


def text_of(results: Results) -> str:
    return "\n".join(sheet.markdown() for sheet in sheets(results, [], {}, []))


# Values that do not vary


def test_identical_clips_show_their_value_and_no_interval() -> None:
    results = Results.of([told(system, i, similar(1.0)) for system in ("ours", "theirs") for i in range(8)])
    line = results.line("ours", "speaker similarity")
    assert line is not None
    assert (line.estimate.value, math.isnan(line.estimate.low)) == (1, True)
    text, found = text_of(results), json.loads(json.dumps(results.to_json(), allow_nan=False))
    assert "1.000 (no interval), n 8 of 8, 4 speakers" in text
    assert "0.000 (no interval) | 1.0000 | 1.0000 | 1.0000 | unknown" in text
    assert "nan" not in text
    assert (found["rows"][0]["value"], found["rows"][0]["interval"]) == (1, None)
    duel = found["comparisons"][0]
    assert (duel["value"], duel["interval"], duel["smallest_difference"]) == (0, None, None)
    assert [plot.name for plot in plots(results)] == ["measures"]


def test_speakers_who_all_gave_the_same_reproduce_nothing() -> None:
    same = mean_of([(f"{who}", 1.0, 1.0) for who in range(9)])
    row = judged(Claim("c", "p", "above", 0.5), same, "m", "c")
    assert (row.verdict, row.ours, row.interval) == (NOT_REPRODUCED, 1, None)
    assert row.remark == "UNDECIDED: all 9 speakers gave the same value, from which no interval can be drawn"
    first, second = ({(who, 0): (f"{who}", 0.1 * who + shift, 1.0) for who in range(9)} for shift in (0.2, 0.0))
    row = judged(Claim("c", "p"), difference_of(first, second), "m", "c")
    assert (row.verdict, row.interval) == (NOT_REPRODUCED, None)
    assert row.ours == pytest.approx(0.2)
    assert "all 9 speakers" in row.remark
    alone = judged(Claim("c", "p"), mean_of([("a", 1.0, 1.0)]), "m", "c")
    assert alone.remark == "UNDECIDED: one speaker gives no interval"


def test_equal_distances_make_bins_that_all_have_clips() -> None:
    distances = [0.0] * 8 + [0.5, 0.9, 1.3, 1.7]
    results = Results.of([told("ours", i, similar(0.5 + 0.01 * i, far)) for i, far in enumerate(distances)])
    assert results.distances == (0.0, 0.7, 1.5)
    near = results.line("ours", "speaker similarity", "near")
    assert near is not None
    assert near.n == 8
    json.dumps(results.to_json(), allow_nan=False)


def test_a_clip_that_the_last_system_lost_keeps_its_distance() -> None:
    whole = [told("ours", i, similar(0.5 + 0.01 * i, 0.1 * i)) for i in range(12)]
    lost = [told("theirs", i, similar(0.4) if i == 3 else similar(0.4 + 0.02 * i, 0.1 * i)) for i in range(12)]
    results = Results.of([*whole, *lost])
    near = results.line("ours", "speaker similarity", "near")
    assert near is not None
    assert near.n == 4
    assert results.edges == Results.of(whole).edges


# Names


@pytest.mark.parametrize("name", ["cost $5 or $6", r"$\frac{a}$", "$", r"a\$b$c", "$x^$ $"])
def test_a_system_is_drawn_by_its_name_and_not_as_a_formula(name: str) -> None:
    judged = [told(system, i, similar(0.5 + 0.01 * i, 0.1 * i)) for system in (name, "other") for i in range(12)]
    drawn = plots(Results.of(judged))
    assert [plot.name for plot in drawn] == ["measures", "acoustic-distance"]
    for plot in drawn:
        assert f"<!-- {name} -->" in plot.svg.decode()


def test_clips_whose_lines_name_other_speakers_are_told_and_the_rest_is_compared(tmp_path: Path) -> None:
    ours = [told("ours", i, similar(0.5 + 0.01 * i), f"speaker{i % 4}") for i in range(8)]
    theirs = [told("theirs", i, similar(0.4 + 0.02 * i), f"clip{i}") for i in range(8)]
    results = Results.of([*ours, *theirs])
    assert not results.duels
    assert len(results.faults) == 1
    assert results.faults[0].startswith("8 of the 8 clips that 'theirs' shares with 'ours' are not compared")
    assert "'clip0' is of 'clip0' here and of 'speaker0' there" in results.faults[0]
    assert results.to_json()["not_compared"] == [*results.faults]
    assert results.faults[0] in text_of(results)
    some = Results.of([*ours, *theirs[:1], *(told("theirs", i, similar(0.4 + 0.02 * i)) for i in range(1, 8))])
    assert some.faults[0].startswith("1 of the 8")
    assert some.duels[0].comparison.n == 7
    assert not Results.of(ours).faults
    # Speakers exchanged between clips are as many and as named, and still are not the same.
    crossed = [told("theirs", i, similar(0.4), f"speaker{(i + 1) % 4}") for i in range(8)]
    assert not Results.of([*ours, *crossed]).duels
    for index in range(2):
        write_wav(tmp_path / f"{index}.wav", tone(1.0), RATE)
    lines = [{"system": "a", "clip": f"{index}.wav", "speaker": "anna"} for index in range(2)]
    lines += [{"system": "b", "clip": f"{index}.wav"} for index in range(2)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(tmp_path / "m.jsonl", Order(tmp_path / "out"), Panel({"levels": LevelsJudge()}))
    assert "What could not be compared" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_every_cosine_of_clap_has_a_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClapJudge, "_cosines", lambda _, __, ___, texts: dict.fromkeys(texts, 0.5))
    scores = ClapJudge("x").score(heard(sound_of(0)), Reference(), Prompt("a hall", "hello", "an echo"))
    assert set(scores) == {"sounds", "speech", "visual", "prompt"}
    assert {measure.score for measure in MEASURES if measure.judge == "sounds-clap"} == set(scores)


# Faults that pass


class Failing:
    """A judge that fails as long as it is told to."""

    record = JudgeRecord("failing", "1", "none")

    def __init__(self, error: Exception | None) -> None:
        self.error, self.calls = error, 0

    def score(self, clip: Footage, reference: Reference, prompt: Prompt | None) -> Values:
        _ = clip, reference, prompt
        self.calls += 1
        if self.error is not None:
            raise self.error
        return {"loudness": -20.0}


@pytest.mark.parametrize(
    ("error", "again"),
    [(MemoryError("none left"), True), (RuntimeError("CUDA error"), True), (InputError("it is silent"), False)],
)
def test_only_faults_of_the_clip_are_kept_for_good(tmp_path: Path, error: Exception, *, again: bool) -> None:
    write_wav(tmp_path / "a.wav", tone(1.0), RATE)
    entries = [Entry("a", "x", tmp_path / "a.wav", "anna"), Entry("a", "y", tmp_path / "a.wav", "anna")]
    failing, sound = Failing(error), Failing(None)
    first = judge_all(entries, Order(tmp_path / "out"), Panel({"levels": failing}))
    assert [[each.reason.endswith(str(error)) for each in one.verdict.unjudged] for one in first] == [[True], [True]]
    second = judge_all(entries, Order(tmp_path / "out"), Panel({"levels": sound}))
    assert (failing.calls, sound.calls) == (1, int(again))
    assert [bool(each.verdict.scores) for each in second] == [again, again]


def test_a_codecs_own_fault_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry("a", "x", tmp_path / "a.wav", "anna")]
    write_wav(tmp_path / "a.wav", tone(1.0), RATE)

    def breaks(_: object) -> Footage:
        raise MemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(Footage, "read", breaks)
        first = judge_all(entries, Order(tmp_path / "out"), Panel({"levels": LevelsJudge()}))
    assert first[0].verdict.unjudged[0].reason == "it cannot be read: MemoryError: none left"
    second = judge_all(entries, Order(tmp_path / "out"), Panel({"levels": LevelsJudge()}))
    assert second[0].verdict.scores


# Files


def audio_only(path: Path) -> Path:
    """A file with a sound track and no other."""
    samples = sound_of(0)[None]
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["voice.mp4", "voice.m4a", "VOICE.M4A", "voice.mov"])
def test_a_voice_may_be_a_video_file_without_pictures(tmp_path: Path, name: str) -> None:
    voice = Footage.read(audio_only(tmp_path / name))
    assert voice.frames is None
    assert len(voice.audible) == pytest.approx(len(sound_of(0)), rel=0.1)
    with pytest.raises(MediaError, match="no pictures"):
        _ = voice.pictures


def absent(path: Path) -> None:
    path.unlink()


def junk(path: Path) -> None:
    path.write_bytes(b"junk" * 100)


JUDGES: dict[str, Judge] = {
    "levels": LevelsJudge(),
    "face-world": WorldFacesJudge(),
    "conditions": ConditionsJudge(),
}


@pytest.mark.parametrize("harm", [absent, junk])
@pytest.mark.parametrize(
    ("part", "lost"), [("voice", {"conditions"}), ("picture", {"face-world"}), ("truth", {"conditions"})]
)
def test_a_part_that_cannot_be_read_costs_the_judges_that_use_it(
    tmp_path: Path, part: str, lost: set[str], harm: Callable[[Path], None]
) -> None:
    made, sound = footage(0), sound_of(0)[None]
    paths = {"voice": tmp_path / "voice.wav", "truth": tmp_path / "truth.mp4", "picture": tmp_path / "picture.png"}
    write_wav(paths["voice"], sound, RATE)
    write_mp4(paths["truth"], made.pictures, 25, sound, RATE)
    write_png(paths["picture"], made.pictures[0])
    write_mp4(tmp_path / "clip.mp4", made.pictures, 25, sound, RATE)
    clip, voice, picture, truth = tmp_path / "clip.mp4", paths["voice"], paths["picture"], paths["truth"]
    entry = Entry("a", "x", clip, "anna", voice=voice, picture=picture, truth=truth)
    whole = judge_entry(entry, JUDGES)
    assert all("values" in each for each in whole.values())
    assert "stoi" in whole["levels"]["values"]
    harm(paths[part])
    found = judge_entry(entry, JUDGES)
    assert {name for name, each in found.items() if "unjudged" in each} == lost
    for name in lost:
        reason = found[name]["unjudged"]
        assert paths[part].name in reason
        assert str(tmp_path) not in reason
        assert "again" not in found[name]
    kept = found["levels"]["values"]
    assert kept["loudness"] == whole["levels"]["values"]["loudness"]
    assert ("stoi" in kept) == (part != "truth")
    if part == "truth":
        assert "truth.mp4" in kept["stoi_unjudged"]


def test_a_face_that_cannot_be_read_is_not_replaced_by_another(tmp_path: Path) -> None:
    write_mp4(tmp_path / "voice.mp4", footage(0).pictures, 25, sound_of(0)[None], RATE)
    junk(tmp_path / "face.png")
    reference = Reference.read(tmp_path / "voice.mp4", tmp_path / "face.png")
    assert len(reference.speaker.audible)
    with pytest.raises(MediaError, match=r"face\.png"):
        _ = reference.face
    unseen = Reference.read(tmp_path / "absent.mp4", truth=tmp_path / "voice.mp4")
    with pytest.raises(MediaError, match=r"absent\.mp4"):
        _ = unseen.face


def test_want_of_memory_while_a_part_is_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from idlora.evaluation.judges import base

    def breaks(_: object) -> Footage:
        raise MemoryError("none left")

    monkeypatch.setattr(base, "read_image", breaks)
    reference = Reference.read(picture=tmp_path / "face.png")
    with pytest.raises(RuntimeError, match=r"^face\.png cannot be read: MemoryError: none left$"):
        _ = reference.face
