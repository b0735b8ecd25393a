# SPDX-License-Identifier: Apache-2.0
"""`idlora pairs` as a whole: odd files, stops at every stage, Ray, dying workers, rights, and what is taken back."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from dying import doubled
from idlora.cli import main
from idlora.data.manifest import read_manifest
from idlora.data.world.recordings import TALK
from idlora.data.world.voice import VOCABULARY
from idlora.errors import InputError, SettingsError
from idlora.mining import probing, scenes, voices
from idlora.mining.ledger import Ledger
from idlora.mining.mapping import DIED, FAULT, cluster, mapped
from idlora.mining.run import Mined, mine
from idlora.mining.sources import find_sources, with_rights
from idlora.mining.tables import key_of, read_table
from idlora.mining.withdrawal import LIST_NAME, Withdrawn, read_withdrawn, withdraw, without
from idlora.mining.workshop import UNREADABLE, Workshop
from killing import killed_in, scenes_once
from mined import ODD, mined, recordings, settings, write_corpus, write_good

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
MAPPED = ("probe", "scenes", "speech", "faces", "active", "quality", "voices", "words", "media", "captions")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("chain") / "videos")


@pytest.fixture(scope="module")
def made(corpus: Path) -> tuple[Path, Mined]:
    """A folder that nobody changes, and what was mined in it."""
    out = corpus.parent / "out"
    return out, mined(corpus, out, LABELLED)


LABELLED = settings()


def contents(out: Path) -> dict[str, bytes]:
    """All that was made, but for the order in which single items became known."""
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*.*"))
        if p.is_file() and p.parent.name != "cache"
    }


def test_odd_files_are_told_and_the_rest_is_done(made: tuple[Path, Mined]) -> None:
    tables = made[1].tables
    used = {Path(row["path"]).name for row in tables["files"].rows}
    assert used == {*(f"{each.name}.mp4" for each in recordings()), "turned.mp4", "phone.mp4"}
    out = tables["probe"]
    reasons = {Path(row["item"]).name: row["reason"] for row in (*out.dropped, *tables["files"].dropped)}
    assert reasons == {
        "cut.mp4": UNREADABLE, "damaged.mp4": UNREADABLE, "empty.mp4": UNREADABLE,
        "mute.mp4": probing.SILENT, "twin.mp4": probing.TWICE,
    }  # fmt: skip
    assert set(reasons) == set(ODD)
    assert "0 bytes" in next(row["why"] for row in out.dropped if row["item"].endswith("empty.mp4"))
    told = {Path(row["path"]).name: row for row in tables["files"].rows}
    clips = Counter(row["file"] for row in tables["quality"].rows)
    assert (told["turned.mp4"]["rotation"], told["phone.mp4"]["variable"]) == (90, True)
    assert all(clips[told[name]["file"]] >= 1 for name in ("turned.mp4", "phone.mp4"))


def test_clips_hold_the_words_that_are_said_in_them(made: tuple[Path, Mined]) -> None:
    tables = made[1].tables
    truth = {f"{each.name}.mp4": each.truth()["shots"] for each in recordings()}
    names = {row["file"]: Path(row["path"]).name for row in tables["files"].rows}
    spans = {row["clip"]: row for row in tables["clips"].rows}
    right = wrong = 0
    for row in tables["words"].rows:
        clip = spans[row["clip"]]
        if names[row["file"]] in truth:
            said = [
                w
                for shot in truth[names[row["file"]]]
                for w, low, high in shot["words"]
                if clip["start"] < (low + high) / 2 < clip["end"]
            ]
            right += len(set(said) & set(row["text"].split()))
            wrong += len(set(said) - set(row["text"].split()))
    assert right > 4 * wrong > -1
    assert all(shot["kind"] == TALK for shots in truth.values() for shot in shots)


def test_pairs_are_of_one_speaker_and_their_files_are_there(made: tuple[Path, Mined]) -> None:
    out, told = made
    pairs, faults = read_manifest(out / "manifest.jsonl")
    assert faults == []
    assert pairs
    assert len(pairs) == len(told.lines)
    assert all(pair.video.is_file() and pair.reference.is_file() for pair in pairs)
    for line in told.lines:
        assert line["extra"]["consent"] == "unknown"
        assert (out / line["extra"]["original_reference"]).is_file()
    assert {table.name for table in told.tables.values()} >= {"files", "pairs", "links"}


class StoppedError(Exception):
    """Somebody pulled the plug."""


def test_stopped_at_every_stage_and_resumed_the_tables_are_the_same(
    corpus: Path, made: tuple[Path, Mined], tmp_path: Path
) -> None:
    stopped = []

    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done > 0) not in stopped and total:
            stopped.append((stage, done > 0))
            raise StoppedError

    while True:
        try:
            mined(corpus, tmp_path / "out", LABELLED, stop)
            break
        except StoppedError:
            for path in (tmp_path / "out" / "cache").glob("*.jsonl"):
                with path.open("a") as stream:
                    stream.write('{"key": "a line cut sh')  # as an interrupted writer leaves it
            (tmp_path / "out" / "clips" / ".half.0123456789ab.mp4").touch()
    assert {stage for stage, later in stopped if later} >= set(MAPPED)
    first, second = contents(made[0]), contents(tmp_path / "out")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    # A second call does nothing at all.
    asked: list[str] = []
    mined(corpus, tmp_path / "out", LABELLED, lambda stage, *_: asked.append(stage))
    assert asked == []
    assert contents(tmp_path / "out") == first


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two files each of two speakers, and what is mined of them."""
    videos = tmp_path_factory.mktemp("small") / "videos"
    write_good(videos)
    mined(videos, videos.parent / "out", LABELLED)
    return videos, videos.parent / "out"


