# SPDX-License-Identifier: Apache-2.0
"""Whose files are touched, which outcomes are kept, and by what right recordings are used."""

from __future__ import annotations

import errno
import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from idlora.cli import main
from idlora.data.media import read_video
from idlora.errors import InputError, MediaError, OutputError, SettingsError
from idlora.mining import mapping, probing
from idlora.mining.mapping import AGAIN, FAULT, attempted
from idlora.mining.run import mine, tidied
from idlora.mining.settings import FileRules, settings_of
from idlora.mining.sources import Source, find_sources, with_rights
from idlora.mining.tables import Table, read_table
from idlora.mining.workshop import Workshop
from mined import mined, settings, write_good
from test_mining_chain import contents

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two files each of two speakers, and what is mined of them."""
    videos = tmp_path_factory.mktemp("small") / "videos"
    write_good(videos)
    mined(videos, videos.parent / "out")
    return videos, videos.parent / "out"


@pytest.fixture
def folder(small: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Videos and what was mined of them, to be changed."""
    shutil.copytree(small[1], tmp_path / "out")
    return small[0], tmp_path / "out"


def test_recordings_in_a_folder_of_work_are_not_touched(
    small: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "clips").mkdir()
    for path in small[0].rglob("*.mp4"):
        shutil.copy(path, tmp_path / "clips")
    before = contents(tmp_path)
    assert main(["pairs", str(tmp_path / "clips"), str(tmp_path), "--finder", "world"]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_only_files_of_our_own_are_removed(folder: tuple[Path, Path]) -> None:
    out = folder[1]
    shop = Workshop(out)
    ours = [path for name in ("clips", "originals", "references") for path in (out / name).iterdir()]
    name = read_table(out / "tables", "files").rows[0]["file"]  # type: ignore[union-attr]
    left_over = out / "clips" / f"{name}-00009999.mp4"
    left_over.touch()  # by a call that was killed
    theirs = ["clips/notes.txt", "clips/holiday.mp4", "originals/00000232.wav", "references/a-00000232.wav"]
    theirs += ["clips/.hidden.part.mp4", "plots/.draft.2.png"]
    for each in theirs:
        (out / each).touch()
    shop.prepare()
    tidied(shop, Table("media", "", []))
    assert ours
    assert not [path for path in (*ours, left_over) if path.exists()]
    assert all((out / each).exists() for each in theirs)


def test_clips_that_lie_among_the_videos_are_no_recordings(small: tuple[Path, Path], tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(small[0], videos)
    out = videos / "0000" / "pairs"
    first = mined(videos, out)
    assert list((out / "clips").glob("*.mp4"))
    before = contents(out)
    asked: list[str] = []
    second = mined(videos, out, notice=lambda stage, *_: asked.append(stage))
    assert (asked, second.lines) == ([], first.lines)
    assert contents(out) == before
    with pytest.raises(InputError, match="are clips that were made"):
        mine(find_sources(out / "clips"), Workshop(out), settings())


def test_other_settings_and_back_make_the_same_files(folder: tuple[Path, Path]) -> None:
    videos, out = folder
    before = contents(out)
    other = settings(clips={"num_frames": 65})
    mined(videos, out, other)
    frames = {read_video(path).frames.shape[0] for path in (out / "clips").iterdir()}
    assert frames == {65}
    mined(videos, out)
    differ = {name for name, content in contents(out).items() if content != before.get(name)}
    assert differ <= {"splits.json"}  # which keeps the clips of both

    def killed(stage: str, done: int, total: int) -> None:
        if stage == "media" and done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # all is cut by other settings, and no table says so
        mined(videos, out, other, killed)
    mined(videos, out)
    assert {name for name, content in contents(out).items() if content != before.get(name)} <= {"splits.json"}


class Machine:
    """Work that fails for one reason until it is put right."""

    def __init__(self, error: Exception) -> None:
        self.error: Exception | None = error
        self.calls = 0

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        if self.error and item["file"] == "bad":
            raise self.error
        return {"rows": [{"x": item["file"]}]}


def unreadable() -> Exception:
    error = MediaError("cannot read x.mp4: Too many open files; check the path")
    error.__cause__ = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return error


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (OSError(errno.EMFILE, "Too many open files"), False),
        (unreadable(), False),
        (MemoryError("no memory"), False),
        (TypeError("unsupported operand"), False),
        (MediaError("x.mp4 is damaged; copy it anew"), True),
        (ValueError("no such number"), True),
    ],
)
def test_what_the_machine_may_be_to_blame_for_is_tried_again(error: Exception, kept: bool, tmp_path: Path) -> None:
    shop, work = Workshop(tmp_path), Machine(error)
    shop.prepare()
    items = [{"file": "good"}, {"file": "bad"}]
    first = shop.mapped("stage", {"x": "text", "file": "text"}, work, items)
    assert [row["x"] for row in first.rows] == ["good"]
    assert len(first.dropped) == 1
    work.error = None
    second = shop.mapped("stage", {"x": "text", "file": "text"}, work, items)
    assert len(second.rows) == (1 if kept else 2)
    assert work.calls == (2 if kept else 3)
    assert (second.key == first.key) is kept
    third = shop.mapped("stage", {"x": "text", "file": "text"}, work, items)
    assert (third.key, work.calls) == (second.key, 2 if kept else 3)


