# SPDX-License-Identifier: Apache-2.0
"""What is taken back: all of it by name, in whatever state the folder is, and nothing of others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from idlora.cli import main
from idlora.data.world.recordings import TALK, Recording, Shot, write_recording
from idlora.errors import InputError
from idlora.mining import ledger, manifest, splits, tables, withdrawal
from idlora.mining.ledger import Ledger
from idlora.mining.report import refreshed, write_report
from idlora.mining.run import Mined
from idlora.mining.splits import Frozen
from idlora.mining.tables import Table, read_table
from idlora.mining.withdrawal import LIST_NAME, read_withdrawn, withdraw
from mined import WORDS, mined, recordings, settings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Mined]:
    """Two speakers with two files each and one in which both are seen, one after the other; what was mined of it."""
    folder = tmp_path_factory.mktemp("withdrawal")
    videos, out = folder / "videos", folder / "out"
    for name in ("0000", "0003", "both"):
        (videos / name).mkdir(parents=True)
    for recording in recordings():
        write_recording(recording, videos / recording.name[:4])
    shots = [Shot(TALK, who, WORDS[place : place + 2], "calm", 77 + who, "hall") for who, place in ((0, 0), (3, 2))]
    write_recording(Recording("both-0", "hall", tuple(shots), 91), videos / "both")
    told = mined(videos, out)
    write_report(out, told)
    return videos, out, told


def left(out: Path) -> str:
    """All texts, tables and names of a folder but for the list of what was taken back."""
    found = [p.read_text() for p in out.rglob("*.json*") if p.name != LIST_NAME] + [str(p) for p in out.rglob("*")]
    for path in (out / "tables").glob("*.parquet"):
        table = read_table(path.parent, path.name.removesuffix(".parquet").removesuffix(".dropped"))
        found += [json.dumps([table.rows, table.dropped])] if table else []
    return "\n".join([*found, (out / "report.html").read_text() if (out / "report.html").exists() else ""])


def file_of(told: Mined, name: str) -> dict[str, Any]:
    return next(row for row in told.tables["files"].rows if row["path"].endswith(name))


class StoppedError(Exception):
    """Somebody pulled the plug."""


def interrupted_after_every_change(monkeypatch: pytest.MonkeyPatch, again: Callable[[], object], folder: Path) -> int:
    """Call again and again, each time until one more thing on disk is another; how often that was."""
    calls = 0
    while True:
        with monkeypatch.context() as patch:
            changes = 0

            def once(change: Callable[..., Any]) -> Callable[..., Any]:
                def changed(*given: Any, **named: Any) -> Any:
                    nonlocal changes
                    told = change(*given, **named)
                    changes += not str(getattr(given[0], "name", "")).startswith(".")  # what is not whole yet
                    if changes == 2:  # the first is the list of what was taken back
                        raise StoppedError
                    return told

                return changed

            for module in (withdrawal, manifest, ledger, splits):
                patch.setattr(module, "write_text", once(module.write_text))
            patch.setattr(withdrawal, "rewrite_table", once(tables.rewrite_table))
            patch.setattr(Path, "unlink", once(Path.unlink))
            calls += 1
            assert calls < 200
            try:
                again()
            except StoppedError:
                assert read_withdrawn(folder) != withdrawal.Withdrawn()
                if read_withdrawn(folder).pending:
                    continue
            return calls


@pytest.mark.parametrize("whose", ["file", "speaker"])
def test_a_withdrawal_that_is_interrupted_at_every_step_is_ended_by_the_next(
    whose: str, made: tuple[Path, Path, Mined], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, told = tmp_path / "out", made[2]
    shutil.copytree(made[1], out)
    row = file_of(told, "0003-1.mp4")
    speaker = next(each["speaker"] for each in told.tables["splits"].rows if each["file"] == row["file"])
    given = {"file": "0003-1.mp4"} if whose == "file" else {"speaker": speaker}
    calls = interrupted_after_every_change(monkeypatch, lambda: withdraw(out, **given), out)
    assert calls > 25
    clips = {each["clip"] for each in told.tables["clips"].rows if each["file"] == row["file"]}
    remains = left(out).replace((out / "report.html").read_text(), "")
    assert clips
    assert (speaker in remains) is (whose == "file")  # whose other file stays
    assert not [clip for clip in clips if clip in remains.replace(speaker, "")]
    if whose == "file":
        assert row["file"] not in remains.replace(speaker, "")
        assert row["path"] not in remains
    assert read_withdrawn(out).pending == ""
    assert all((out / line["video"]).is_file() for line in manifest.read_lines(out))
    # The same from a call that nothing interrupted.
    plain = tmp_path / "plain"
    shutil.copytree(made[1], plain)
    withdraw(plain, **given)
    for name in ("manifest.jsonl", LIST_NAME, "splits.json"):
        assert (plain / name).read_text() == (out / name).read_text()
    assert {p.name for p in (plain / "clips").iterdir()} == {p.name for p in (out / "clips").iterdir()}


def test_a_run_ends_a_withdrawal_that_was_interrupted(made: tuple[Path, Path, Mined], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made[1], out)
    row = file_of(made[2], "0000-1.mp4")
    withdrawal._write(out, withdrawal.Withdrawn(files=(row["sha256"],), pending="file 0000-1.mp4"))
    with pytest.raises(InputError, match=r"no file 'nobody.mp4'"):
        withdraw(out, file="nobody.mp4")  # which ends it too
    assert not list((out / "clips").glob(f"{row['file']}*"))
    withdrawal._write(out, withdrawal.Withdrawn(files=(row["sha256"],), pending="file 0000-1.mp4"))
    mined(made[0], out)
    assert read_withdrawn(out) == withdrawal.Withdrawn(files=(row["sha256"],))
    assert row["file"] not in (out / "cache" / "voices.jsonl").read_text()


def test_splits_that_were_changed_are_told_before_anything_goes(made: tuple[Path, Path, Mined], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made[1], out)
    (out / "splits.json").write_text("{}")
    before = left(out)
    with pytest.raises(InputError, match="holds no splits"):
        withdraw(out, file="0003-0.mp4")
    assert left(out) == before
    assert not (out / LIST_NAME).exists()


def test_a_speaker_goes_with_all_that_nobody_else_is_known_in(made: tuple[Path, Path, Mined], tmp_path: Path) -> None:
    videos, out, told = made[0], tmp_path / "out", made[2]
    shutil.copytree(made[1], out)
    both = file_of(told, "both-0.mp4")
    clips = [row for row in told.tables["speakers"].rows if row["file"] == both["file"]]
    first, second = sorted(clips, key=lambda row: row["clip"])
    assert first["speaker"] != second["speaker"]
    spans = {row["clip"]: row for row in told.tables["clips"].rows}
    tracks = {row["track"]: row for row in told.tables["faces"].rows}
    theirs = tracks[spans[second["clip"]]["track"]]
    withdraw(out, speaker=first["speaker"], report=lambda: refreshed(out))
    gone = {row["file"] for row in told.tables["speakers"].rows if row["speaker"] == first["speaker"]}
    tables = {name: read_table(out / "tables", name) for name in told.tables}
    for name in ("scenes", "speech", "faces", "active", "clips", "quality", "voices", "speakers"):
        table = tables[name]
        assert table is not None
        rows = [row for row in (*table.rows, *table.dropped) if row["file"] == both["file"]]
        assert all(row["start"] >= theirs["start"] - 1e-6 for row in rows if row.get("end"))
        assert [row for row in rows if row.get("clip", second["clip"]) == second["clip"]]
        assert {row["file"] for row in (*table.rows, *table.dropped)}.isdisjoint(gone - {both["file"]})
    assert second["clip"] in left(out)
    assert first["clip"] not in left(out)
    again = mined(videos, out)
    kept = {row["clip"]: row for row in again.tables["clips"].rows if row["file"] == both["file"]}
    assert kept == {second["clip"]: spans[second["clip"]]}
    assert all(row["start"] >= theirs["start"] for row in again.tables["speech"].rows if row["file"] == both["file"])


def test_files_are_found_where_they_are_no_more(made: tuple[Path, Path, Mined], tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(made[0], videos)
    first = mined(videos, out)
    row = file_of(first, "0003-0.mp4")
    content = Path(row["path"]).read_bytes()
    Path(row["path"]).unlink()
    mined(videos, out, settings(clips={"num_frames": 65}))  # other clips of the others are frozen too
    assert row["file"] in (out / "cache" / "voices.jsonl").read_text()
    assert row["file"] in (out / "splits.json").read_text()
    moved = videos / "0003" / "moved.mp4"
    moved.write_bytes(content)
    other = file_of(first, "0000-1.mp4")
    withdraw(out, file="0003-0.mp4")
    withdraw(out, file=str(Path(other["path"])))
    remains = left(out)
    for each in (row, other):
        assert not [line for line in remains.splitlines() if each["path"] in line]
        clips = [row["clip"] for row in first.tables["clips"].rows if row["file"] == each["file"]]
        assert not [clip for clip in clips if f'"{clip}"' in remains]
        assert not list((out / "clips").glob(f"{each['file']}*"))
    told = mined(videos, out)
    assert {row["file"], other["file"]}.isdisjoint(each["file"] for each in told.tables["files"].rows)


def test_a_name_of_several_files_is_refused(made: tuple[Path, Path, Mined], tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    for path in made[0].rglob("000*.mp4"):
        (videos / path.parent.name / path.stem).mkdir(parents=True)
        shutil.copy(path, videos / path.parent.name / path.stem / "00001.mp4")
    shutil.copytree(made[1], out)
    mined(videos, out)
    before = left(out)
    with pytest.raises(InputError, match=r"is the name of 4 files; name one by its path: .*0000-0/00001.mp4"):
        withdraw(out, file="00001.mp4")
    assert left(out) == before
    withdraw(out, file="0000-0/00001.mp4")
    assert len(read_withdrawn(out).files) == 1


def test_a_speaker_is_found_by_every_name(tmp_path: Path) -> None:
    names = ("0" * 15 + "a", "0" * 15 + "b", "0" * 15 + "c")
    a, b, c = (f"{name}-00000232" for name in names)
    rows = [{"clip": clip, "file": clip[:16], "speaker": f"s-{a}"} for clip in (a, b)]
    rows += [{"clip": c, "file": names[2], "speaker": f"s-{c}"}]
    tables = {"speakers": Table("speakers", "", rows)}
    frozen = Frozen({f"s-{b}": "train"}, {b: f"s-{b}"})
    shelf = withdrawal._Shelf(tmp_path, tables, [], frozen)
    for name in (f"s-{a}", f"s-{b}"):
        assert withdrawal._clips_of(shelf, name) == ({a, b}, {c})
    assert withdrawal._clips_of(shelf, f"s-{c}") == ({c}, {a, b})
    two = shelf._replace(frozen=Frozen({"x": "train", "y": "test"}, {a: "x", b: "y"}))
    assert withdrawal._clips_of(two, "x") == ({a}, {b, c})
    with pytest.raises(InputError, match="name one of x, y"):
        withdrawal._clips_of(two, f"s-{a}")


def test_what_is_not_of_this_command_stays(made: tuple[Path, Path, Mined], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made[1], out)
    others = {
        "notes.jsonl": '{"path": "x.mp4"}\nno JSON\n',
        "cache/other.jsonl": "not ours\n",
        "tables/other.parquet": "not ours",
        "clips/notes.txt": "mine",
        "clips/.hidden.part.mp4": "mine",
    }
    for name, text in others.items():
        (out / name).write_text(text)
    torn = out / "tables" / "words.dropped.parquet"
    shutil.copy(out / "tables" / "scenes.dropped.parquet", torn)  # as if it was stopped between two files
    withdraw(out, file="0003-0.mp4")
    assert not torn.exists()
    assert {name: (out / name).read_text() for name in others} == others


def test_lines_with_other_ends_of_lines_within_are_one(tmp_path: Path) -> None:
    clips = ["0" * 16 + f"-0000000{place}" for place in range(2)]
    lines: list[dict[str, Any]] = [
        {
            "id": clip,
            "video": f"clips/{clip}.mp4",
            "reference": "x.wav",
            "split": "train",
            "extra": {"recording": "a\u2028b\x85c"},
        }
        for clip in clips
    ]
    manifest.write_manifests(tmp_path, lines)
    assert manifest.read_lines(tmp_path) == lines
    assert manifest.without_clips(tmp_path, lambda clip: clip == clips[0]) == 1
    assert manifest.read_lines(tmp_path) == lines[1:]


def test_the_report_plays_nothing_of_what_was_taken_back(
    made: tuple[Path, Path, Mined], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(made[1], out)
    speaker = made[2].lines[0]["speaker"]
    assert main(["withdraw", str(out), "--speaker", speaker]) == 0
    assert speaker not in (out / "report.html").read_text()
    assert "removed" in capsys.readouterr().out
    (out / "tables" / "speakers.parquet").unlink()
    assert refreshed(out) is None  # it cannot be written, so it goes
    assert not (out / "report.html").exists()
    assert main(["withdraw", str(out), "--file", "nobody.mp4"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_ledger_tells_and_changes_its_entries(tmp_path: Path) -> None:
    known = Ledger(tmp_path / "x.jsonl")
    for key in "abc":
        known.put(key, key, {"rows": []})
    assert known.change(lambda entry: {**entry, "outcome": 1} if entry["file"] == "a" else entry) == 1
    assert known.forget({"b", "z"}) == 1
    again = Ledger(known.path)
    assert [key for key, _ in again.entries()] == ["a", "c"]
    assert again["a"] == 1
    assert ledger.is_ledger(known.path)
    assert not ledger.is_ledger(tmp_path / "gone")