def test_killed_in_every_stage_and_resumed_the_tables_are_the_same(small: tuple[Path, Path], tmp_path: Path) -> None:
    context, out = get_context("spawn"), tmp_path / "out"
    for stage in MAPPED:
        process = context.Process(target=killed_in, args=(stage, small[0], out))
        process.start()
        process.join(300)
        assert (stage, process.exitcode) == (stage, -signal.SIGKILL)
        assert Ledger(out / "cache" / f"{stage}.jsonl").entries()
    mined(small[0], out, LABELLED)
    first, second = contents(small[1]), contents(out)
    assert read_table(out / "tables", "pairs").rows  # type: ignore[union-attr]
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_stage_is_made_anew_when_its_settings_or_files_change(
    corpus: Path, made: tuple[Path, Mined], tmp_path: Path
) -> None:
    shutil.copytree(made[0], tmp_path / "out")
    asked: list[str] = []
    other = settings(pairs={"per_speaker": 1})
    told = mined(corpus, tmp_path / "out", other, lambda stage, *_: asked.append(stage))
    assert "pairs" in asked
    assert not {"scenes", "faces", "quality", "voices", "words", "links"} & set(asked)
    assert max(Counter(line["speaker"] for line in told.lines).values()) == 1
    assert {path.name for path in (tmp_path / "out" / "clips").iterdir()} == {
        Path(line["video"]).name for line in told.lines
    }
    victim = tmp_path / "out" / told.lines[0]["video"]
    kept = victim.read_bytes()
    victim.unlink()
    mined(corpus, tmp_path / "out", other)
    assert victim.read_bytes() == kept
    table = tmp_path / "out" / "tables" / "scenes.parquet"
    table.write_bytes(b"no table")
    assert key_of(table.parent, "scenes") == ""
    mined(corpus, tmp_path / "out", other)
    assert read_table(table.parent, "scenes") is not None


def test_other_weights_of_an_encoder_make_other_vectors(
    corpus: Path, made: tuple[Path, Mined], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made[0], tmp_path / "out")
    known = voices.encoder_of(voices.WORLD, "")
    other = known._replace(record=replace(known.record, weights="0" * 64))
    monkeypatch.setattr(voices, "encoder_of", lambda *_: other)
    asked: list[str] = []
    mined(corpus, tmp_path / "out", settings(), lambda stage, *_: asked.append(stage))
    assert "voices" in asked
    assert not {"scenes", "faces", "quality", "words"} & set(asked)


@pytest.fixture(scope="module")
def two_of_ray() -> Iterator[None]:
    """Ray with two workers, who find the modules of the tests."""
    pytest.importorskip("ray.data", reason="the extra `ray` is not installed")
    with pytest.MonkeyPatch.context() as patch, cluster_of_ours(patch):
        yield