def test_a_full_disk_ends_the_stage(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    shop.prepare()
    work = Machine(OutputError("cannot write x: No space left on device; free space"))
    for items in ([{"file": "bad"}], [{"file": "good"}, {"file": "bad"}]):
        with pytest.raises(OutputError, match="No space"):
            shop.written_files("stage", {"x": "text"}, work, items, ())
    work.error = None
    assert len(shop.written_files("stage", {"x": "text", "file": "text"}, work, items, ()).rows) == 2


def test_a_package_that_is_lacking_is_told_in_a_line() -> None:
    with pytest.raises(SettingsError, match="pip install"):
        attempted(Machine(ModuleNotFoundError("No module named 'cv3'")), {"file": "bad"})
    assert attempted(Machine(RuntimeError("of torch")), {"file": "bad"}) == {
        FAULT: "RuntimeError: of torch",
        AGAIN: True,
    }


@pytest.mark.parametrize("there", [True, False])
def test_a_cluster_that_is_there_is_joined_with_its_own_processors(there: bool) -> None:
    asked: list[dict[str, Any]] = []

    class Ray:
        def init(self, **given: Any) -> None:
            asked.append(given)
            if there and "num_cpus" in given:
                raise ValueError("When connecting to an existing cluster, num_cpus must not be provided.")

    mapping._joined(Ray(), 3)
    assert [each.get("num_cpus") for each in asked] == ([3, None] if there else [3])

    class Gone:
        def init(self, **given: Any) -> None:
            raise ValueError("bad address") if "num_cpus" in given else ConnectionError("nobody answers")

    with pytest.raises(SettingsError, match="nobody answers"):
        mapping._joined(Gone(), 3)


def told_of(text: str, *paths: str, folder: Path) -> tuple[list[str], list[str]]:
    table = folder / "rights.csv"
    table.write_text(text, encoding="utf-8")
    missed: list[str] = []
    found = with_rights([Source(Path(path)) for path in paths], table, missed.append)
    return [each.consent for each in found], missed


def test_rights_fit_whole_names(tmp_path: Path) -> None:
    def told(text: str, *paths: str) -> list[str]:
        return told_of(f"path,source,licence,consent\n{text}\n", *paths, folder=tmp_path)[0]

    none = "unknown"
    assert told("1.mp4,,,given", "v/1.mp4", "v/11.mp4", "v/anna1.mp4") == ["given", none, none]
    assert told("anna/1.mp4,,,given", "v/anna/1.mp4", "v/susanna/1.mp4") == ["given", none]
    assert told("anna/*.mp4,,,given", "v/anna/1.mp4", "v/susanna/1.mp4") == ["given", none]
    assert told("Talk [abc].mp4,,,refused", "v/Talk [abc].mp4", "v/Talk a.mp4") == ["refused", none]
    assert told("Talk [ab].mp4,,,refused", "v/Talk a.mp4", "v/Talk c.mp4") == ["refused", none]
    assert told("./v/1.mp4,,,given", "v/1.mp4") == ["given"]
    assert told(f"{Path.cwd()}/v/1.mp4,,,given", "v/1.mp4", "w/1.mp4") == ["given", none]
    spelt = unicodedata.normalize("NFD", "josé.mp4")
    assert told("josé.mp4,,,refused", f"v/{spelt}") == ["refused"] == told(f"{spelt},,,refused", "v/josé.mp4")
    assert told("*,,,given\n1.mp4,,,refused", "v/1.mp4", "v/2.mp4") == ["refused", "given"]


def test_rights_that_say_nothing_are_told(tmp_path: Path) -> None:
    consents, missed = told_of("Path,CONSENT\nanna_1.mp4,refused\nanna-1.mp4\n", "v/anna-1.mp4", folder=tmp_path)
    assert consents == ["unknown"]
    assert missed == [f"{tmp_path / 'rights.csv'}, line 2: 'anna_1.mp4' fits no recording"]
    many = "path,consent\n" + "".join(f"{number}.mp4,given\n" for number in range(30))
    assert len(told_of(many, "v/x.mp4", folder=tmp_path)[1]) == 21
    for text, message in (
        ("path,license\n1.mp4,CC0\n", "'license'.*did you mean 'licence'"),
        ("path,consent,Consent\n1.mp4,given,refused\n", "twice"),
        ("path;consent\n1.mp4;refused\n", "no column `path`"),
        ("path,consent\n,given\n", "line 2 names no path"),
        ("path,consent\n1, 2.mp4,refused\n", "line 2 has more cells"),
    ):
        with pytest.raises(InputError, match=message):
            told_of(text, "v/1.mp4", folder=tmp_path)


def rows_of(*told: tuple[str, str, str], span: tuple[float, float] = (0.0, 9.0)) -> list[dict[str, Any]]:
    held = {"start": span[0], "end": span[1], "width": 96, "height": 96, "audio_codec": "aac"}
    return [
        {**held, "path": path, "sha256": digest, "name": digest, "consent": consent} for path, digest, consent in told
    ]


def test_a_copy_of_what_is_refused_is_refused() -> None:
    rows = rows_of(("a.mp4", "x", "unknown"), ("b.mp4", "x", "Refused"), ("c.mp4", "y", "given"))
    kept, gone = probing.chosen(rows, FileRules(), [])
    assert [row["path"] for row in kept] == ["c.mp4"]
    assert {row["reason"] for row in gone} == {probing.REFUSAL}
    assert probing.barred(rows, FileRules(), []) == {"x"}
    other = {**rows[0], "start": 9.0, "end": 20.0, "name": "x-9000"}  # another stretch of the same file
    assert [row["name"] for row in probing.chosen([*rows, other], FileRules(), [])[0]] == ["y", "x-9000"]


@pytest.mark.parametrize(
    "consent", ["denied", "revoked", "pending", "n/a", "none", "not given", "unknown", "", "maybe"]
)
def test_consent_that_is_required_must_be_given(consent: str) -> None:
    strict = FileRules(require_consent=True)
    given = rows_of(*((f"{word}.mp4", word, word) for word in ("given", "Yes", "TRUE", "granted ")))
    kept, _ = probing.chosen([*given, *rows_of(("x.mp4", "x", consent))], strict, [])
    assert [row["path"] for row in kept] == [row["path"] for row in given]


def test_settings_of_a_file_do_not_take_back_that_consent_is_required(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    for in_file, by_option in ((False, True), (True, False)):
        file.write_text(json.dumps({"files": {"require_consent": in_file}}))
        assert settings_of({"files": {"require_consent": by_option}}, file).files.require_consent
    for wrong in ({"words": {"vocabulary": [1]}}, {"clips": {"seconds": 3.0}}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(SettingsError):
            settings_of({}, file)


def test_what_was_made_of_refused_files_goes_even_if_no_other_is_left(folder: tuple[Path, Path]) -> None:
    videos, out = folder
    (out / "report.html").write_text("it plays them")
    sources = find_sources(videos, "speakers")
    with pytest.raises(InputError, match="none of 4 recordings"):
        mine([replace(each, consent="refused") for each in sources], Workshop(out), settings())
    assert (out / "manifest.jsonl").read_text() == ""
    assert not [path for name in ("clips", "originals", "references") for path in (out / name).iterdir()]
    assert not (out / "report.html").exists()
    assert mined(videos, out).lines  # consent is given again


def test_files_of_an_earlier_version_that_let_refused_ones_pass_are_chosen_anew(folder: tuple[Path, Path]) -> None:
    videos, out = folder
    sources = [replace(each, consent="denied") for each in find_sources(videos, "speakers")[:1]]
    sources += find_sources(videos, "speakers")[1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "REFUSED", frozenset({"refused"}))
        assert len(mine(sources, Workshop(out), settings()).tables["files"].rows) == 4
    assert len(mine(sources, Workshop(out), settings()).tables["files"].rows) == 3


@pytest.mark.parametrize(
    "line",
    [
        '{"path": "a.mp4", "consent": null}', '{"path": "a.mp4", "label": 5}', '{"path": "a.mp4", "end": null}',
        '{"path": "a.mp4", "start": "3"}', '{"path": "a.mp4", "start": NaN}', '{"path": 5}', '{"label": "x"}',
        '{"path": "a.mp4", "start": true}', '{"path": ' * 9999,
    ],
)  # fmt: skip
def test_a_malformed_line_is_told_by_its_number(line: str, tmp_path: Path) -> None:
    listed = tmp_path / "list.jsonl"
    listed.write_text(f'{{"path": "a\u2028b.mp4"}}\n{line}\n')
    with pytest.raises(InputError, match=r"list.jsonl, line 2 is no recording"):
        find_sources(listed)


@pytest.mark.parametrize(
    ("layout", "told", "message"),
    [
        ("celebv-hq", {"clips": {"x": {"ytb_id": "a"}}}, "clip 'x'"),
        ("celebv-hq", {"clips": {"x": 5}}, "clip 'x'"),
        ("talkvid", [{"start-time": 0, "end-time": 1}], "clip 1"),
        ("talkvid", [{"id": "a", "start-time": 4, "end-time": 1}], "clip 1"),
        ("talkvid", [{"id": "a", "start-time": 0, "end-time": 4, "info": None}], "clip 1"),
    ],
)
def test_a_malformed_entry_of_a_published_list_is_told(layout: str, told: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "told.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=f"told.json: {message}"):
        find_sources(tmp_path, layout, tmp_path / "told.json")


def test_a_name_that_is_no_text_is_left_out_and_told(small: tuple[Path, Path], tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(small[0], videos)
    try:
        Path(os.fsdecode(os.fsencode(videos / "0000") + b"/caf\xe9.mp4")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    told = mined(videos, tmp_path / "out")
    assert len(told.tables["files"].rows) == 4
    (gone,) = told.tables["probe"].dropped
    assert ("caf\\udce9.mp4" in gone["item"], "rename" in gone["why"]) == (True, True)


def test_linked_folders_are_looked_into_once(tmp_path: Path) -> None:
    videos, other = tmp_path / "videos", tmp_path / "other"
    for path in (videos / "real" / "1.mp4", other / "anna" / "2.mp4", other / "ben" / "3.mp4"):
        path.parent.mkdir(parents=True)
        path.touch()
    links: list[tuple[Path, Callable[[], Path]]] = [
        (videos / "anna", lambda: other / "anna"),
        (videos / "anew", lambda: videos / "real"),
        (videos / "real" / "round", lambda: videos),
        (other / "anna" / "ben", lambda: other / "ben"),
        (videos / "nowhere", lambda: tmp_path / "gone"),
    ]
    for link, to in links:
        link.symlink_to(to())
    found = [each.path.relative_to(videos).as_posix() for each in find_sources(videos)]
    assert found == ["anna/2.mp4", "anna/ben/3.mp4", "real/1.mp4"]
    assert {each.label for each in find_sources(videos, "speakers")} == {"anna", "real"}