@contextmanager
def cluster_of_ours(patch: pytest.MonkeyPatch) -> Iterator[None]:
    patch.setenv("PYTHONPATH", str(Path(__file__).parent))
    patch.setenv("RAY_ADDRESS", "local")  # none that others began on this machine
    with cluster(2, ray=True):
        yield


@pytest.mark.usefixtures("two_of_ray")
def test_two_workers_of_ray_make_the_same_manifest_and_one_of_them_dies(
    small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage by Ray from the beginning."""
    monkeypatch.setattr(scenes, "scenes_of", scenes_once)
    mine(find_sources(small[0], "speakers"), Workshop(tmp_path / "out", workers=2, ray=True), LABELLED)
    assert (small[0] / "died").exists()
    assert contents(tmp_path / "out") == contents(small[1])
    assert {path.stem for path in (tmp_path / "out" / "cache").iterdir()} == set(MAPPED)


def items(folder: Path, *dies: str) -> list[dict[str, Any]]:
    return [{"number": number, "dies": how, "folder": str(folder)} for number, how in enumerate(dies)]


def test_the_work_of_a_process_that_died_is_done_again(tmp_path: Path) -> None:
    told = dict(mapped(doubled, items(tmp_path, "", "once", "fault", "always", ""), workers=2))
    assert [told[place].get("rows", [{}])[0].get("twice") for place in range(5)] == [0, 2, None, None, 8]
    assert told[2] == {FAULT: "no good; use another"}
    assert told[3] == {FAULT: DIED}
    alone = items(tmp_path, "", "fault", "")
    assert dict(mapped(doubled, alone)) == dict(mapped(doubled, alone, workers=2))


@pytest.mark.usefixtures("two_of_ray")
def test_ray_does_the_work_of_a_process_that_died_again(tmp_path: Path) -> None:
    told = dict(mapped(doubled, items(tmp_path, "", "once", "fault", "always"), workers=2, ray=True))
    assert [told[place].get("rows", [{}])[0].get("twice") for place in range(4)] == [0, 2, None, None]
    assert told[2] == {FAULT: "no good; use another"}
    assert told[3] == {FAULT: DIED}
    assert (tmp_path / "1").exists()


def test_without_ray_its_option_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match="needs Ray"):
        list(mapped(doubled, items(tmp_path, ""), ray=True))


def test_unknown_consent_is_left_out_where_it_is_required(corpus: Path, tmp_path: Path) -> None:
    table = tmp_path / "rights.csv"
    table.write_text("path,source,licence,consent\n0000-*.mp4,ours,CC0,given\n0003-1.mp4,,,refused\n")
    sources = with_rights(find_sources(corpus), table)
    strict = settings(files={"require_consent": True})
    rows = [{"path": each.path.as_posix(), "consent": each.consent} for each in sources]
    held = {"start": 0.0, "end": 9.0, "width": 96, "height": 96, "audio_codec": "aac"}
    probed = [{**row, **held, "name": row["path"], "sha256": row["path"]} for row in rows]
    kept, gone = probing.chosen(probed, strict.files, [])
    assert sorted(Path(row["path"]).name for row in kept) == ["0000-0.mp4", "0000-1.mp4"]
    assert {row["reason"] for row in gone} == {probing.REFUSAL, probing.NO_CONSENT}
    assert len(probing.chosen(probed, settings().files, [])[0]) == len(rows) - 1  # refused is refused
    with pytest.raises(InputError, match="none of"):
        mine(find_sources(corpus / "0000" / "empty.mp4"), Workshop(tmp_path / "none"), strict)


def everything(out: Path) -> str:
    """All texts and all tables of a folder as one text."""
    found = [p.read_text() for p in out.rglob("*.json*") if p.name != LIST_NAME] + [str(p) for p in out.rglob("*")]
    for path in (out / "tables").glob("*.parquet"):
        table = read_table(path.parent, path.name.removesuffix(".parquet").removesuffix(".dropped"))
        found += [json.dumps([table.rows, table.dropped])] if table else []
    return "\n".join(found)


def test_a_file_that_is_withdrawn_leaves_nothing_and_never_comes_back(
    corpus: Path, made: tuple[Path, Mined], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    row = next(row for row in made[1].tables["files"].rows if row["path"].endswith("0000-0.mp4"))
    assert row["file"] in everything(out)
    counts = withdraw(out, file="0000-0.mp4")
    assert all(counts[name] > 0 for name in ("rows", "outcomes", "files", "lines"))
    assert row["file"] not in everything(out)
    assert row["path"] not in everything(out)
    told = mined(corpus, out, LABELLED)
    again = everything(out)
    assert row["file"] not in again.replace(row["sha256"], "")
    assert row["file"] not in {each["file"] for each in told.tables["files"].rows}
    (out / "cache" / "probe.jsonl").unlink()  # not even when all files are looked at again
    for name in ("probe", "files"):
        (out / "tables" / f"{name}.parquet").unlink()
    told = mined(corpus, out, LABELLED)
    assert {each["reason"] for each in told.tables["files"].dropped} >= {probing.WITHDRAWN}
    assert all(row["file"] not in json.dumps(table.rows) for name, table in told.tables.items() if name != "probe")
    with pytest.raises(InputError, match="no file"):
        withdraw(out, file="nobody.mp4")
    for speaker, file in (("", ""), ("a", "b")):
        with pytest.raises(InputError, match="either"):
            withdraw(out, speaker=speaker, file=file)


def test_a_speaker_who_is_withdrawn_leaves_nothing_and_never_comes_back(
    corpus: Path, made: tuple[Path, Mined], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    speaker = made[1].lines[0]["speaker"]
    clips = {row["clip"] for row in made[1].tables["speakers"].rows if row["speaker"] == speaker}
    withdraw(out, speaker=speaker)
    left = everything(out)
    assert speaker not in left
    assert not [clip for clip in clips if clip in left]
    told = mined(corpus, out, LABELLED)
    again = everything(out)
    assert not [clip for clip in clips if clip in again]
    assert speaker not in again
    assert told.tables["files"].rows  # the files stay: others may be in them
    with pytest.raises(InputError, match="no speaker"):
        withdraw(out, speaker="nobody")


def test_what_was_taken_back_is_cut_out_of_stretches(tmp_path: Path) -> None:
    assert without((0.0, 10.0), [(2.0, 3.0), (9.0, 12.0)]) == [(0.0, 2.0), (3.0, 9.0)]
    assert without((0.0, 1.0), [(0.0, 1.0)]) == []
    assert read_withdrawn(tmp_path) == Withdrawn()
    (tmp_path / LIST_NAME).write_text("{")
    with pytest.raises(InputError, match="returns"):
        read_withdrawn(tmp_path)
    ledger = Ledger(tmp_path / "x.jsonl")
    ledger.put("a", "f", {"rows": []})
    ledger.put("b", "g", {"rows": []})
    assert ledger.keep(lambda entry: entry["file"] == "g") == 1
    assert ("a" in Ledger(ledger.path), Ledger(ledger.path)["b"]) == (False, {"rows": []})


def test_the_command_mines_reports_and_withdraws(
    corpus: Path, made: tuple[Path, Mined], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words, more = tmp_path / "out", tmp_path / "words.txt", tmp_path / "more.json"
    shutil.copytree(made[0], out)
    words.write_text("\n".join(VOCABULARY))
    more.write_text(json.dumps({"speakers": {"encoder": "speaker-world"}}))
    command = [
        "pairs",
        str(corpus),
        str(out),
        *f"--layout speakers --frames 57 --finder world --vocabulary {words} --validation 0 --test 0".split(),
        *f"--settings {more} --samples 1".split(),
    ]
    assert main(command) == 0
    assert "cannot be read" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert page.count("data:video/mp4;base64") >= 2
    assert page.count("data:audio/wav;base64") >= 2
    assert all(
        word in page
        for word in ("Funnel", "Dropped, and why", "Speakers", "Accepted pairs", "Rejected", "no audio track")
    )
    assert (out / "plots" / "speaker-scores.png").is_file()
    assert contents(out / "tables") == contents(made[0] / "tables")
    assert main(["withdraw", str(out), "--file", "0000-0.mp4"]) == 0
    assert "0000-0.mp4" not in (out / "report.html").read_text()
    capsys.readouterr()
    for wrong in (
        ["withdraw", str(tmp_path), "--file", "x"],
        ["pairs", str(tmp_path / "gone"), str(out)],
        [*command, "--speaker-weights", "x"],
    ):
        assert main(wrong) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
